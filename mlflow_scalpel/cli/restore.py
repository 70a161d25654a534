"""Put some weights of a checkpoint back to what they are in its base.

The result can be evaluated and compared like any other model: it shows what that part of the update
was worth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

EXTRA = "measure"
EXAMPLE = """\
mlflow-scalpel restore models:/tiny-sft/20 --base models:/tiny-base/1 \\
    --modules q_proj,k_proj --layers 1-3 --out restored --log
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", help="directory, hub name or URI of the checkpoint")
    parser.add_argument(
        "--base", required=True, help="likewise, the model that training started from"
    )
    parser.add_argument(
        "--modules", metavar="M,M", help="modules to put back, such as q_proj,k_proj (default: all)"
    )
    parser.add_argument(
        "--layers", metavar="N-N", help="layers to put back, such as 16-18 or 0-3,7 (default: all)"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="directory to create"
    )
    parser.add_argument(
        "--log", action="store_true", help="log the result as a model, in a run of its own"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the restored checkpoint, and say what was put back."""
    from mlflow_scalpel.checkpoints.models.restore import log_restoration, restore

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
