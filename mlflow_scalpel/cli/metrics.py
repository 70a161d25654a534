"""List the metrics, or explain some of them."""

from __future__ import annotations

import argparse
import textwrap

EXAMPLE = """\
mlflow-scalpel metrics
mlflow-scalpel metrics kl weights/relative_frobenius
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="explain these metrics or groups in full"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print each metric with its unit and what it is."""
    from mlflow_scalpel.metrics import GROUPS, all_metrics, choose_metrics

    if arguments.names:
        for one in choose_metrics(arguments.names):
            print(f"{one.name} (version {one.version}), in {one.unit}\n")
            print(textwrap.indent(one.description, "    "), end="\n\n")
        return 0
    known = all_metrics()
    width = max(len(one.name) for one in known) + 2
    for group, read in GROUPS.items():
        found = [one for one in known if one.group == group]
        if not found:
            continue
        print(f"{group}: {read}")
        for one in found:
            print(f"  {one.name:{width}}{one.summary}")
        print()
    return 0
