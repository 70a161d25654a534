"""The weight metrics of every tensor of a checkpoint, read a matrix at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlflow_scalpel.comparison.matrices import GROUPS, MatrixMetrics, Update, failed, pair_rows
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.registry import Metric
from mlflow_scalpel.metrics.weights import Training
from mlflow_scalpel.tensors.config import read_config
from mlflow_scalpel.tensors.cuts import Cut
from mlflow_scalpel.tensors.places import Piece, Place, in_order, places
from mlflow_scalpel.tensors.quantised import FloatTensors
from mlflow_scalpel.tensors.tied import tied_head
from mlflow_scalpel.tensors.updates import Added, Untouched

Progress = Callable[[int], object]
"""Called with a number of bytes each time so many more have been compared."""


class StoredWeights:
    """The tensors of a checkpoint's safetensors files, memory-mapped and read one at a time.

    Args:
        directory: of the checkpoint.
        like: directory of the model whose config.json counts where this one has none.
        files: the tensors, where they are not just those in `directory`.

    Raises ScalpelError for a file that is not whole.
    """

    def __init__(
        self, directory: Path, *, like: Path | None = None, files: FloatTensors | None = None
    ) -> None:
        self.directory = directory
        self._files = files or FloatTensors(directory)
        config = read_config(directory) or (read_config(like) if like is not None else {})
        self.pieces: dict[Place, Piece] = places(self._files.headers, config)
        """Every weight by its place, in the order of the model."""
        self.tied: dict[Place, Piece] = {}
        """Output embeddings that are the input embeddings, and so are no weights of their own."""
        readable = {
            place: piece
            for place, piece in self.pieces.items()
            if piece.tensor not in self._files.reasons
        }
        if found := tied_head(readable, config, self._files.read):
            head, embeddings = found
            self.tied[head] = self.pieces[embeddings]
            self.pieces.pop(head, None)

    @property
    def unread(self) -> list[str]:
        """Names of safetensors files in the directory that are not the model's."""
        return self._files.files.unread

    def matrices(self) -> dict[Place, tuple[str, Cut | None]]:
        """Tensor name, and how it is cut where it holds several matrices, of each place."""
        return {place: (piece.tensor, piece.cut) for place, piece in self.pieces.items()}

    def read(self, place: tuple[str, Cut | None]) -> Tensor:
        """The tensor, or a matrix within it; the file's own pages wherever they can be.

        A quantised one is dequantised. Raises ScalpelError with the reason where it cannot be.
        """
        name, cut = place
        tensor = self._files.read(name)
        return tensor if cut is None else cut.of(tensor)

    def later(self, place: tuple[str, Cut | None]) -> Tensor | Added | Untouched:
        """What the training made of W_0: the matrix, or an update that was not added to it."""
        return self.read(place)

    def bytes(self) -> int:
        """Bytes of all weights."""
        names = {piece.tensor for piece in self.pieces.values()}
        return sum(self._files.headers[name].bytes for name in names)


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
        progress: is told of every matrix.
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
    """What is at a place, and why it cannot be read; both empty where nothing is there.

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
        lacking = base if w0 is None else checkpoint
        return "missing", f"{lacking.directory} has no such tensor"
    reason = f"shape {tuple(wt.shape)} against the base's {tuple(w0.shape)}"
    if w0.ndim == wt.ndim == 2 and w0.shape[1] == wt.shape[1] and wt.shape[0] > w0.shape[0]:
        reason += f": it grew from {w0.shape[0]} to {wt.shape[0]} rows"
    return "shape mismatch", reason
