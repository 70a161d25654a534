"""The tensors of one model in another, whichever way each of the two stores them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.documents import read_config
from mlflow_scalpel.tensors.files import Header
from mlflow_scalpel.tensors.names import counterparts
from mlflow_scalpel.tensors.places import Piece, places

if TYPE_CHECKING:
    from torch import Tensor

Source = str | list[tuple[Piece, Piece]]
"""The name of the tensor in the other model; or its pieces, each with the other model's, where one
of the two stores as one tensor what the other stores as several (experts)."""


class Tensors(Protocol):
    """The tensors in a directory, such as `TensorFiles`."""

    directory: Path

    @property
    def headers(self) -> Mapping[str, Header]:
        """Of all tensors, by name."""

    def read(self, name: str) -> Tensor:
        """The tensor of a name."""


def sources(names: Iterable[str], after: Tensors, before: Tensors) -> dict[str, Source]:
    """The place of each tensor of a checkpoint in its base.

    Raises ScalpelError for one that the base does not have, or has in another shape.
    """
    same = counterparts(after.headers, before.headers)
    of_base = places(before.headers, read_config(before.directory))
    pieces: dict[str, list[tuple[Piece, Piece | None]]] = {}
    for place, piece in places(after.headers, read_config(after.directory)).items():
        pieces.setdefault(piece.tensor, []).append((piece, of_base.get(place)))
    found: dict[str, Source] = {}
    for name in sorted(names):
        if name in same:
            other = found[name] = same[name]
            shapes = before.headers[other].shape, after.headers[name].shape
        else:
            pairs = [(mine, its) for mine, its in pieces.get(name, []) if its is not None]
            if not pairs or len(pairs) < len(pieces[name]):
                raise ScalpelError(
                    f"{before.directory}: has no tensor {name}, which {after.directory} has; "
                    "give the base that training began with"
                )
            odd = next((pair for pair in pairs if pair[0].shape != pair[1].shape), pairs[0])
            other, shapes = odd[1].tensor, (odd[1].shape, odd[0].shape)
            found[name] = pairs
        if shapes[0] != shapes[1]:
            raise ScalpelError(
                f"{before.directory}: its {other} has shape {shapes[0]}, and the "
                f"checkpoint's has {shapes[1]}; give the base that training began with"
            )
    return found


def read_source(before: Tensors, source: Source, wt: Tensor) -> Tensor:
    """The base's tensor in the layout and dtype of W_t, the checkpoint's; contiguous."""
    if isinstance(source, str):
        return before.read(source).to(wt.dtype).contiguous()
    w0 = wt.new_empty(wt.shape)
    for mine, its in source:
        stored = before.read(its.tensor)
        matrix = stored if its.cut is None else its.cut.of(stored)
        if mine.cut is None:
            w0.copy_(matrix)
        else:
            mine.cut.put(w0, matrix)
    return w0
