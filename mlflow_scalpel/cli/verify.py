"""Check that stored checkpoints are complete, bit for bit.

The exit status is 0 if all of them are READY and match their manifests.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

EXAMPLE = """\
mlflow-scalpel verify RUN_ID
mlflow-scalpel verify models:/tiny-grpo/20
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "source",
        nargs="+",
        help="run ID (for its base and all its checkpoints), models:/ URI or runs:/RUN#step=N",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print a line a checkpoint, and what is wrong; 0 where all is right, 1 where it is not.

    A checkpoint that is FAILED or PENDING is none that one could use: it is not right either.
    """
    from mlflow_scalpel.checkpoints.verify import BAD, NOT_RIGHT, verify

    table = verify(*arguments.source, progress=sys.stderr.isatty())
    results = {}
    for (run_id, step, model_id), found in table.groupby(
        ["run_id", "step", "model_id"], sort=False, dropna=False
    ):
        bad = [result for result in found["result"] if result in BAD]
        results[model_id] = bad[0] if bad else found["result"].iloc[-1]
        print(f"step {step:<7} {results[model_id]:<10} {model_id}  run {run_id}")
        for row in found.dropna(subset="problem").itertuples():
            print(f"    {row.file + ': ' if isinstance(row.file, str) else ''}{row.problem}")
        for remedy in found["remedy"].dropna().unique():
            print(f"    -> {remedy}")
    counts = Counter(results.values())
    wrong = sum(count for result, count in counts.items() if result in NOT_RIGHT)
    told = ", ".join(f"{count} {result}" for result, count in counts.items())
    print(f"{len(results)} checkpoints ({told}), {wrong} of them not all right")
    return 1 if wrong else 0
