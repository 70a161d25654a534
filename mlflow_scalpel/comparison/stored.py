"""What the runs of MLflow hold of comparisons, and how it is put together; imports no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import pandas as pd
from mlflow.entities import Run

TABLE = "scalpel/table.parquet"
SAMPLES = "scalpel/samples.parquet"
LEDGER = "scalpel/ledger.parquet"
TOKENS = "scalpel/tokens"  # folder of a table a step: step-000100.parquet
ARGUMENTS = "training_arguments.json"
EVALUATED_RUN_TAG = "scalpel.evaluated_run"

#: MLflow's filter for the finished runs of the stage that sets training runs side by side.
COMPARISONS_WHERE = "tags.`scalpel.stage` = 'compare' AND status = 'FINISHED'"

# Params that differ between any two runs and say nothing about what was done.
_UNTOLD = {"output_dir", "run_name", "logging_dir", "recipe", "set", "_name_or_path"}


def evaluations_where(run_id: str) -> str:
    """MLflow's filter for the finished evaluation runs of a training run."""
    return f"tags.`{EVALUATED_RUN_TAG}` = '{run_id}' AND status = 'FINISHED'"


def compared_by(run: Run) -> set[str]:
    """The IDs of the training runs that a run of the stage `compare` set side by side."""
    return {value for key, value in run.data.params.items() if re.fullmatch(r"run_\d+", key)}


def between(table: pd.DataFrame, run_ids: Collection[str]) -> pd.DataFrame:
    """The rows of the group `pairs` of which both checkpoints are of these runs."""
    pairs = table["metric"].str.startswith("pairs/") & table["run_id"].isin(run_ids)
    owners = dict(zip(table["model_id"], table["run_id"], strict=True))
    rows = table[pairs.fillna(False)]
    return rows[rows["other"].map(owners).isin(run_ids)]


def joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Tables of runs as one; of rows that measure the same thing, that of the first table stays.

    As in the views a row without a run is its model's, but for those of a base (step 0).
    """
    whole = pd.concat(tables, ignore_index=True)
    keys = ["step", "metric", "layer", "head", "other", "matrix", "bin", "texts"]
    unnamed = whole["run_id"].isna() & whole["step"].ne(0).fillna(True)
    owner = whole["run_id"].mask(unnamed, whole["model_id"])
    return whole[~whole[keys].assign(owner=owner).duplicated()].reset_index(drop=True)


def description(run: Run, arguments: Mapping[str, object]) -> dict[str, object]:
    """What a run was: its name, algorithm, learning_rate, steps, dtype, data and seed, then every

    parameter, and every count of its cost. `arguments` are its training arguments.
    """
    params, metrics = run.data.params, run.data.metrics
    known = {
        "name": run.info.run_name,
        "algorithm": params.get("algorithm", run.data.tags.get("scalpel.algorithm", "unknown")),
        "learning_rate": params.get("learning_rate"),
        "steps": params.get("max_steps"),
        "dtype": params.get("weights_dtype"),
        "data": params.get("data"),
        "seed": params.get("seed"),
    }
    told = {key: str(value) for key, value in arguments.items()} | params
    others = {key: value for key, value in told.items() if key not in _UNTOLD}
    counts = {key: f"{value:.6g}" for key, value in metrics.items() if key.startswith("cost/")}
    return known | {k: v for k, v in {**others, **counts}.items() if k not in known}
