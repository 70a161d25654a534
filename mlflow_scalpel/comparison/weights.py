"""The weight metrics of every matrix of a checkpoint, read a tensor at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlflow_scalpel.comparison.matrices import GROUPS, MatrixMetrics, Update, failed, pair_rows
from mlflow_scalpel.metrics.moments import Training
from mlflow_scalpel.metrics.registry import Metric
from mlflow_scalpel.tensors.files import TensorFiles

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The language model's own layers: vision towers and extra predictors have some of their own.
_STACK = (
    r"^(?:language_model\.)?(?:model\.)?(?:language_model\.|decoder\.|gpt_neox\.)?layers\.(\d+)\."
)
_EXPERT = r"experts\.\d+\."
_NAME = re.compile(
    rf"{_STACK}\w+\.((?:{_EXPERT}|shared_experts?\.)?(?:{'|'.join(MATRICES)})|{_EXPERT}w[123])\.weight$"
)
_FUSED = re.compile(rf"{_STACK}\w+\.(qkv_proj|gate_up_proj)\.weight$")
_LAYER = re.compile(rf"{_STACK}(.+)$")

Place = tuple[int | None, str]
"""Layer, null for a tensor outside of the layers, and matrix as in `q_proj`."""
Progress = Callable[[int], object]
"""Called with a number of bytes each time so many more have been compared."""


class StoredWeights:
    """The tensors of a checkpoint's safetensors files, memory-mapped and read one at a time.

    Raises ScalpelError for a file that is not whole.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = TensorFiles(directory)
        self._rows = _FusedRows(directory)

    def matrices(self, *, others: bool = False) -> dict[Place, tuple[str, slice | None]]:
        """Tensor name, and rows of it where it is fused, of each (layer, matrix), in that order.

        The seven matrices of each decoder layer, and those of each expert (`experts.3.up_proj`);
        with `others` every other tensor as well (embeddings, norms, heads, biases), named by what
        follows its layer, and in full where it is in no layer of the language model.
        """
        found: dict[Place, tuple[str, slice | None]] = {}
        for name, header in self._files.headers.items():
            if match := _NAME.search(name):
                found[int(match[1]), match[2]] = name, None
            elif match := _FUSED.search(name):
                for matrix, rows in self._rows.of(match[2], header.shape[0]).items():
                    found[int(match[1]), matrix] = name, rows
            elif others:
                match = _LAYER.search(name)
                layer, rest = (int(match[1]), match[2]) if match else (None, name)
                found[layer, rest.removeprefix("model.").removesuffix(".weight")] = name, None
        return dict(sorted(found.items(), key=lambda item: in_order(item[0])))

    def read(self, place: tuple[str, slice | None]) -> Tensor:
        """The tensor, or the rows of it; the file's own pages, of which nothing is copied."""
        name, rows = place
        tensor = self._files.read(name)
        return tensor if rows is None else tensor[rows]

    def bytes(self, *, others: bool = False) -> int:
        """Bytes of the tensors that `matrices` names."""
        names = {name for name, _ in self.matrices(others=others).values()}
        return sum(self._files.headers[name].bytes for name in names)

    def size(self, name: str) -> int:
        """Elements of a stored tensor, without reading it."""
        return self._files.headers[name].elements


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
    pairs: Sequence[tuple[int, int]] = (),
    wanted: Callable[[int, str], bool] = lambda index, group: True,
    others: bool = False,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Iterator[tuple[int | tuple[int, int], dict[str, Any]]]:
    """Index of the checkpoint, or of both of a pair, and one row, for each metric and matrix.

    Each tensor of the base is read once for all checkpoints. What cannot be compared is a row that
    says why.

    Args:
        base: the base's files.
        checkpoints: files of each checkpoint, and what is known of its training.
        metrics: of the groups in `matrices.GROUPS`, and of `pairs`.
        pairs: indices of the checkpoints whose updates the group `pairs` compares.
        wanted: whether a group is wanted of the checkpoint of an index.
        others: also embeddings, norms, heads and biases.
        progress: is told of every matrix.
        device: where `spectra` are computed. The other groups read each byte once, which the
            processor does faster than the bytes could travel to a GPU.
    """
    single = [one for one in metrics if one.group in GROUPS]
    paired = [one for one in metrics if one.group == "pairs"]
    before = base.matrices(others=others)
    after = [checkpoint.matrices(others=others) for checkpoint, _ in checkpoints]
    elements = sum(base.size(name) for name, _ in before.values()) * len(checkpoints)
    measures = MatrixMetrics(single, elements, device)
    for place in sorted({*before, *(key for names in after for key in names)}, key=in_order):
        where: dict[str, Any] = {"layer": place[0], "matrix": place[1], "n": 1}
        w0 = base.read(before[place]) if place in before else None
        read = {
            index: checkpoint.read(after[index][place])
            for index, (checkpoint, _) in enumerate(checkpoints)
            if place in after[index]
        }
        like = {at: wt for at, wt in read.items() if w0 is not None and w0.shape == wt.shape}
        problems = {
            index: _problem(w0, read.get(index), base, checkpoint)
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
                progress(read[index].numel() * read[index].element_size())
        for pair in pairs:
            odd = next((problems[index] for index in pair if index in problems), None)
            if odd is not None or w0 is None:
                rows = failed(paired, *(odd or ("missing", "")))
            else:
                rows = pair_rows(paired, w0, *(like[index] for index in pair))
            dtype = {"dtype": _named(like[pair[0]].dtype)} if pair[0] in like else {}
            for row in rows:
                yield pair, {**where, **dtype, **row}


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _problem(
    w0: Tensor | None, wt: Tensor | None, base: StoredWeights, checkpoint: StoredWeights
) -> tuple[str, str]:
    """Status and reason of two tensors that cannot be compared."""
    if w0 is None or wt is None:
        lacking = base if w0 is None else checkpoint
        return "missing", f"{lacking.directory} has no such tensor"
    return "shape mismatch", f"shape {tuple(wt.shape)} against the base's {tuple(w0.shape)}"
