"""The weights of a base with an adapter, each a tensor and an update that are not yet added."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mlflow_scalpel.comparison.weights import StoredWeights
from mlflow_scalpel.tensors.adapters import AdapterChanges, read_changes
from mlflow_scalpel.tensors.cuts import Cut
from mlflow_scalpel.tensors.documents import read_config
from mlflow_scalpel.tensors.files import ADAPTER_WEIGHTS, Header
from mlflow_scalpel.tensors.places import places
from mlflow_scalpel.tensors.quantised import FloatTensors
from mlflow_scalpel.tensors.updates import Added, LowRank, Untouched

_ELEMENT = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16"}


class AdaptedWeights(StoredWeights):
    """The tensors of a base with an adapter, read one at a time; nothing is merged.

    `later` gives a tensor as it is stored where the adapter holds it whole, `Added` where it holds
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
        """What the training made of a tensor, or of a matrix within it."""
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
        """What the training made of a tensor, or of a matrix within it."""
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
