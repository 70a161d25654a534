"""Everything that is measured of the weights alone: kept results, and one pass for the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow_scalpel.comparison.adapted import AdaptedWeights, MergedWeights
from mlflow_scalpel.comparison.matrices import failed
from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.comparison.pairing import pairs_of
from mlflow_scalpel.comparison.progress import Bars
from mlflow_scalpel.comparison.results import keep_rows, kept_rows, key_of
from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.comparison.weights import StoredWeights, weight_rows
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.registry import Metric
from mlflow_scalpel.metrics.weights import Training
from mlflow_scalpel.run_warnings import print_warning
from mlflow_scalpel.tensors.adapters import NotInFactors
from mlflow_scalpel.tensors.files import holds_codes

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
        whole = checkpoint.whole("float64")
        print_warning("merged", f"{reason}; it is measured after merging in float64")
        return MergedWeights(whole, compared)


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
    before = base.whole("float32")
    stored = StoredWeights(before)
    files: dict[int, StoredWeights] = {}
    unreadable: dict[int, str] = {}
    for index in sorted({index for where, _ in fresh for index in _indices(where)}):
        try:
            files[index] = _weights_of(checkpoints[index], before)
        except ScalpelError as error:
            unreadable[index] = str(error)
    for weights in (stored, *files.values()):
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
            stored,
            opened,
            metrics,
            pairs=[(needed.index(first), needed.index(second)) for first, second in pairs],
            wanted=wanted,
            progress=progress,
            device=device,
        ):
            where = needed[at] if isinstance(at, int) else (needed[at[0]], needed[at[1]])
            fresh[where, row["metric"].split("/", 1)[0]].append(row)
