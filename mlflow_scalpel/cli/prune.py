"""Delete the files of a run's checkpoints, except those that a rule keeps.

Metrics, params and manifests of the deleted checkpoints stay.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from mlflow_scalpel.errors import ScalpelError

if TYPE_CHECKING:
    from mlflow_scalpel.checkpoints.prune import Plan

EXAMPLE = "mlflow-scalpel prune RUN_ID --keep 2 --keep-best eval/in/add/greedy --dry-run"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run_id", metavar="RUN_ID", help="run whose checkpoints are meant")
    parser.add_argument("--keep", type=int, metavar="N", help="keep the N newest checkpoints")
    parser.add_argument(
        "--keep-every", type=int, metavar="K", help="keep checkpoints whose step is a multiple of K"
    )
    parser.add_argument(
        "--keep-best",
        metavar="METRIC",
        help="keep the checkpoint with the largest value of this metric",
    )
    parser.add_argument(
        "--minimize", action="store_true", help="the smallest value is the best one"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be deleted")


def run(arguments: argparse.Namespace) -> int:
    """Show what is deleted and what is kept, ask, and delete; 1 where the answer is no."""
    from mlflow_scalpel.checkpoints.prune import plan_prune, prune
    from mlflow_scalpel.units import readable_bytes

    plan = plan_prune(
        arguments.run_id.removeprefix("runs:/"),
        keep=arguments.keep,
        keep_every=arguments.keep_every,
        keep_best=arguments.keep_best,
        minimize=arguments.minimize,
    )
    _show(plan)
    if not plan.to_delete or arguments.dry_run:
        print("nothing to delete" if not plan.to_delete else "dry run: nothing was deleted")
        return 0
    if not arguments.yes and not _agreed(len(plan.to_delete)):
        print("nothing was deleted")
        return 1
    pruned = prune(plan)
    steps = ", ".join(str(checkpoint.step) for checkpoint in pruned)
    print(
        f"deleted {readable_bytes(sum(checkpoint.bytes for checkpoint in pruned))} of steps {steps}"
    )
    for checkpoint in plan.to_delete:
        if checkpoint not in pruned:
            print(f"kept step {checkpoint.step}: it was given an alias meanwhile")
    return 0


def _show(plan: Plan) -> None:
    from mlflow_scalpel.units import readable_bytes

    print(f"run {plan.run_id}")
    for kept in plan.to_keep:
        print(f"  keep    step {kept.step:<7} {', '.join(kept.reasons)}")
    for checkpoint in plan.to_delete:
        begun = "  (an earlier prune was cut off here)" if checkpoint.begun else ""
        print(f"  delete  step {checkpoint.step:<7} {readable_bytes(checkpoint.bytes)}{begun}")
    if plan.to_delete:
        print(
            f"{readable_bytes(plan.bytes)} ({plan.bytes} bytes) in "
            f"{len(plan.to_delete)} checkpoint(s)"
        )
    if plan.bytes_free != plan.bytes:
        print(
            f"only {readable_bytes(plan.bytes_free)} ({plan.bytes_free} bytes) become free: the "
            "other files have further hard links, such as in the trainer's output directory, and "
            "are free once these are deleted too"
        )


def _agreed(count: int) -> bool:
    if not sys.stdin.isatty():
        raise ScalpelError(
            "there is no terminal to ask at whether to delete them; give --yes to agree, or "
            "--dry-run to only look"
        )
    return input(f"delete the files of {count} checkpoint(s) for ever? [y/N] ").lower() in (
        "y",
        "yes",
    )
