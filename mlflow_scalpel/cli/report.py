"""Write the report of one or more runs, an HTML file that works offline."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "mlflow-scalpel report RUN_ID RUN_ID --out report.html --figures figures/"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run ID, also of an imported run")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="HTML file to write"
    )
    parser.add_argument(
        "--figures",
        type=Path,
        metavar="FOLDER",
        help="write each figure as HTML too, with its numbers as CSV beside it, and as PNG where a "
        "browser is found",
    )
    parser.add_argument("--title", help="title of the report (default: the names of the runs)")


def run(arguments: argparse.Namespace) -> int:
    """Gather the runs' tables, and write the report."""
    from mlflow_scalpel.comparison.gather import gather
    from mlflow_scalpel.comparison.run_store import describe_runs, stored_ledger
    from mlflow_scalpel.errors import ScalpelError
    from mlflow_scalpel.views.report.files import write_figures
    from mlflow_scalpel.views.report.report import write_report

    if arguments.out.suffix not in (".html", ".htm"):
        raise ScalpelError(f"--out {arguments.out}: give a file that ends in .html")
    ids = list(dict.fromkeys(arguments.runs))
    notes: list[str] = []
    table, runs = gather(ids, notes), describe_runs(ids)
    title = arguments.title or ", ".join(str(name) for name in runs["name"])
    ledgers = {run_id: stored_ledger(run_id) for run_id in ids}
    try:
        path = write_report(table, runs, arguments.out, title=title, notes=notes, ledgers=ledgers)
        print(f"report: {path.resolve()}")
        if arguments.figures is not None:
            written, no_png = write_figures(table, runs, arguments.figures)
            print(f"{len(written)} files in {arguments.figures.resolve()}")
            if no_png:
                print(no_png)
    except OSError as error:
        raise ScalpelError(f"{error.filename}: cannot be written ({error.strerror})") from error
    return 0
