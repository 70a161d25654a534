"""Pieces of tensors that hold several matrices: fused projections, and experts in one tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_scalpel.tensors.families import Experts, Fused, experts, fused

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

# Names that configurations give to one thing; the first that is there counts.
_NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "attn_config.kv_n_heads"),
    "head_dim": ("head_dim",),
}
_TEXT = ("text_config", "llm_config", "language_config", "thinker_config")


@dataclass(frozen=True)
class Cut:
    """A matrix within a tensor (..., R, C): some of its outputs, by blocks.

    The outputs are seen as `blocks` equal blocks; the piece has those from `start` to `stop` of
    each, in their order. All of the matrix where `stop` is 0.
    """

    expert: int | None = None
    """Index of the first dimension, where the tensor has one matrix for each expert."""
    transposed: bool = False
    """Whether the outputs are the columns of the stored matrix and not its rows."""
    blocks: int = 1
    start: int = 0
    stop: int = 0

    def of(self, tensor: Tensor) -> Tensor:
        """The piece as a matrix (outputs, inputs); a view wherever its rows are evenly spaced."""
        matrix = tensor if self.expert is None else tensor[self.expert]
        if self.transposed:
            matrix = matrix.T
        if not self.stop:
            return matrix
        rows = matrix.unflatten(0, (self.blocks, -1))[:, self.start : self.stop]
        return rows.flatten(0, 1)

    def put(self, tensor: Tensor, piece: Tensor) -> None:
        """Write the piece, as `of` gives it, to where it is in the tensor."""
        matrix = tensor if self.expert is None else tensor[self.expert]
        if self.transposed:
            matrix = matrix.T
        if not self.stop:
            matrix.copy_(piece)
            return
        rows = matrix.unflatten(0, (self.blocks, -1))[:, self.start : self.stop]
        rows.copy_(piece.unflatten(0, (self.blocks, -1)))

    def shape(self, stored: Shape) -> Shape:
        """The piece's shape, where the tensor's is `stored`."""
        outputs, inputs = stored[-2:]
        if self.transposed:
            outputs, inputs = inputs, outputs
        if self.stop:
            outputs = self.blocks * (self.stop - self.start)
        return outputs, inputs


class Family:
    """The layouts of one model, as its configuration describes it.

    Args:
        config: what `config.json` holds; empty where it has none, and then nothing is cut.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        text = dict(config)
        types = [config.get("model_type")]
        for name in _TEXT:
            while isinstance(text.get(name), dict):
                text |= text.pop(name)
                types.append(text.get("model_type"))
        self._config = text
        self._types = frozenset(one for one in types if isinstance(one, str))
        self._fused = [one for one in fused() if self._is(one) and self._holds(one)]
        self._experts = [one for one in experts() if self._is(one)]

    def cuts(self, path: str, shape: Shape) -> dict[str, Cut]:
        """The matrices that a tensor holds, by their path; empty where it is one, or not known.

        Args:
            path: within the layer, without `.weight`.
            shape: as stored.
        """
        if len(shape) == 2:
            for one in self._fused:
                if path == one.tensor or path.endswith(f".{one.tensor}"):
                    return self._pieces(one, path, shape)
        if len(shape) == 3:
            module, _, last = path.rpartition(".")
            for family in self._experts:
                if last in family.tensors and re.search(rf"(?:^|\.)(?:{family.module})$", module):
                    return self._of_experts(family, module, family.tensors[last], shape)
        return {}

    def _pieces(self, one: Fused, path: str, shape: Shape) -> dict[str, Cut]:
        outputs = shape[1 if one.transposed else 0]
        blocks = self._size(one.blocks, outputs)
        sizes = [self._size(size, outputs) for _, size in one.pieces]
        if not blocks or not all(sizes) or blocks * sum(filter(None, sizes)) != outputs:
            return {}
        module, start, found = path.rpartition(".")[0], 0, {}
        for (name, _), size in zip(one.pieces, sizes, strict=True):
            stop = start + (size or 0)
            found[f"{module}.{name}"] = Cut(None, one.transposed, blocks, start, stop)
            start = stop
        return found

    def _of_experts(
        self, family: Experts, module: str, names: list[str], shape: Shape
    ) -> dict[str, Cut]:
        """Each expert's matrices; none where the shape is not the family's."""
        count, rows, columns = shape
        hidden = self._quantity("hidden")
        fused = len(names) > 1
        # Gate and up take the hidden states, and down gives them.
        if not rows * columns or hidden not in (rows, columns):
            return {}
        transposed = family.transposed
        if rows != columns:
            takes = columns == hidden
            transposed = takes if names == ["down_proj"] else not takes
        outputs = columns if transposed else rows
        if fused and outputs % 2:
            return {}
        where = [part for part in module.split(".") if part != "experts"]
        blocks, half = (outputs // 2, 1) if family.interleaved else (1, outputs // 2)
        found = {}
        for expert in range(count):
            for at, name in enumerate(names):
                key = ".".join([*where, "experts", str(expert), name])
                found[key] = (
                    Cut(expert, transposed, blocks, at * half, (at + 1) * half)
                    if fused
                    else Cut(expert, transposed)
                )
        return found

    def _is(self, one: Fused | Experts) -> bool:
        return not self._types.isdisjoint(one.families)

    def _holds(self, one: Fused) -> bool:
        return all(self._config.get(name) is wanted for name, wanted in one.when)

    def _size(self, text: str, height: int) -> int | None:
        """Value of a product such as `heads/kv_heads*head_dim`; None if it is not an integer."""
        for choice in text.split("|"):
            factors = re.findall(r"([*/]?)([^*/]+)", choice)
            found = [
                (sign, height if name == "height" else self._quantity(name))
                for sign, name in factors
            ]
            if any(not number for _, number in found):
                continue
            over = math.prod(number or 0 for sign, number in found if sign != "/")
            under = math.prod(number or 0 for sign, number in found if sign == "/")
            return over // under if over % under == 0 else None
        return None

    def _quantity(self, name: str) -> int | None:
        if name.isdigit():
            return int(name)
        for spelling in _NAMES.get(name, (name,)):
            number: Any = self._config
            for part in spelling.split("."):
                number = number.get(part) if isinstance(number, Mapping) else None
            if isinstance(number, float) and number.is_integer():
                number = int(number)
            if isinstance(number, int) and not isinstance(number, bool) and number > 0:
                return number
        if name == "kv_heads":
            return self._quantity("heads")
        hidden, heads = (
            (self._quantity("hidden"), self._quantity("heads"))
            if name == "head_dim"
            else (None, None)
        )
        return hidden // heads if hidden and heads and hidden % heads == 0 else None
