"""Output embeddings that are the input embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mlflow_scalpel.tensors.families import pattern
from mlflow_scalpel.tensors.places import Piece, Place

if TYPE_CHECKING:
    from torch import Tensor


def tied_head(
    pieces: Mapping[Place, Piece], config: Mapping[str, Any], read: Callable[[str], Tensor]
) -> tuple[Place, Place] | None:
    """Place of the head and of the embeddings that it is; None where it is a matrix of its own.

    They are one where they are stored with the same bits, and where the configuration ties them
    and no head is stored. A head that is stored and differs is one of its own, whatever the
    configuration says.

    Args:
        pieces: all weights of a model.
        config: what its config.json holds.
        read: gives a stored tensor by its name.
    """
    embeddings = _first(pieces, "embeddings")
    if embeddings is None:
        return None
    head = _first(pieces, "head")
    if head is None:
        return ((None, "lm_head"), embeddings) if _ties(config) else None
    one, other = pieces[head], pieces[embeddings]
    if one.shape != other.shape:
        return None
    first, second = read(one.tensor), read(other.tensor)
    if first.dtype != second.dtype or not _same_bits(first[:1], second[:1]):
        return None
    return (head, embeddings) if _same_bits(first, second) else None


def _first(pieces: Mapping[Place, Piece], which: str) -> Place | None:
    for place, piece in pieces.items():
        if place[0] is None and len(piece.shape) == 2 and pattern("tied", which).match(place[1]):
            return place
    return None


def _ties(config: Mapping[str, Any]) -> bool:
    inner = config.get("text_config")
    said = config.get("tie_word_embeddings")
    if said is None and isinstance(inner, Mapping):
        said = inner.get("tie_word_embeddings")
    return said is True


def _same_bits(first: Tensor, second: Tensor) -> bool:
    import torch

    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))
