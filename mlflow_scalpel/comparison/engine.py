"""Measures checkpoints against their base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mlflow_scalpel.comparison.divergence import Divergence
from mlflow_scalpel.comparison.probes import Probe
from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.comparison.weights import StoredWeights, weight_rows
from mlflow_scalpel.metrics.moments import Training


@dataclass(frozen=True)
class Subject:
    """What is measured: one checkpoint, and where it comes from."""

    directory: Path
    model_id: str
    digest: str
    step: int
    run_id: str | None = None
    algorithm: str | None = None
    learning_rate_sum: float | None = None
    """Sum of the learning rates of all steps so far."""


class Comparison:
    """One base against many checkpoints; what is needed of the base is computed once."""

    def __init__(
        self, base: Subject, probes: list[Probe], *, dtype: str = "float32", device: str = "cpu"
    ) -> None:
        self.base = base
        self.probes = probes
        self._weights = StoredWeights(base.directory)
        self._divergence = (
            Divergence(base.directory, probes, dtype=dtype, device=device) if probes else None
        )

    def measure(self, checkpoint: Subject) -> pd.DataFrame:
        """The tidy table of every weight metric and of KL on every probe, of one checkpoint."""
        rows = list(
            weight_rows(
                self._weights,
                StoredWeights(checkpoint.directory),
                Training(checkpoint.learning_rate_sum),
            )
        )
        if self._divergence is not None:
            rows += self._divergence.rows(checkpoint.directory)
        origin = {
            "base": self.base.model_id,
            "base_digest": self.base.digest,
            "model_id": checkpoint.model_id,
            "model_digest": checkpoint.digest,
            "run_id": checkpoint.run_id,
            "algorithm": checkpoint.algorithm,
            "step": checkpoint.step,
        }
        return tidy({**origin, **row} for row in rows)
