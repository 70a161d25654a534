"""`mlflow-scalpel pull`: a checkpoint's files, checked, in a directory."""

from __future__ import annotations

import argparse
import contextlib
import sys

NAME = "pull"
HELP = "fetch a checkpoint's files and check them"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "uri",
        help="models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-..., runs:/RUN#step=N, "
        "runs:/RUN#last, or a hub name (org/name@revision)",
    )
    parser.add_argument("--dst", help="directory to put the files into; the cache unless given")
    parser.add_argument(
        "--merge", action="store_true", help="write an adapter merged into its base"
    )
    parser.add_argument(
        "--dtype",
        choices=("base", "float32", "bfloat16", "float16", "float64"),
        default="base",
        help="of the merged weights: that of the base's (base), or another one; what rounding did "
        "to the norms of the updates is printed",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the directory, and nothing else, on stdout."""
    from mlflow_scalpel.checkpoints.reading.pull import pull

    # MLflow, PEFT and Transformers print where they like.
    with contextlib.redirect_stdout(sys.stderr):
        directory = pull(
            arguments.uri,
            arguments.dst,
            merge=arguments.merge,
            dtype=None if arguments.dtype == "base" else arguments.dtype,
            progress=sys.stderr.isatty(),
        )
    print(directory)
    return 0
