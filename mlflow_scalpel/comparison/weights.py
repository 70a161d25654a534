"""The weight metrics of every matrix of a checkpoint, read a tensor at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from mlflow_scalpel.metrics.moments import Training, update_moments
from mlflow_scalpel.metrics.registry import metrics_of_kind

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NAME = re.compile(rf"layers\.(\d+)\.\w+\.({'|'.join(MATRICES)})\.weight$")


class StoredWeights:
    """The tensors of a checkpoint's safetensors files, memory-mapped and read one at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = {}
        for file in sorted(directory.glob("*.safetensors")):
            handle = safe_open(file, framework="pt")
            self._files.update(dict.fromkeys(handle.keys(), handle))

    def matrices(self) -> dict[tuple[int, str], str]:
        """Name of the tensor of each (layer, matrix), in that order."""
        found = {}
        for name in self._files:
            match = _NAME.search(name)
            if match:
                found[int(match[1]), match[2]] = name
        return dict(
            sorted(found.items(), key=lambda item: (item[0][0], MATRICES.index(item[0][1])))
        )

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)


def weight_rows(
    base: StoredWeights, checkpoint: StoredWeights, training: Training
) -> Iterator[dict[str, Any]]:
    """One row a metric, layer and matrix; what cannot be compared is a row that says why."""
    metrics = metrics_of_kind("weights")
    before, after = base.matrices(), checkpoint.matrices()
    for layer, matrix in sorted({**before, **after}):
        place = {"layer": layer, "matrix": matrix, "n": 1}
        missing = [
            str(weights.directory)
            for weights, names in ((base, before), (checkpoint, after))
            if (layer, matrix) not in names
        ]
        if missing:
            yield from _failed(place, "missing", f"{missing[0]} has no such tensor")
            continue
        w0, wt = base[before[layer, matrix]], checkpoint[after[layer, matrix]]
        dtype = str(wt.dtype).removeprefix("torch.")
        try:
            moments = update_moments(w0, wt)
        except ValueError as error:
            yield from _failed({**place, "dtype": dtype}, "shape mismatch", str(error))
            continue
        for metric in metrics:
            value = metric.function(moments, training)
            if value is None:  # the metric does not apply here
                continue
            yield {
                **place,
                "metric": metric.name,
                "metric_version": metric.version,
                "value": value,
                "unit": metric.unit,
                "dtype": dtype,
            }


def _failed(place: dict[str, Any], status: str, reason: str) -> Iterator[dict[str, Any]]:
    for metric in metrics_of_kind("weights"):
        yield {
            **place,
            "metric": metric.name,
            "metric_version": metric.version,
            "unit": metric.unit,
            "status": status,
            "reason": reason,
        }
