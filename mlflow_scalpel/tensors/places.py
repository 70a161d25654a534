"""Every tensor of a model as rows of a table name it: layer, matrix, part, and how it is cut."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_scalpel.tensors.cuts import Cut, Family, Shape
from mlflow_scalpel.tensors.families import part_rules, pattern
from mlflow_scalpel.tensors.files import BITS, FLOATS, Header
from mlflow_scalpel.tensors.names import Location, located

if TYPE_CHECKING:
    from torch import Tensor


#: The matrices that most decoder layers have, in the order in which a layer applies them.
CLASSICAL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
#: What does the work of the language model's layers. A mean over matrices is over these.
LAYER_PARTS = ("attention", "mlp", "experts", "router", "convolution", "state space")
#: What holds next to none of a model's parameters.
SMALL_PARTS = ("norm", "bias", "vector")
#: Every part, in the order in which it is shown.
PARTS = (
    *LAYER_PARTS,
    "embeddings",
    "head",
    *SMALL_PARTS,
    "vision",
    "other",
)


Place = tuple[int | None, str]
"""Layer, null for a tensor outside of the layers, and matrix as in `q_proj`."""
# The seven classical matrices, and what several of them are where they are one and are not cut.
_ATTENTION = (
    *CLASSICAL[:4], "qkv_proj", "query_key_value", "c_attn", "Wqkv", "wqkv", "W_pack"
)  # fmt: skip
_MLP = (*CLASSICAL[4:], "gate_up_proj")
# Parts of a path that say nothing where a layer has one of them, and what they hold.
_BLOCKS = {
    **dict.fromkeys(("self_attn", "self_attention", "attn", "attention"), _ATTENTION),
    **dict.fromkeys(("linear_attn", "qkv_proj", "norm_attn_norm"), _ATTENTION),
    **dict.fromkeys(("mlp", "feed_forward", "ffn", "mlp_block", "block_sparse_moe", "moe"), _MLP),
    **dict.fromkeys(("mixer", "temporal_block"), (*_ATTENTION, *_MLP)),
}
_EXPERT = re.compile(r"(?:^|\.)(experts\.\d+|shared_experts?)\.(\w+)$")
# Mixtral's names, which many take over.
_OLD = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
# Whole numbers that no quantised weight is stored in: positions, counts, masks.
_INTEGERS = ("I64", "U64", "I16", "U16", "BOOL")


@dataclass(frozen=True)
class Piece:
    """A tensor, or a matrix within it."""

    tensor: str
    cut: Cut | None
    part: str
    """One of `parts.PARTS`."""
    shape: Shape

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def places(headers: Mapping[str, Header], config: Mapping[str, Any]) -> dict[Place, Piece]:
    """Every weight of a model by its place, sorted by `in_order`.

    Each element of a floating-point tensor is in one piece and no more, but for buffers that are
    computed from the configuration (`inv_freq`). Whole numbers that are not codes of quantised
    weights are left out.

    Args:
        headers: of all tensors, by name.
        config: what the model's config.json holds.
    """
    family = Family(config)
    shortest: dict[Place, list[tuple[Place, Piece]]] = {}
    for name, where in located(headers).items():
        header = headers[name]
        if not is_weight(where.path, header):
            continue
        for path, cut in _cut(where, header, family):
            shape = header.shape if cut is None else cut.shape(header.shape)
            piece = Piece(name, cut, _part(where, path, shape), shape)
            short = where.layer, _short(path) if where.layer is not None else path
            shortest.setdefault(short, []).append(((where.layer, path), piece))
    found = {short: pieces[0][1] for short, pieces in shortest.items() if len(pieces) == 1}
    for pieces in shortest.values():
        if len(pieces) == 1:
            continue
        # Two of one name keep their paths; where even these are one, the names in the file.
        distinct = len({long for long, _ in pieces}) == len(pieces)
        for (layer, path), piece in pieces:
            matrix = path if distinct or piece.cut else piece.tensor
            while (layer, matrix) in found:
                matrix = f"{matrix} of {piece.tensor}"
            found[layer, matrix] = piece
    return dict(sorted(found.items(), key=lambda item: in_order(item[0])))


def is_weight(path: str, header: Header) -> bool:
    """Whether a tensor is a weight, and no buffer, position or count."""
    if header.dtype in _INTEGERS:
        return False
    if header.dtype not in FLOATS:
        return header.dtype in BITS
    if pattern("buffers", "computed").search(path):
        return False
    return not (len(header.shape) == 4 and pattern("buffers", "mask").search(path))


def in_order(place: Place) -> tuple[bool, int, int, str]:
    """Sorts by layer, then as data flows through it; what is outside of the layers comes last."""
    layer, matrix = place
    known = CLASSICAL.index(matrix) if matrix in CLASSICAL else len(CLASSICAL)
    return layer is None, layer or 0, known, matrix


def _cut(where: Location, header: Header, family: Family) -> Iterator[tuple[str, Cut | None]]:
    """The path of each matrix that a tensor holds, without `.weight`, and how to get it."""
    path = where.path.removesuffix(".weight")
    cuts: Mapping[str, Cut] = {}
    if where.layer is not None and header.dtype in FLOATS:
        cuts = family.cuts(path, header.shape)
    yield from cuts.items() if cuts else [(path, None)]


def _short(path: str) -> str:
    """`self_attn.q_proj` as `q_proj`, `mlp.experts.3.w1` as `experts.3.gate_proj`.

    A name that a layer may have twice is left a path: `self_attn.gate_proj`, `cross_attn.q_proj`.
    """
    if match := _EXPERT.search(path):
        before, last = path[: match.start()], match[2]
        if match[1].startswith("experts"):
            last = _OLD.get(last, last)
        if last in _MLP and "." not in before:
            return f"{match[1]}.{last}"
        return path
    *modules, last = path.removesuffix(".linear").split(".")
    if last in (*_ATTENTION, *_MLP) and all(last in _BLOCKS.get(module, ()) for module in modules):
        return last
    return path


def _part(where: Location, path: str, shape: Shape) -> str:
    if where.kind:
        return "vision" if where.kind == "vision" else "other"
    vector = sum(size > 1 for size in shape) < 2
    for rule in part_rules():
        if (rule.vectors and not vector) or (rule.matrices and vector):
            continue
        if rule.outside and where.layer is not None:
            continue
        if rule.name.search(path):
            return rule.part
    return "other"


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
        return ((None, "lm_head"), embeddings) if ties_embeddings(config) else None
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


def ties_embeddings(config: Mapping[str, Any], *, silent: bool = False) -> bool:
    """Whether config.json ties output and input embeddings; `silent` where it does not tell."""
    inner = config.get("text_config")
    tied = config.get("tie_word_embeddings")
    if tied is None and isinstance(inner, Mapping):
        tied = inner.get("tie_word_embeddings")
    return silent if tied is None else tied is True


def _same_bits(first: Tensor, second: Tensor) -> bool:
    import torch

    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))
