"""Download a checkpoint and check its files.

Prints the directory, which `from_pretrained` opens.
"""

from __future__ import annotations

import argparse
import contextlib
import sys

EXAMPLE = """\
mlflow-scalpel pull models:/tiny-grpo/20
mlflow-scalpel pull "runs:/RUN_ID#step=40" --dst here
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "uri",
        help="models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-..., runs:/RUN#step=N, "
        "runs:/RUN#last, or a hub name (org/name@revision)",
    )
    parser.add_argument("--dst", help="directory to put the files into (default: the cache)")
    parser.add_argument("--merge", action="store_true", help="merge an adapter into its base")
    parser.add_argument(
        "--dtype",
        choices=("base", "float32", "bfloat16", "float16", "float64"),
        default="base",
        help="dtype of the merged weights; prints what rounding did to the norms of the updates "
        "(default: that of the base)",
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
