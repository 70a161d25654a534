"""Measures checkpoints against their base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from mlflow_scalpel.comparison.divergence import Divergence, failed_rows
from mlflow_scalpel.comparison.probes import Probe, other_tokenizer
from mlflow_scalpel.comparison.progress import Bars
from mlflow_scalpel.comparison.results import keep_rows, kept_rows, key_of
from mlflow_scalpel.comparison.subjects import Subject
from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.comparison.weights import StoredWeights, weight_rows
from mlflow_scalpel.metrics.moments import Training
from mlflow_scalpel.metrics.registry import choose_metrics

STANDARD = ("weights", "kl/all_tokens", "kl/answer_tokens")
"""What is measured where nobody asks for more: it costs a read of the weights, and a forward."""

Rows = list[dict[str, Any]]


class Comparison:
    """One base against many checkpoints; what is needed of the base is computed once."""

    def __init__(
        self,
        base: Subject,
        probes: Sequence[Probe],
        metrics: Iterable[str] = STANDARD,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        others: bool = False,
        cache: bool = False,
        progress: bool = False,
    ) -> None:
        """Prepare to measure; nothing is read before `measure`.

        Args:
            base: the model that everything is compared with.
            probes: texts for the group `kl`; without any it is left out.
            metrics: names of metrics or groups.
            dtype: of the forward passes.
            others: weight metrics also of embeddings, norms, heads and biases.
            cache: keep results on this machine, and take what is kept.
            progress: show bars on a terminal.

        Raises:
            ScalpelError: a name is neither a metric nor a group.
        """
        self.base = base
        self.probes = list(probes)
        chosen = choose_metrics(metrics)
        self._weights = [one for one in chosen if one.group == "weights"]
        self._kl = [one for one in chosen if one.group == "kl" and probes]
        self._dtype, self._device, self._others, self._cache = dtype, device, others, cache
        self._bars = Bars(progress)
        self._divergence: Divergence | None = None

    def measure(self, *checkpoints: Subject) -> pd.DataFrame:
        """The tidy table of the chosen metrics, of one checkpoint after the other.

        What cannot be measured is a row that says why.
        """
        found: list[Rows] = [[] for _ in checkpoints]
        texts = [probe.texts for probe in self.probes]
        for metrics, measure, settings in (
            (self._weights, self._weight_rows, lambda one: [self._others, one.learning_rate_sum]),
            (self._kl, self._kl_rows, lambda one: [texts, self._dtype]),
        ):
            if not metrics:
                continue
            keys = [key_of(self.base, one, metrics, settings(one)) for one in checkpoints]
            kept = [kept_rows(key) if self._cache else None for key in keys]
            new = [index for index, rows in enumerate(kept) if rows is None]
            measured = measure([checkpoints[index] for index in new]) if new else []
            for index, fresh in zip(new, measured, strict=True):
                kept[index] = fresh
                if self._cache:
                    keep_rows(keys[index], tidy(fresh))
            for index, rows in enumerate(kept):
                found[index] += rows or []
        return tidy(
            {**row, **self._origin(one)}
            for one, rows in zip(checkpoints, found, strict=True)
            for row in rows
        )

    def _weight_rows(self, checkpoints: list[Subject]) -> list[Rows]:
        base = StoredWeights(self.base.directory)
        opened = [
            (StoredWeights(one.directory), Training(one.learning_rate_sum)) for one in checkpoints
        ]
        found: list[Rows] = [[] for _ in checkpoints]
        total = sum(weights.bytes(others=self._others) for weights, _ in opened)
        with self._bars.open("weights", total, "B") as progress:
            for index, row in weight_rows(
                base, opened, self._weights, others=self._others, progress=progress
            ):
                found[index].append(row)
        return found

    def _kl_rows(self, checkpoints: list[Subject]) -> list[Rows]:
        if self._divergence is None:
            self._divergence = Divergence(
                self.base.directory, self.probes, dtype=self._dtype, device=self._device
            )
        count = sum(len(probe.items) for probe in self.probes)
        with self._bars.open("kl", count * len(checkpoints), "texts") as progress:
            found = []
            for one in checkpoints:
                reason = other_tokenizer(self.base.directory, one.directory)
                if reason is None:
                    rows = self._divergence.rows(one.directory, self._kl, progress)
                else:
                    rows = failed_rows(self._kl, self.probes, self._dtype, "refused", reason)
                found.append(list(rows))
        return found

    def _origin(self, checkpoint: Subject) -> dict[str, Any]:
        return {
            "base": self.base.model_id,
            "base_digest": self.base.digest,
            "model_id": checkpoint.model_id,
            "model_digest": checkpoint.digest,
            "run_id": checkpoint.run_id,
            "algorithm": checkpoint.algorithm,
            "step": checkpoint.step,
        }
