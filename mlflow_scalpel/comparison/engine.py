"""Measures checkpoints against their base."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import pandas as pd

from mlflow_scalpel.checkpoints.models.opening import one_line_errors
from mlflow_scalpel.comparison.forward.attention import AttentionShift
from mlflow_scalpel.comparison.forward.divergence import FLOOR, Divergence, named, token_table
from mlflow_scalpel.comparison.forward.divergence_variants import (
    PaperDivergence,
    SampledDivergence,
    Sampling,
)
from mlflow_scalpel.comparison.forward.model import ForwardModel
from mlflow_scalpel.comparison.forward.probes import Probe
from mlflow_scalpel.comparison.measured_models import MeasuredModel, model_cells
from mlflow_scalpel.comparison.results import (
    keep_rows,
    keep_tokens,
    kept_rows,
    kept_tokens,
    key_of,
)
from mlflow_scalpel.comparison.runner import (
    MERGE_DTYPE,
    Bars,
    Runner,
    failed_rows,
    load_or_refuse,
    why_not,
)
from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.comparison.weights.matrices import GROUPS
from mlflow_scalpel.comparison.weights.rows import rows_from_weights
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.registry import Metric, all_metrics, choose_metrics
from mlflow_scalpel.remote_code import refused

STANDARD = ("weights", "kl/all_tokens", "kl/answer_tokens")
"""Measured unless others are named: they cost one read of the weights and one forward pass."""

FROM_WEIGHTS = (*GROUPS, "pairs")
"""Groups of metrics that require the weights alone; `rows_from_weights` computes them."""


@dataclass(frozen=True)
class TextGroup:
    """How a group of metrics that requires texts is computed."""

    open: Callable[[ForwardModel, list[Probe], Comparison], Runner]
    """Makes what runs texts through a model, which is the base at first."""
    dtype: str | None = None
    """Of the forward passes; None is that of the comparison."""
    sampled: bool = False
    """Whether the values depend on how the base's answers are sampled."""


TEXT_GROUPS = {
    "attention": TextGroup(lambda model, probes, _: AttentionShift(model, probes)),
    "kl": TextGroup(lambda model, probes, _: Divergence(model, probes)),
    "kl_paper_compat": TextGroup(
        lambda model, probes, _: PaperDivergence(model, probes), dtype="bfloat16"
    ),
    "kl_on_base_samples": TextGroup(
        lambda model, probes, comparison: SampledDivergence(
            model, probes, comparison.sampling, base_digest=comparison.base_digest
        ),
        sampled=True,
    ),
}
"""The groups that require texts, in the order in which they are measured."""

Rows = list[dict[str, Any]]


class Comparison:
    """One base against many checkpoints; what is needed of the base is computed once."""

    def __init__(
        self,
        base: MeasuredModel,
        probes: Sequence[Probe],
        metrics: Iterable[str] = STANDARD,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        cache: bool = False,
        progress: bool = False,
        sampling: Sampling | None = None,
        token_tables: bool = False,
    ) -> None:
        """Prepare to measure; nothing is read before `measure`.

        Args:
            base: the model that everything is compared with.
            probes: texts for `TEXT_GROUPS`; without any they are left out.
            metrics: names of metrics or groups; KL that is not in float32 brings its noise floor.
            dtype: of the forward passes.
            cache: keep results on this machine, and take what is kept.
            progress: show bars on a terminal.
            sampling: how the base's own answers are sampled.
            token_tables: keep in `tokens` what `token_table` gives for each checkpoint whose KL is
                measured.

        Raises:
            ScalpelError: a name is neither a metric nor a group.
        """
        self.base = base
        self.probes = list(probes)
        chosen = choose_metrics(metrics)
        if dtype != "float32":
            # A KL says nothing without the noise that its dtype puts under it.
            asked = {(one.group, one.name.rsplit("/", 1)[1]) for one in chosen}
            floors = [
                one.name
                for one in all_metrics()
                if FLOOR in one.name and (one.group, one.name.rsplit("/", 1)[1]) in asked
            ]
            chosen = choose_metrics([*(one.name for one in chosen), *floors])
        self._weights = [one for one in chosen if one.group in FROM_WEIGHTS]
        self._on_texts = {
            group: found
            for group in (TEXT_GROUPS if probes else ())
            if (found := [one for one in chosen if one.group == group])
        }
        self._dtype, self._device, self._cache = dtype, device, cache
        self.sampling: Sampling = sampling or Sampling()
        """How the base's own answers are sampled."""
        self.base_digest: str | None = base.digest if cache else None
        """Under which what is made of the base alone may be kept; None where nothing is."""
        self._bars = Bars(progress)
        self._token_tables = token_tables
        self.tokens: dict[MeasuredModel, pd.DataFrame] = {}
        """Tables of tokens of the checkpoints that `measure` measured last."""
        self._models: dict[str, ForwardModel | ScalpelError] = {}
        self._runners: dict[str, Runner] = {}

    def measure(self, *checkpoints: MeasuredModel, without: Collection[str] = ()) -> pd.DataFrame:
        """The tidy table of the chosen metrics, of one checkpoint after the other.

        What cannot be measured is a row that says why. `without` names groups to leave out.
        """
        found = rows_from_weights(
            self.base,
            checkpoints,
            [one for one in self._weights if one.group not in without],
            cache=self._cache,
            bars=self._bars,
            device=self._device,
        )
        self.tokens = {}
        for group, metrics in self._on_texts.items():
            if group in without:
                continue
            settings = self._settings(TEXT_GROUPS[group])
            keys = [key_of(self.base, one, metrics, settings) for one in checkpoints]
            kept = [self._kept(key, one, group) for key, one in zip(keys, checkpoints, strict=True)]
            new = [index for index, rows in enumerate(kept) if rows is None]
            measured = self._forward(group, [checkpoints[index] for index in new]) if new else []
            for index, fresh in zip(new, measured, strict=True):
                kept[index] = fresh
                if self._cache:
                    keep_rows(keys[index], tidy(fresh))
                    if group == "kl" and checkpoints[index] in self.tokens:
                        keep_tokens(keys[index], self.tokens[checkpoints[index]])
            for index, rows in enumerate(kept):
                found[index] += rows or []
        self.tokens = {
            one: named(table, one.model_id, one.step) for one, table in self.tokens.items()
        }
        return tidy(
            {**row, **model_cells(self.base, one)}
            for one, rows in zip(checkpoints, found, strict=True)
            for row in rows
        )

    def _settings(self, group: TextGroup) -> list[Any]:
        """All that a group's values depend on beside the models."""
        settings: list[Any] = [[probe.texts for probe in self.probes]]
        if group.dtype is None:
            settings.append(self._dtype)
        return settings + (list(astuple(self.sampling)) if group.sampled else [])

    def _forward(self, group: str, checkpoints: list[MeasuredModel]) -> list[Rows]:
        """Rows of a group that runs texts; all groups of one dtype share one model.

        Whatever fails while a model is opened or run is a row with its reason: of all checkpoints
        where it is the base's, of one where it is that checkpoint's.
        """
        how, metrics = TEXT_GROUPS[group], self._on_texts[group]
        dtype = how.dtype or self._dtype
        probes = [probe for probe in self.probes if probe.items]
        left_out = [
            row
            for probe in self.probes
            for status, reason in [
                *([("not measured", probe.failure)] if probe.failure else []),
                *(("too long", reason) for reason in probe.left_out),
            ]
            for row in failed_rows(metrics, [probe], dtype, status, reason)
        ]
        if not probes:
            return [left_out for _ in checkpoints]
        if group not in self._runners:
            try:
                with one_line_errors():
                    self._runners[group] = how.open(self._model(dtype), probes, self)
            except ScalpelError as error:
                status, reason = why_not(error, group)
                status = status.replace("comparable", "measured")  # it is the base alone
                failed = failed_rows(metrics, probes, dtype, status, reason)
                return [failed + left_out for _ in checkpoints]
        runner, found = self._runners[group], []
        count = sum(len(probe.items) for probe in probes)
        with self._bars.open(group, count * len(checkpoints), "texts") as progress:
            for one in checkpoints:
                found.append(self._measured(runner, metrics, one, dtype, progress) + left_out)
        return found

    def _measured(
        self,
        runner: Runner,
        metrics: list[Metric],
        checkpoint: MeasuredModel,
        dtype: str,
        progress: Callable[[int], object] | None,
    ) -> Rows:
        group = metrics[0].group
        refused = load_or_refuse(self._model(dtype), checkpoint, group, runner.probes)
        if refused is not None:
            return failed_rows(metrics, runner.probes, dtype, *refused)
        try:
            with one_line_errors():
                rows = list(runner.rows(metrics, progress))
                if self._token_tables and isinstance(runner, Divergence):
                    self.tokens[checkpoint] = token_table(runner.last, self._tokenizer())
        except ScalpelError as error:
            return failed_rows(metrics, runner.probes, dtype, *why_not(error, group))
        return rows

    def _model(self, dtype: str) -> ForwardModel:
        """The base's model in a dtype, opened once; what kept it from being opened is kept too."""
        if dtype not in self._models:
            try:
                with one_line_errors():
                    self._models[dtype] = ForwardModel(
                        self.base.complete(MERGE_DTYPE), dtype=dtype, device=self._device
                    )
            except ScalpelError as error:
                # Without its traceback, which would hold on to what was opened of the model.
                self._models[dtype] = type(error)(str(error))
        found = self._models[dtype]
        if isinstance(found, ScalpelError):
            raise found
        return found

    def _kept(self, key: str, checkpoint: MeasuredModel, group: str) -> Rows | None:
        """The kept rows of a checkpoint, if any; its table of tokens goes to `tokens`."""
        if not self._cache:
            return None
        rows = kept_rows(key)
        if group == "kl" and self._token_tables and rows is not None:
            tokens = kept_tokens(key)
            if tokens is None and any(row["status"] == "ok" for row in rows):
                return None
            if tokens is not None:
                self.tokens[checkpoint] = tokens
        return rows

    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        complete = self.base.complete(MERGE_DTYPE)
        with refused(complete):
            return AutoTokenizer.from_pretrained(
                complete, trust_remote_code=False, local_files_only=True
            )
