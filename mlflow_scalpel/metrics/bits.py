"""What the stored bits of a weight say: its exponent, and how far apart two weights are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ZERO = -150
"""Stands for the exponent of 0; that of float32's smallest denormal is one more."""


def as_bits(weights: Tensor) -> Tensor:
    """The bits as integers of the same size; nothing is copied."""
    import torch

    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return weights.view(integers[weights.dtype.itemsize])


def exponents(weights: Tensor) -> Tensor:
    """floor(log2 |w|) of each element, int64; `ZERO` for 0 and no lower for what is not 0.

    Of NaN and infinities it is not defined.
    """
    import torch

    wide = weights.double()  # in which no narrower number is a denormal
    return torch.where(wide == 0, ZERO, _double_exponents(wide).clamp_min_(ZERO + 1))


def differ(base: Tensor, checkpoint: Tensor) -> Tensor:
    """Whether the bits of each element differ; dtypes that differ meet in the wider one."""
    import torch

    wide = torch.promote_types(base.dtype, checkpoint.dtype)
    return as_bits(base.to(wide)) != as_bits(checkpoint.to(wide))


def ulps(base: Tensor, checkpoint: Tensor) -> Tensor:
    """How many numbers of the base's dtype each element moved past, float64.

    The checkpoint is rounded to the base's dtype first. +0 and -0 are one number. Exact up to 2^53,
    which only float64 weights exceed.
    """
    before, after = _ordered(base), _ordered(checkpoint.to(base.dtype))
    return after.double().sub_(before).abs_()


def classes(distances: Tensor) -> Tensor:
    """0 for a distance of 0, and 1 + floor(log2 d) for others, int64."""
    return _double_exponents(distances).add_(1).clamp_min_(0)


def _double_exponents(wide: Tensor) -> Tensor:
    """floor(log2 |w|) of float64 numbers; -1023 for 0 and denormals, 1024 for inf and NaN."""
    import torch

    return (wide.view(torch.int64) >> 52).bitwise_and_(0x7FF).sub_(1023)


def _ordered(weights: Tensor) -> Tensor:
    """Integers in the order of the numbers, neighbours one apart: two's complement of the bits."""
    import torch

    bits = as_bits(weights)
    least = torch.iinfo(bits.dtype).min
    wide = bits.long()
    return torch.where(wide < 0, least - wide, wide)
