"""Seconds to write a comparison's table and summary to MLflow, and to read them back.

    python benchmarks/store.py --checkpoints 20 --matrices 224 --metrics 10

Random values in a table of the shape that the group `weights` gives for a model of 32 layers of 7
matrices; through a real `mlflow server` on SQLite, on this machine. Each round writes to a run of
its own; the first round, with its imports and connections, does not count. The last way, one
value after the other by MLflow's own `log_metric`, is measured on a part of the values and scaled.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"

import machine
import mlflow
import numpy as np
import pandas as pd

from mlflow_scalpel.comparison.run_store import log_summary, log_table, stored_table
from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.metrics import all_metrics

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.servers import Server

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SINGLY = 100  # values that are logged one at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--matrices", type=int, default=224)
    parser.add_argument("--metrics", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="the table shows the median")
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, default=Path("store.json"))
    arguments = parser.parse_args()
    result: dict[str, Any] = {"machine": machine.describe(arguments.workdir)}
    table = random_table(arguments.checkpoints, arguments.matrices, arguments.metrics)
    result["values"] = len(table)
    with tempfile.TemporaryDirectory(dir=arguments.workdir, prefix="benchmark-") as name:
        server = Server(Path(name))
        server.start()
        try:
            mlflow.set_tracking_uri(server.uri)
            mlflow.set_experiment("benchmark")
            result["rows"] = measure(table, arguments.rounds)
        finally:
            server.stop()
    print(shown(result["rows"], len(table)))
    machine.write(arguments.json, result)


def random_table(checkpoints: int, matrices: int, metrics: int) -> pd.DataFrame:
    """A tidy table of so many checkpoints, matrices and metrics."""
    rng = np.random.default_rng(0)
    names = [(one.name, one.unit) for one in all_metrics() if one.group == "weights"]
    names += [(f"weights/more_{number}", "RMS") for number in range(metrics)]
    places = [(n // len(MATRICES), MATRICES[n % len(MATRICES)]) for n in range(matrices)]
    about = {
        "base": "m-base",
        "base_digest": "sha256:" + "0" * 64,
        "run_id": "0" * 32,
        "algorithm": "sft",
        "metric_version": 1,
        "dtype": "bfloat16",
    }
    return tidy(
        {
            **about,
            "model_id": f"checkpoint-{step}",
            "model_digest": f"sha256:{step:064}",
            "step": step,
            "metric": metric,
            "unit": unit,
            "layer": layer,
            "matrix": matrix,
            "value": rng.random(),
            "n": 1 << 22,
        }
        for step in range(1, checkpoints + 1)
        for layer, matrix in places
        for metric, unit in names[:metrics]
    )


def measure(table: pd.DataFrame, rounds: int) -> list[dict[str, Any]]:
    """Seconds of each way, in every round but the first."""
    ways = ("log_table and log_summary", "stored_table", "log_metric, a value at a time")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        with mlflow.start_run() as run:
            found = [timed(one, table, run.info.run_id) for one in (write, check, write_singly)]
        found[2] *= len(table) / min(SINGLY, len(table))
        for way, took in zip(ways, found, strict=True):
            if number:
                seconds[way].append(took)
    return [{"way": way, "seconds": took} for way, took in seconds.items()]


def timed(call: Callable[[pd.DataFrame, str], object], table: pd.DataFrame, run_id: str) -> float:
    begin = time.perf_counter()
    call(table, run_id)
    return time.perf_counter() - begin


def write(table: pd.DataFrame, run_id: str) -> None:
    log_table(table, run_id)
    log_summary(table, run_id)


def check(table: pd.DataFrame, run_id: str) -> None:
    found = stored_table(run_id)
    if found is None or len(found) != len(table) or dict(found.dtypes) != dict(table.dtypes):
        raise RuntimeError("what was read back is not what was written")


def write_singly(table: pd.DataFrame, run_id: str) -> None:
    for row in table.head(SINGLY).itertuples():
        name = f"{row.metric}/{row.layer}/{row.matrix}"
        mlflow.log_metric(name, row.value, step=row.step, run_id=run_id)


def shown(rows: list[dict[str, Any]], values: int) -> str:
    lines = ["| way | s | values a second |", "| --- | --- | --- |"]
    for row in rows:
        median = statistics.median(row["seconds"])
        lines.append(f"| {row['way']} | {median:.2f} | {values / median:,.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
