"""List logged checkpoints as a table, CSV or JSON."""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import shutil
import sys
from typing import TYPE_CHECKING, Any

from mlflow_scalpel.errors import ScalpelError

if TYPE_CHECKING:
    import pandas as pd

EXAMPLE = """\
mlflow-scalpel checkpoints --experiment scalpel-demo
mlflow-scalpel checkpoints --run-id RUN_ID --metrics "eval/*" --format csv
"""

WIDTH = 100  # characters, where there is no terminal to ask
# What the table shows, and in which order columns give way where the lines would be too long.
SHOWN = ["run_name", "run", "algorithm", "step", "state", "bytes", "version", "aliases", "uri"]
GIVE_WAY = ["aliases", "version", "algorithm", "bytes", "run", "state"]
_NARROWEST = 8  # characters that are left of a run's name
_GAP = "  "


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--experiment", metavar="E", help="name or ID of the experiment (default: the active one)"
    )
    parser.add_argument("--run-id", nargs="+", action="extend", metavar="R", help="only these runs")
    parser.add_argument("--model", metavar="M", help="only versions of this registered model")
    parser.add_argument(
        "--format", choices=["table", "csv", "json"], default="table", help="(default: table)"
    )
    parser.add_argument("--columns", metavar="A,B,...", help="columns to show, in this order")
    parser.add_argument(
        "--metrics",
        metavar="PATTERN",
        help='metrics to show, such as "eval/*" (default: none in a table, all in csv and json)',
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the checkpoints that the arguments choose."""
    from mlflow_scalpel.checkpoints.listing import COLUMNS, list_checkpoints

    found = list_checkpoints(arguments.experiment, arguments.run_id, arguments.model)
    metrics = [column for column in found.columns if column not in COLUMNS]
    if arguments.metrics is not None:
        chosen = fnmatch.filter(metrics, arguments.metrics)
        if not chosen and len(found):
            raise ScalpelError(
                f"--metrics {arguments.metrics!r}: these checkpoints have no such metric; "
                f"there are {', '.join(metrics) or 'none'}"
            )
        metrics = chosen
    if not len(found):
        print(f"no checkpoint found {_where(arguments)}", file=sys.stderr)
    if arguments.format == "table":
        if arguments.columns is None:
            shown = _fitting(found, metrics if arguments.metrics is not None else [])
        else:
            shown = _texts(found[_chosen(arguments.columns, found)])
        if len(found):
            print("\n".join(_lines(shown)))
            _print_reasons(found)
        return 0
    columns = [*COLUMNS, *metrics]
    if arguments.columns is not None:
        columns = _chosen(arguments.columns, found)
    if arguments.format == "csv":
        found[columns].to_csv(sys.stdout, index=False, date_format="%Y-%m-%dT%H:%M:%S.%fZ")
    else:
        records = [
            {column: _plain(value) for column, value in row.items()}
            for row in found[columns].to_dict("records")
        ]
        print(json.dumps(records, indent=1, allow_nan=False))
    return 0


def _chosen(columns: str, found: pd.DataFrame) -> list[str]:
    names = [name.strip() for name in columns.split(",")]
    if unknown := [name for name in names if name not in found.columns]:
        raise ScalpelError(
            f"--columns {', '.join(unknown)}: there is no such column; there are "
            f"{', '.join(found.columns)}"
        )
    return names


def _where(arguments: argparse.Namespace) -> str:
    import mlflow

    searched = [
        f"of {what} {value}"
        for what, value in (
            ("the experiment", arguments.experiment),
            ("the run", arguments.run_id and ", ".join(arguments.run_id)),
            ("the registered model", arguments.model),
        )
        if value
    ] or ["of the active experiment (choose one with --experiment or MLFLOW_EXPERIMENT_NAME)"]
    return f"{' '.join(searched)} at {mlflow.get_tracking_uri()}"


def _plain(value: Any) -> Any:
    """A value as JSON knows it: null for what is missing or no finite number, ISO times."""
    import pandas as pd

    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value.isoformat() if isinstance(value, pd.Timestamp) else value


def _texts(found: pd.DataFrame) -> dict[str, list[str]]:
    return {str(name): [_text(str(name), value) for value in found[name]] for name in found.columns}


def _text(column: str, value: Any) -> str:
    import pandas as pd

    from mlflow_scalpel.units import readable_bytes

    if value is None or value is pd.NA or value != value:
        return "-"
    if column == "bytes":
        return readable_bytes(int(value))
    if isinstance(value, pd.Timestamp):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _fitting(found: pd.DataFrame, metrics: list[str]) -> dict[str, list[str]]:
    """The columns that fit beside each other: runs' names are cut first, then columns left out."""
    width = shutil.get_terminal_size((WIDTH, 24)).columns
    # Our own aliases end in the run's ID, which is too long to be told twice.
    short = [
        aliases.replace(f"-{run_id}", "")
        for aliases, run_id in zip(found["aliases"], found["run_id"], strict=True)
    ]
    # Runs of one recipe share their name; the first digits of their IDs tell them apart.
    begun = found["run_id"].str[:8]
    shown = _texts(found.assign(aliases=short, run=begun)[[*SHOWN, *metrics]])
    if not any(found["aliases"]):
        del shown["aliases"]
    for column in [None, *GIVE_WAY]:
        if column is not None:
            shown.pop(column, None)
        others = [_wide(name, texts) for name, texts in shown.items() if name != "run_name"]
        room = width - sum(others) - len(others) * len(_GAP)
        if room >= min(_NARROWEST, _wide("run_name", shown["run_name"])):
            break
    longest = max(room, _NARROWEST)
    shown["run_name"] = [
        name if len(name) <= longest else f"{name[: longest - 1]}…" for name in shown["run_name"]
    ]
    return shown


def _wide(name: str, texts: list[str]) -> int:
    return max(len(name), *(len(text) for text in texts)) if texts else len(name)


def _lines(shown: dict[str, list[str]]) -> list[str]:
    widths = [_wide(name, texts) for name, texts in shown.items()]
    rows = [list(shown), *zip(*shown.values(), strict=True)]
    return [
        _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _print_reasons(found: pd.DataFrame) -> None:
    for row in found[found["state"] == "FAILED"].itertuples():
        print(f"step {row.step} of run {row.run_name or row.run_id}: {row.reason}")
    # One line for all checkpoints of a run with the same note.
    for (run, note), rows in found.dropna(subset=["note"]).groupby(["run_id", "note"], sort=False):
        steps = ", ".join(str(step) for step in rows["step"])
        print(f"note on step {steps} of run {rows['run_name'].iloc[0] or run}: {note}")
