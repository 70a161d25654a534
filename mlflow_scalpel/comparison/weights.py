"""The weight metrics of every matrix of a checkpoint, read a tensor at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mlflow_scalpel.metrics.compiling import compiled
from mlflow_scalpel.metrics.moments import (
    COMPILED_FROM,
    Training,
    row_sums,
    update_moments,
)
from mlflow_scalpel.metrics.registry import Metric

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NAME = re.compile(rf"layers\.(\d+)\.\w+\.({'|'.join(MATRICES)})\.weight$")
_FUSED = re.compile(r"layers\.(\d+)\.\w+\.(qkv_proj|gate_up_proj)\.weight$")
_LAYER = re.compile(r"layers\.(\d+)\.(.+)$")

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

Place = tuple[int | None, str]
"""Layer, null for a tensor outside of the layers, and matrix as in `q_proj`."""
Progress = Callable[[int], object]
"""Called with a number of bytes each time so many more have been compared."""


class StoredWeights:
    """The tensors of a checkpoint's safetensors files, memory-mapped and read one at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = {}
        for file in sorted(directory.glob("*.safetensors")):
            handle = safe_open(file, framework="pt")
            self._files.update(dict.fromkeys(handle.keys(), handle))
        self._rows = _FusedRows(directory)

    def matrices(self, *, others: bool = False) -> dict[Place, tuple[str, slice | None]]:
        """Tensor name, and rows of it where it is fused, of each (layer, matrix), in that order.

        The seven matrices of each decoder layer; with `others` every other tensor as well
        (embeddings, norms, heads, biases), named by what follows its layer.
        """
        found: dict[Place, tuple[str, slice | None]] = {}
        for name in self._files:
            if match := _NAME.search(name):
                found[int(match[1]), match[2]] = name, None
            elif match := _FUSED.search(name):
                height = self._files[name].get_slice(name).get_shape()[0]
                for matrix, rows in self._rows.of(match[2], height).items():
                    found[int(match[1]), matrix] = name, rows
            elif others:
                match = _LAYER.search(name)
                layer, rest = (int(match[1]), match[2]) if match else (None, name)
                found[layer, rest.removeprefix("model.").removesuffix(".weight")] = name, None
        return dict(sorted(found.items(), key=lambda item: in_order(item[0])))

    def read(self, place: tuple[str, slice | None]) -> Tensor:
        """The tensor, or the rows of it; the file's own pages, of which nothing is copied."""
        name, rows = place
        tensor = self._files[name].get_tensor(name)
        return tensor if rows is None else tensor[rows]

    def bytes(self, *, others: bool = False) -> int:
        """Bytes of the tensors that `matrices` names."""
        names = {name for name, _ in self.matrices(others=others).values()}
        return sum(
            self.size(name) * _BYTES.get(self._files[name].get_slice(name).get_dtype(), 1)
            for name in names
        )

    def size(self, name: str) -> int:
        """Elements of a stored tensor, without reading it."""
        return int(torch.Size(self._files[name].get_slice(name).get_shape()).numel())


class _FusedRows:
    """Which rows of a fused projection are whose; the model's config is read when one is met."""

    def __init__(self, directory: Path) -> None:
        self._config = directory / "config.json"

    def of(self, fused: str, height: int) -> dict[str, slice]:
        """Matrix and its rows of a fused tensor of `height` rows (Phi-3's order)."""
        if fused == "gate_up_proj":
            return {"gate_proj": slice(0, height // 2), "up_proj": slice(height // 2, height)}
        config = json.loads(self._config.read_bytes())
        heads = config["num_attention_heads"]
        shared = config.get("num_key_value_heads") or heads
        size = height // (heads + 2 * shared)
        q, k = heads * size, (heads + shared) * size
        return {"q_proj": slice(0, q), "k_proj": slice(q, k), "v_proj": slice(k, height)}


def in_order(place: Place) -> tuple[bool, int, int, str]:
    """Sorts by layer, then as data flows through it; what is outside of the layers comes last."""
    layer, matrix = place
    known = MATRICES.index(matrix) if matrix in MATRICES else len(MATRICES)
    return layer is None, layer or 0, known, matrix


def weight_rows(
    base: StoredWeights,
    checkpoints: Sequence[tuple[StoredWeights, Training]],
    metrics: Sequence[Metric],
    *,
    others: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Index of the checkpoint and one row, for each metric, layer, matrix and checkpoint.

    Each tensor of the base is read once for all checkpoints. What cannot be compared is a row that
    says why. `metrics` are of the group `weights`.
    """
    before = base.matrices(others=others)
    after = [checkpoint.matrices(others=others) for checkpoint, _ in checkpoints]
    elements = sum(base.size(name) for name, _ in before.values()) * len(checkpoints)
    sums = compiled(row_sums) if elements >= COMPILED_FROM else row_sums
    for place in sorted({*before, *(key for names in after for key in names)}, key=in_order):
        w0 = base.read(before[place]) if place in before else None
        for index, (checkpoint, training) in enumerate(checkpoints):
            where: dict[str, Any] = {"layer": place[0], "matrix": place[1], "n": 1}
            if w0 is None or place not in after[index]:
                lacking = base if w0 is None else checkpoint
                reason = f"{lacking.directory} has no such tensor"
                yield from _failed(index, where, metrics, "missing", reason)
                continue
            wt = checkpoint.read(after[index][place])
            where["dtype"] = str(wt.dtype).removeprefix("torch.")
            if w0.shape != wt.shape:
                reason = f"shape {tuple(wt.shape)} against the base's {tuple(w0.shape)}"
                yield from _failed(index, where, metrics, "shape mismatch", reason)
                continue
            moments = update_moments(w0, wt, sums)
            for one in metrics:
                value = one.function(moments, training)
                if value is not None:  # None: the metric does not apply here
                    yield index, {**where, **_names(one), "value": value}
            if progress is not None:
                progress(wt.numel() * wt.element_size())


def _failed(
    index: int, where: dict[str, Any], metrics: Sequence[Metric], status: str, reason: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    for one in metrics:
        yield index, {**where, **_names(one), "status": status, "reason": reason}


def _names(one: Metric) -> dict[str, Any]:
    return {"metric": one.name, "metric_version": one.version, "unit": one.unit}
