"""The weights of a base with an adapter, each a tensor and an update that are not yet added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlflow_scalpel.comparison.weights import StoredWeights
from mlflow_scalpel.tensors.adapters import AdapterChanges, read_changes
from mlflow_scalpel.tensors.files import ADAPTER_WEIGHTS, TensorFiles
from mlflow_scalpel.tensors.headers import FLOATS, Header
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
        super().__init__(start)
        self.adapter = directory
        self._compared = TensorFiles(compared)
        self._held = TensorFiles(directory)
        self._changes: AdapterChanges = read_changes(directory, TensorFiles(start))
        self._whole = dict(self._changes.stored)
        self._files.headers.update(self._whole)
        for name, bias in self._changes.added.items():
            kind = _ELEMENT.get(self._changes.dtype, "BF16")
            shape = tuple(bias.shape)
            self._files.headers[name] = Header(directory / ADAPTER_WEIGHTS, name, kind, shape, 0, 0)

    def later(self, place: tuple[str, Any]) -> Tensor | Added | Untouched:
        """What the training made of a tensor, or of rows of it."""
        name, rows = place
        if name in self._changes.added:
            return self._changes.added[name].to(self._changes.dtype)
        change = self._changes.changes.get(name)
        tensor = self._tensor(name)
        if change is None:
            if name in self._whole or not self._same(name, tensor):
                return tensor if rows is None else tensor[rows]
            shape = tuple(tensor.shape if rows is None else tensor[rows].shape)
            dtype = self._changes.dtype or tensor.dtype
            return Untouched(shape, dtype, tensor.numel() * tensor.element_size())
        if isinstance(change, LowRank) and self._files.headers[name].dtype not in FLOATS:
            zeros = torch.zeros(1).expand(change.shape)  # of which just one is stored
            added = Added(zeros, change, self._changes.dtype, alone=True)
        else:
            added = Added(tensor, change, self._changes.dtype)
        return added if rows is None else added.cut(rows)

    def _tensor(self, name: str) -> Tensor:
        if name in self._whole:
            tensor: Tensor = self._held.read(_own_name(self._held, self._whole[name]))
            return tensor
        return self._files.read(name)

    def _same(self, name: str, tensor: Tensor) -> bool:
        if self._compared.directory == self.directory:
            return True
        if name not in self._compared.headers:
            return False
        other = self._compared.read(name)
        return other.dtype == tensor.dtype and torch.equal(other, tensor)


class MergedWeights(StoredWeights):
    """The tensors of a merged model, of which those that are the base's own are `Untouched`.

    Args:
        directory: the merged model, in float64, so that merging rounded nothing.
        compared: the base of the comparison.
    """

    def __init__(self, directory: Path, compared: Path) -> None:
        super().__init__(directory)
        self._compared = TensorFiles(compared)

    def later(self, place: tuple[str, Any]) -> Tensor | Untouched:
        """What the training made of a tensor, or of rows of it."""
        tensor = self._files.read(place[0])
        if place[0] in self._compared.headers:
            before = self._compared.read(place[0])
            same = before.shape == tensor.shape and before.is_floating_point()
            if same and all(
                torch.equal(one.double(), other)
                for one, other in zip(_parts(before), _parts(tensor), strict=True)
            ):
                part = tensor if place[1] is None else tensor[place[1]]
                return Untouched(tuple(part.shape), torch.float32, part.numel() * 8)
        return tensor if place[1] is None else tensor[place[1]]


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Slices of a tensor, so that what is made of them stays small."""
    return tensor.reshape(-1).split(1 << 22)


def _own_name(files: TensorFiles, header: Header) -> str:
    return next(name for name, one in files.headers.items() if one == header)
