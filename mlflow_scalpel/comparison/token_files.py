"""Files of the tables of single tokens (tokens.py makes them); imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import pandas as pd

from mlflow_scalpel.comparison.parquet import read_bounded

DTYPES = {
    "model_id": "string",
    "step": "Int64",
    "texts": "string",  # as in the tidy table
    "problem": "Int64",  # its number in the texts, from 0
    "position": "Int64",  # in the text, from 0
    "token": "string",  # what follows there
    "token_id": "Int64",
    "answer": "bool",  # whether the token is of the answer
    "kl": "Float64",  # KL(base || checkpoint) in nats, as are reverse and base_entropy
    "reverse": "Float64",
    "base_entropy": "Float64",
    "rank": "Int64",  # 1 for the largest KL over all texts; null beyond 200
    "context": "string",  # the last 160 characters before the token; ranked tokens only
    "base_top": "object",  # the 5 most likely tokens as texts, and their probabilities
    "checkpoint_top": "object",
    "base_top_p": "object",
    "checkpoint_top_p": "object",
    "right_p_base": "Float64",  # probability of the token that follows
    "right_p_checkpoint": "Float64",
}


def artifact_name(step: int) -> str:
    """Name of a step's table in the run's folder `scalpel/tokens`."""
    return f"step-{step:06d}.parquet"


def write_tokens(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as Parquet."""
    table.to_parquet(path, index=False)
    return path


def read_tokens(path: str | Path | IO[bytes]) -> pd.DataFrame:
    """Read a table that `write_tokens` wrote; raises ScalpelError as `read_table` does."""
    table = read_bounded(path, DTYPES)
    for name, dtype in DTYPES.items():
        if dtype == "object":
            table[name] = [[] if values is None else list(values) for values in table[name]]
    return table
