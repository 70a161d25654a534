"""Weights of models, read a tensor at a time: files, a base with an adapter, a merged model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mlflow_scalpel.tensors.adapters import AdapterChanges, read_changes
from mlflow_scalpel.tensors.cuts import Cut
from mlflow_scalpel.tensors.documents import read_config
from mlflow_scalpel.tensors.files import ADAPTER_WEIGHTS, Header
from mlflow_scalpel.tensors.places import Piece, Place, places, tied_head
from mlflow_scalpel.tensors.quantised import FloatTensors
from mlflow_scalpel.tensors.updates import Added, LowRank, Untouched


class StoredWeights:
    """The tensors of a checkpoint's safetensors files, memory-mapped and read one at a time.

    Args:
        directory: of the checkpoint.
        like: directory of the model whose config.json counts where this one has none.
        files: the tensors, where they are not just those in `directory`.

    Raises ScalpelError for a file that is not complete.
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
        """Output embeddings that are the input embeddings, and so are not weights of their own."""
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
        """W_0 after training: the matrix, or an update that is not yet added to it."""
        return self.read(place)

    def bytes(self) -> int:
        """Bytes of all weights."""
        names = {piece.tensor for piece in self.pieces.values()}
        return sum(self._files.headers[name].bytes for name in names)


_ELEMENT = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16"}


class AdaptedWeights(StoredWeights):
    """The tensors of a base with an adapter, read one at a time; nothing is merged.

    `later` gives a tensor as it is stored where the adapter holds all of it, `Added` where it holds
    an update, and `Untouched` where it does neither and `compared` has the same tensor.

    Args:
        directory: the adapter.
        start: the model that the adapter was trained on.
        compared: the base of the comparison, which may be another one.

    Raises:
        NotInFactors: the adapter is of a kind that only PEFT can merge.
        ScalpelError: it is damaged, not complete, or does not fit the base.
    """

    def __init__(self, directory: Path, start: Path, compared: Path) -> None:
        files = FloatTensors(start)
        self._changes: AdapterChanges = read_changes(directory, files)
        files.put(self._changes.stored)
        for name, bias in self._changes.added.items():
            kind = _ELEMENT.get(self._changes.dtype, "BF16")
            shape = tuple(bias.shape)
            files.headers[name] = Header(directory / ADAPTER_WEIGHTS, name, kind, shape, 0, 0)
        super().__init__(start, files=files)
        for place, piece in places(files.headers, read_config(start)).items():
            if piece.tensor in self._changes.changes:  # and so is tied to nothing any more
                self.pieces.setdefault(place, piece)
                self.tied.pop(place, None)
        self.adapter = directory
        self._compared = FloatTensors(compared)
        self._equal: dict[str, bool] = {}

    def later(self, place: tuple[str, Cut | None]) -> Tensor | Added | Untouched:
        """A tensor, or a matrix within it, after training."""
        name, cut = place
        if name in self._changes.added:
            return self._changes.added[name].to(self._changes.dtype)
        made = self._changes.changes.get(name)
        if made is None:
            if name in self._changes.stored or not self._is_same(name):
                return self.read(place)
            header = self._files.headers[name]
            shape = header.shape if cut is None else cut.shape(header.shape)
            return Untouched(shape, self._changes.dtype or torch.float32, header.bytes)
        change = made()
        if isinstance(change, LowRank) and name in self._files.reasons:
            zeros = torch.zeros(1).expand(change.shape)  # of which just one is stored
            added = Added(zeros, change, self._changes.dtype, alone=True)
        else:
            added = Added(self._files.read(name), change, self._changes.dtype)
        return added if cut is None else added.cut(cut)

    def _is_same(self, name: str) -> bool:
        """Whether the tensor that the adapter left alone is that of the comparison's base."""
        if self._compared.directory == self.directory:
            return True
        if name not in self._equal:
            self._equal[name] = _equal(self._files, self._compared, name)
        return self._equal[name]


class MergedWeights(StoredWeights):
    """The tensors of a merged model, of which those that are the base's own are `Untouched`.

    Args:
        directory: the merged model, in float64, so that merging rounded nothing.
        compared: the base of the comparison.
    """

    def __init__(self, directory: Path, compared: Path) -> None:
        super().__init__(directory)
        self._compared = FloatTensors(compared)
        self._equal: dict[str, bool] = {}

    def later(self, place: tuple[str, Cut | None]) -> Tensor | Untouched:
        """A tensor, or a matrix within it, after training."""
        matrix, name = self.read(place), place[0]
        if name not in self._equal:
            self._equal[name] = _equal(self._files, self._compared, name)
        if self._equal[name]:
            return Untouched(tuple(matrix.shape), torch.float32, matrix.nbytes)
        return matrix


def _equal(files: FloatTensors, others: FloatTensors, name: str) -> bool:
    """Whether two models have the same numbers under a name, whatever their dtypes."""
    if name not in others.headers or others.headers[name].shape != files.headers[name].shape:
        return False
    one, other = files.read(name), others.read(name)
    if one.dtype == other.dtype:
        return torch.equal(one, other)
    if not (one.is_floating_point() and other.is_floating_point()):
        return False
    both = zip(_parts(one), _parts(other), strict=True)
    return all(torch.equal(first.double(), second.double()) for first, second in both)


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Slices of a tensor, so that what is made of them stays small."""
    return tensor.reshape(-1).split(1 << 22)
