"""`mlflow-scalpel restore`: a checkpoint with some of its weights put back from its base."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "restore"
HELP = "put some weights of a checkpoint back from its base"
EXTRA = "measure"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", help="directory, hub name, or URI of the checkpoint")
    parser.add_argument("--base", required=True, help="the same of what training began with")
    parser.add_argument("--modules", metavar="M,M", help="such as q_proj,k_proj; all unless given")
    parser.add_argument("--layers", metavar="N-N", help="such as 16-18 or 0-3,7; all unless given")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="directory to make")
    parser.add_argument("--log", action="store_true", help="log it as a model, in a run of its own")


def run(arguments: argparse.Namespace) -> int:
    """Write the restored checkpoint, and say what was put back."""
    from mlflow_scalpel.checkpoints.restore import log_restoration, restore

    modules = arguments.modules.split(",") if arguments.modules else None
    restored = restore(
        arguments.checkpoint,
        arguments.base,
        arguments.out,
        modules=modules,
        layers=arguments.layers,
    )
    print(
        f"{restored.directory}: {restored.tensors} tensors as in {restored.base}, "
        f"{restored.elements} elements put back"
    )
    if arguments.log:
        print(f"models:/{log_restoration(restored).model_id}")
    return 0
