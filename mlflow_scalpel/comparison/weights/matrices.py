"""The metrics of a pair of matrices, or of two updates of one, as rows."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlflow_scalpel.comparison.table import metric_cells
from mlflow_scalpel.metrics.compiling import compiled
from mlflow_scalpel.metrics.histograms import Bin, count_added_changes, count_changes, row_counts
from mlflow_scalpel.metrics.pairs import count_pair
from mlflow_scalpel.metrics.registry import Metric
from mlflow_scalpel.metrics.spectra import Spectra, needed, prepare, singular_values
from mlflow_scalpel.metrics.update_sums import (
    COMPILED_FROM,
    UpdateSums,
    added_update_sums,
    row_sums,
    untouched_sums,
    update_alone_sums,
    update_sums,
)
from mlflow_scalpel.metrics.weights import NotKnown, Training
from mlflow_scalpel.tensors.updates import Added, Untouched

GROUPS = ("weights", "histograms", "spectra", "weights_paper_compat")
"""The groups whose metrics are of a pair of matrices: one pass over the files gives them all."""
NOT_TRAINED = "the adapter does not touch this tensor: it is the base's"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Row = dict[str, Any]


class Update(NamedTuple):
    """A checkpoint's state of a matrix, and what is asked of it."""

    wt: Tensor | Added | Untouched
    training: Training
    metrics: Sequence[Metric]


class MatrixMetrics:
    """Computes the metrics of one matrix after another.

    Args:
        metrics: all that will be asked for.
        elements: how many all pairs hold: compiling is worth its time from `COMPILED_FROM` on.
        device: where the singular values are computed.
    """

    def __init__(self, metrics: Sequence[Metric], elements: int, device: str = "cpu") -> None:
        worth = elements >= COMPILED_FROM
        self._row_sums = compiled(row_sums) if worth and _of("weights", metrics) else row_sums
        self._counts = compiled(row_counts) if worth and _of("histograms", metrics) else None
        self._device = device
        # A GPU takes one matrix at a time.
        spectra = _of("spectra", metrics) if device == "cpu" else []
        self._prepared = needed(one.function for one in spectra)

    def rows(self, w0: Tensor, updates: Sequence[Update]) -> Iterator[Iterator[Row]]:
        """The rows of each update of W_0, in their order; what they share is computed once."""
        summed = [
            at
            for at, one in enumerate(updates)
            if _of("weights", one.metrics)
            and isinstance(one.wt, Tensor)
            and _why_not_floats(w0, one.wt) is None
        ]
        stored = [wt for at in summed if isinstance(wt := updates[at].wt, Tensor)]
        of_update = dict(zip(summed, update_sums(w0, *stored, rows=self._row_sums), strict=True))
        values = functools.cache(lambda: singular_values(w0, device=self._device))
        spectra = [
            Spectra(w0, w0 if isinstance(one.wt, Untouched) else one.wt, values, self._device)
            for one in updates
            if w0.ndim == 2
        ]
        step = torch.get_num_threads()
        for at, one in enumerate(updates):
            if at % step == 0 and self._prepared:
                # W_0's are known after the first time.
                names = self._prepared - {"base"} if at else self._prepared
                prepare(
                    [
                        values
                        for values, other in zip(
                            spectra[at:], updates[at : at + step], strict=False
                        )
                        if _of("spectra", other.metrics) and _needs_base(w0, other.wt)
                    ],
                    names,
                )
            yield self._rows(w0, one, of_update.get(at), spectra[at] if spectra else None)

    def _rows(
        self, w0: Tensor, update: Update, sums: UpdateSums | None, spectra: Spectra | None
    ) -> Iterator[Row]:
        wt, training, metrics = update
        if isinstance(wt, Untouched):
            yield from _untouched(w0.ndim, update)
            return
        if isinstance(wt, Added) and wt.alone:
            yield from _update_alone(wt, training, metrics)
            return
        if reason := _why_not_floats(w0, wt):
            yield from failed(metrics, "not comparable", reason)
            return
        if isinstance(wt, Added) and _of("weights", metrics):
            sums = added_update_sums(w0, wt)
        if sums is not None:
            yield from _single(_of("weights", metrics), lambda one: one.function(sums, training))
        if chosen := _of("histograms", metrics):
            changes = (
                count_added_changes(w0, wt)
                if isinstance(wt, Added)
                else count_changes(w0, wt, self._counts)
            )
            yield from _binned(chosen, lambda one: one.function(changes))
        if spectra is not None:  # vectors have none
            for metric in _of("spectra", metrics):
                try:
                    yield {**metric_cells(metric), "value": metric.function(spectra)}
                except ValueError as error:
                    yield from failed([metric], "not finite", str(error))
        if chosen := _of("weights_paper_compat", metrics):
            after = wt.whole(w0) if isinstance(wt, Added) else wt
            yield from _single(chosen, lambda one: one.function(w0, after))


def _needs_base(w0: Tensor, wt: Tensor | Added | Untouched) -> bool:
    """Whether its rows are made of W_0 too, and can be."""
    if isinstance(wt, Untouched) or (isinstance(wt, Added) and wt.alone):
        return False
    return _why_not_floats(w0, wt) is None


def _untouched(ndim: int, update: Update) -> Iterator[Row]:
    """Rows of a matrix that training left out: what is 0 of an update that is 0, or 1 unchanged.

    Nothing is read. What has no value for no update (a rank) has none here either.
    """
    known = {"status": "not trained", "reason": NOT_TRAINED}
    sums, training = untouched_sums(), update.training
    for row in _single(_of("weights", update.metrics), lambda m: m.function(sums, training)):
        yield {**row, **known}
    one = torch.ones(1, 1, dtype=torch.float64)
    for metric in _of("spectra", update.metrics) if ndim == 2 else []:
        value = metric.function(Spectra(one, one, lambda: one[0]))
        yield {**metric_cells(metric), **known, **({"value": value} if value == value else {})}
    for group in ("histograms", "weights_paper_compat"):
        for metric in _of(group, update.metrics):
            yield {**metric_cells(metric), **known, "value": 0.0}


def _update_alone(wt: Added, training: Training, metrics: Sequence[Metric]) -> Iterator[Row]:
    """Rows of an update of a matrix that is not known: what depends on the matrix says so."""
    reason = "the base's weights are quantised, so that only the update itself is known"
    sums = update_alone_sums(wt)
    spectra = Spectra(wt.start, wt, lambda: torch.zeros(min(wt.shape), dtype=torch.float64))
    for metric in metrics:
        value = None
        if metric.group == "weights":
            with contextlib.suppress(NotKnown):
                value = metric.function(sums, training)
        elif metric.group == "spectra":
            with contextlib.suppress(ValueError):
                value = metric.function(spectra)
        if value is None or value != value:
            yield from failed([metric], "not comparable", reason)
        else:
            yield {**metric_cells(metric), "value": value}


def _of(group: str, metrics: Sequence[Metric]) -> list[Metric]:
    return [one for one in metrics if one.group == group]


def pair_rows(
    metrics: Sequence[Metric],
    w0: Tensor,
    wa: Tensor | Added | Untouched,
    wb: Tensor | Added | Untouched,
) -> Iterator[Row]:
    """Rows of the metrics of the group `pairs` of two checkpoints' W_a and W_b from one W_0."""
    if isinstance(wa, Untouched) or isinstance(wb, Untouched):
        yield from failed(metrics, "not trained", NOT_TRAINED)
        return
    alone = any(isinstance(one, Added) and one.alone for one in (wa, wb))
    if reason := "the base's weights are quantised" if alone else _why_not_floats(w0, wa, wb):
        yield from failed(metrics, "not comparable", reason)
        return
    paired = count_pair(w0, wa, wb)
    yield from _binned(metrics, lambda one: one.function(paired))


def failed(metrics: Iterable[Metric], status: str, reason: str) -> Iterator[Row]:
    """A row without a value for each metric, with its reason."""
    for one in metrics:
        yield {**metric_cells(one), "status": status, "reason": reason}


def _single(metrics: Sequence[Metric], compute: Callable[[Metric], float | None]) -> Iterator[Row]:
    for one in metrics:
        try:
            value = compute(one)
        except NotKnown as error:
            yield from failed([one], "not known", str(error))
            continue
        if value is not None:  # None: the metric does not apply here
            yield {**metric_cells(one), "value": value}


def _binned(metrics: Sequence[Metric], compute: Callable[[Metric], list[Bin]]) -> Iterator[Row]:
    for one in metrics:
        for found in compute(one):
            row = {**metric_cells(one), "bin": found.bin, "n": found.n}
            if found.bad:
                reason = f"{found.bad} of {found.n} elements are NaN or infinite, and in no bin"
                yield {**row, "status": "not finite", "reason": reason}
            else:
                yield {**row, "value": found.value}


def _why_not_floats(*matrices: Tensor | Added) -> str | None:
    """Why these cannot be computed with (codes of quantised weights); None where they can."""
    stored = [one.start if isinstance(one, Added) else one for one in matrices]
    odd = [matrix.dtype for matrix in stored if matrix.dtype not in _FLOATS]
    return f"{odd[0]} is not one of {', '.join(map(str, _FLOATS))}" if odd else None
