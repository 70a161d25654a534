"""Rows of the metrics of weights alone: kept results, and one pass over the files for the others.

`rows_from_weights` decides what has to be measured, and `weight_rows` is the pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.comparison.results import keep_rows, kept_rows, key_of
from mlflow_scalpel.comparison.runner import Bars, Progress
from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.comparison.weights.files import AdaptedWeights, MergedWeights, StoredWeights
from mlflow_scalpel.comparison.weights.matrices import (
    GROUPS,
    MatrixMetrics,
    Update,
    failed,
    pair_rows,
)
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.registry import Metric
from mlflow_scalpel.metrics.weights import Training
from mlflow_scalpel.run_warnings import print_warning
from mlflow_scalpel.tensors.adapters import NotInFactors
from mlflow_scalpel.tensors.cuts import Cut
from mlflow_scalpel.tensors.files import holds_codes
from mlflow_scalpel.tensors.places import Place, in_order
from mlflow_scalpel.tensors.updates import Added, Untouched

LAYOUT = 2
"""Of the rows: raised where names of matrices, or how they are cut, change; then none is kept."""

Rows = list[dict[str, Any]]
Where = int | tuple[int, int]
"""Index of a checkpoint, or of both of a pair."""


def rows_from_weights(
    base: MeasuredModel,
    checkpoints: Sequence[MeasuredModel],
    metrics: Sequence[Metric],
    *,
    cache: bool,
    bars: Bars,
    device: str,
) -> list[Rows]:
    """Rows of the metrics that `weight_rows` computes, for each checkpoint.

    Each group of each checkpoint and pair is kept apart, so that asking for one more costs only
    that. Raises ScalpelError where `metrics` compare pairs and there is none.
    """
    pairs = pairs_of(checkpoints) if any(one.group == "pairs" for one in metrics) else []
    if not pairs and any(one.group == "pairs" for one in metrics):
        raise ScalpelError(
            f"metrics = pairs: compares two checkpoints of one base, and {len(checkpoints)} were "
            "given; name another one"
        )
    found: dict[tuple[Where, str], Rows] = {}
    keys: dict[tuple[Where, str], str] = {}
    for group in dict.fromkeys(one.group for one in metrics):
        of_group = [one for one in metrics if one.group == group]
        for where in pairs if group == "pairs" else range(len(checkpoints)):
            key = keys[where, group] = _key(base, checkpoints, of_group, where)
            kept = kept_rows(key) if cache else None
            if kept is not None:
                found[where, group] = kept
    new = [one for one in keys if one not in found]
    if new:
        fresh: dict[tuple[Where, str], Rows] = {one: [] for one in new}
        _measure(base, checkpoints, metrics, fresh, bars, device)
        for one, rows in fresh.items():
            if cache:
                keep_rows(keys[one], tidy(rows))
        found |= fresh
    gathered: list[Rows] = [[] for _ in checkpoints]
    for where, group in keys:
        if isinstance(where, int):
            gathered[where] += found[where, group]
        else:
            other = checkpoints[where[1]].model_id
            gathered[where[0]] += [{**row, "other": other} for row in found[where, group]]
    return gathered


def _key(
    base: MeasuredModel,
    checkpoints: Sequence[MeasuredModel],
    metrics: Sequence[Metric],
    where: Where,
) -> str:
    if isinstance(where, tuple):
        first, second = (checkpoints[index] for index in where)
        return key_of(base, first, metrics, [LAYOUT, second.digest])
    rates = checkpoints[where].learning_rate_sum if metrics[0].group == "weights" else None
    return key_of(base, checkpoints[where], metrics, [LAYOUT, rates])


def _weights_of(checkpoint: MeasuredModel, compared: Path) -> StoredWeights:
    """A checkpoint's tensors: an adapter's updates as its factors say where they can."""
    if checkpoint.problem is not None:
        raise ScalpelError(checkpoint.problem)
    if checkpoint.adapted is None:
        return StoredWeights(checkpoint.directory, like=compared)
    start = checkpoint.adapted
    if holds_codes(start) and not holds_codes(compared):
        print_warning(
            "quantised_base",
            f"{checkpoint.directory}: was trained on {start}, whose weights are quantised; its "
            f"updates are set against the weights of {compared}, and what quantising changed is "
            "not in them",
        )
        start = compared
    try:
        return AdaptedWeights(checkpoint.directory, start, compared)
    except NotInFactors as reason:
        merged = checkpoint.complete("float64")
        print_warning("merged", f"{reason}; it is measured after merging in float64")
        return MergedWeights(merged, compared)


def _indices(where: Where) -> tuple[int, ...]:
    return (where,) if isinstance(where, int) else where


def _measure(
    base: MeasuredModel,
    checkpoints: Sequence[MeasuredModel],
    metrics: Sequence[Metric],
    fresh: dict[tuple[Where, str], Rows],
    bars: Bars,
    device: str,
) -> None:
    """Fill the lists of `fresh` by one pass over the files that they need.

    A checkpoint whose files cannot be read is rows that say so; a base's raises ScalpelError.
    """
    before = base.complete("float32")
    base_files = StoredWeights(before)
    files: dict[int, StoredWeights] = {}
    unreadable: dict[int, str] = {}
    for index in sorted({index for where, _ in fresh for index in _indices(where)}):
        try:
            files[index] = _weights_of(checkpoints[index], before)
        except ScalpelError as error:
            unreadable[index] = str(error)
    for weights in (base_files, *files.values()):
        if weights.unread:
            print_warning(
                "unread_files",
                f"{weights.directory}: {', '.join(weights.unread)} are not read: the index, or "
                "model.safetensors, says what the model is; delete what is stale",
            )
    for (where, group), rows in fresh.items():
        for index in [index for index in _indices(where) if index in unreadable][:1]:
            of_group = [one for one in metrics if one.group == group]
            rows += failed(of_group, "not readable", unreadable[index])
    pairs = [where for where, _ in fresh if isinstance(where, tuple) and files.keys() >= {*where}]
    needed = list(files)
    opened = [(one, Training(checkpoints[index].learning_rate_sum)) for index, one in files.items()]

    def wanted(at: int, group: str) -> bool:
        return (needed[at], group) in fresh

    total = sum(weights.bytes() for weights, _ in opened)
    with bars.open("weights", total, "B") as progress:
        for at, row in weight_rows(
            base_files,
            opened,
            metrics,
            pairs=[(needed.index(first), needed.index(second)) for first, second in pairs],
            wanted=wanted,
            progress=progress,
            device=device,
        ):
            where = needed[at] if isinstance(at, int) else (needed[at[0]], needed[at[1]])
            fresh[where, row["metric"].split("/", 1)[0]].append(row)


def weight_rows(
    base: StoredWeights,
    checkpoints: Sequence[tuple[StoredWeights, Training]],
    metrics: Sequence[Metric],
    *,
    pairs: Sequence[tuple[int, int]] = (),
    wanted: Callable[[int, str], bool] = lambda index, group: True,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Iterator[tuple[int | tuple[int, int], dict[str, Any]]]:
    """Index of the checkpoint, or of both of a pair, and one row, for each metric and matrix.

    Each matrix of the base is read once for all checkpoints. What cannot be compared is a row that
    says why. A row has its layer, matrix and part, and in `n` the number of elements.

    Args:
        base: the base's files.
        checkpoints: files of each checkpoint, and what is known of its training.
        metrics: of the groups in `matrices.GROUPS`, and of `pairs`.
        pairs: indices of the checkpoints whose updates the group `pairs` compares.
        wanted: whether a group is wanted of the checkpoint of an index.
        progress: is called with the bytes of every matrix.
        device: where `spectra` are computed. The other groups read each byte once, which the
            processor does faster than the bytes could travel to a GPU.
    """
    single = [one for one in metrics if one.group in GROUPS]
    paired = [one for one in metrics if one.group == "pairs"]
    opened = [checkpoint for checkpoint, _ in checkpoints]
    elements = sum(piece.elements for piece in base.pieces.values()) * len(checkpoints)
    measures = MatrixMetrics(single, elements, device)
    every = {place: piece for one in (*opened, base) for place, piece in one.pieces.items()}
    for place in sorted(every, key=in_order):
        piece = every[place]
        where: dict[str, Any] = {
            "layer": place[0],
            "matrix": place[1],
            "part": piece.part,
            "n": piece.elements,
        }
        w0, unread = _state(base, place, base.read)
        states = [_state(one, place, one.later) for one in opened]
        w0, read = _aligned(w0, {at: wt for at, (wt, _) in enumerate(states) if wt is not None})
        if w0 is None and unread and any(_is_apart(wt) for wt in read.values()):
            w0 = _stand_in(piece.shape)  # for what is measured without it
            like = {at: wt for at, wt in read.items() if _is_apart(wt)}
        else:
            like = {at: wt for at, wt in read.items() if w0 is not None and _is_like(w0, wt)}
        problems = {
            index: ("not supported", reason)
            if (reason := unread or states[index][1])
            else _problem(w0, read.get(index), base, checkpoint)
            for index, (checkpoint, _) in enumerate(checkpoints)
            if index not in like
        }
        chosen = [
            [one for one in single if wanted(at, one.group)] for at in range(len(checkpoints))
        ]
        found: dict[int, Iterator[dict[str, Any]]] = {
            index: failed(chosen[index], *problem) for index, problem in problems.items()
        }
        if w0 is not None:
            updates = [Update(wt, checkpoints[at][1], chosen[at]) for at, wt in like.items()]
            found |= zip(like, measures.rows(w0, updates), strict=True)
        for index in range(len(checkpoints)):
            dtype = {"dtype": _named(read[index].dtype)} if index in read else {}
            for row in found[index]:
                yield index, {**where, **dtype, **row}
            if progress is not None and index in read:
                progress(read[index].nbytes)
        for pair in pairs:
            odd = next((problems[index] for index in pair if index in problems), None)
            if odd is not None or w0 is None:
                rows = failed(paired, *(odd or ("missing", "")))
            else:
                rows = pair_rows(paired, w0, *(like[index] for index in pair))
            dtype = {"dtype": _named(like[pair[0]].dtype)} if pair[0] in like else {}
            for row in rows:
                yield pair, {**where, **dtype, **row}


def _state(
    weights: StoredWeights, place: Place, read: Callable[[tuple[str, Cut | None]], Any]
) -> tuple[Any, str]:
    """The tensor at a place, and why it cannot be read; both empty where there is none.

    A head that is tied to the input embeddings is these.
    """
    piece = weights.pieces.get(place) or weights.tied.get(place)
    if piece is None:
        return None, ""
    try:
        return read((piece.tensor, piece.cut)), ""
    except ScalpelError as error:
        return None, str(error)


def _aligned(
    w0: Tensor | None, read: Mapping[int, Tensor | Added | Untouched]
) -> tuple[Tensor | None, Mapping[int, Tensor | Added | Untouched]]:
    """All of them the other way round where all are stored (in, out): no metric asks for the way,
    and elements are then read in the order in which they lie in the file."""
    if w0 is None or w0.ndim != 2 or w0.is_contiguous():
        return w0, read
    stored = {at: one for at, one in read.items() if isinstance(one, Tensor)}
    same = all(one.ndim == 2 and one.stride() == w0.stride() for one in stored.values())
    if same and len(stored) == len(read):
        return w0.T, {at: one.T for at, one in stored.items()}
    return w0, read


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_apart(wt: Tensor | Added | Untouched) -> bool:
    """Whether its rows are made without W_0."""
    return isinstance(wt, Untouched) or (isinstance(wt, Added) and wt.alone)


def _stand_in(shape: tuple[int, ...]) -> Tensor:
    """Zeros in place of a matrix that cannot be read, of which just one is stored."""
    return torch.zeros(1).expand(shape)


def _is_like(w0: Tensor, wt: Tensor | Added | Untouched) -> bool:
    """Whether the two can be compared; of a base's codes only the update itself is known."""
    return w0.shape == wt.shape or (isinstance(wt, Added) and wt.alone)


def _problem(
    w0: Tensor | None,
    wt: Tensor | Added | Untouched | None,
    base: StoredWeights,
    checkpoint: StoredWeights,
) -> tuple[str, str]:
    """Status and reason of two tensors that cannot be compared."""
    if w0 is None or wt is None:
        missing = base if w0 is None else checkpoint
        return "missing", f"{missing.directory} has no such tensor"
    reason = f"shape {tuple(wt.shape)} against the base's {tuple(w0.shape)}"
    if w0.ndim == wt.ndim == 2 and w0.shape[1] == wt.shape[1] and wt.shape[0] > w0.shape[0]:
        reason += f": it grew from {w0.shape[0]} to {wt.shape[0]} rows"
    return "shape mismatch", reason


def pairs_of(checkpoints: Sequence[MeasuredModel]) -> list[tuple[int, int]]:
    """Indices of the checkpoints of each pair, the one that was given first in front.

    - Of two runs: those at the same step, and the last with the last. Early and late steps of two
      runs differ by how far they went, which says nothing about the runs.
    - Where all are of one run: each with the last one.

    A run is a run ID, or the folder that holds directories named by their step (`checkpoint-400`);
    any other model is a run of its own. The last is the one with the largest step.
    """
    runs: dict[str, list[int]] = {}
    for index, one in enumerate(checkpoints):
        runs.setdefault(_run_of(one), []).append(index)
    last = {run: max(found, key=lambda i: checkpoints[i].step or 0) for run, found in runs.items()}
    if len(runs) == 1:
        (end,) = last.values()
        return sorted((min(i, end), max(i, end)) for i in range(len(checkpoints)) if i != end)
    pairs = set()
    for run, other in itertools.combinations(runs, 2):
        pairs.add((last[run], last[other]))
        for first, second in itertools.product(runs[run], runs[other]):
            step = checkpoints[first].step
            if step is not None and step == checkpoints[second].step:
                pairs.add((first, second))
    return sorted((min(pair), max(pair)) for pair in pairs)


def _run_of(one: MeasuredModel) -> str:
    if one.run_id is not None:
        return one.run_id
    return one.model_id if one.step is None else str(one.directory.resolve().parent)
