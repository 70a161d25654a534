"""Floating-point numbers of quantised tensors; pure functions, all of them exact in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# FP4 E2M1 (OCP Microscaling Formats 1.0, table 5): the sign is the highest of the four bits.
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# The column of each nibble of an int32 of AWQ (`gemm`), from the lowest: 0, 4, 1, 5, ...
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def scaled(
    values: Tensor,
    scale: Tensor,
    block: Sequence[int] | None = None,
    zero: Tensor | None = None,
) -> Tensor:
    """(values - zero) x scale, both of the tensor, of each row, or of each block.

    Args:
        values: (..., N, M) float8, int8 or float32.
        scale: (), (1,), (N,), (N, 1) or (..., n, m), of any floating-point dtype; uint8 are
            exponents, each of 2^(scale - 127).
        block: sizes of a block along the last dimensions, where they do not go into N and M.
        zero: of the shape of `scale`.

    Returns:
        (..., N, M) float32. Raises ValueError where the shapes do not fit.
    """
    if scale.dtype == torch.uint8:
        scale = (scale.float() - 127.0).exp2()
    values = values.float()
    if zero is not None:
        values = values - _spread(zero.float(), values, block)
    return values * _spread(scale.float(), values, block)


def _spread(scale: Tensor, values: Tensor, block: Sequence[int] | None) -> Tensor:
    """A scale of as many dimensions as the values, each of them 1 or as long as theirs.

    A dimension that is neither is a number of blocks; a vector is of the rows.
    """
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.ndim == 1 and values.ndim > 1 and len(scale) == values.shape[-2]:
        scale = scale[:, None]
    if scale.ndim != values.ndim:
        raise ValueError(f"scales {tuple(scale.shape)} for values {tuple(values.shape)}")
    for axis, (size, count) in enumerate(zip(values.shape, scale.shape, strict=True)):
        if count in (1, size):
            continue
        back = values.ndim - axis
        width = block[-back] if block and back <= len(block) else 0
        if not width or -(-size // width) != count:
            if size % count:
                raise ValueError(f"scales {tuple(scale.shape)} for values {tuple(values.shape)}")
            width = size // count
        scale = scale.repeat_interleave(width, axis).narrow(axis, 0, size)
    return scale


def fp4(packed: Tensor) -> Tensor:
    """(..., n) uint8, two numbers a byte, the lower nibble first -> (..., 2 n) float32."""
    table = torch.tensor([*_FP4, *(-one for one in _FP4)])
    nibbles = torch.stack([packed & 15, packed >> 4], -1).flatten(-2)
    return table[nibbles.long()]


def mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """Experts of gpt-oss, in blocks of 32 numbers with one power of two each.

    OCP Microscaling Formats 1.0: value = FP4 x 2^(scale - 127).

    Args:
        blocks: (E, N, G, 16) uint8.
        scales: (E, N, G) uint8.

    Returns:
        (E, 32 G, N) float32: as the unquantised model stores them.
    """
    values = torch.ldexp(fp4(blocks), scales.int()[..., None] - 127)  # (E, N, G, 32)
    return values.flatten(-2).transpose(-1, -2).contiguous()


def nvfp4(packed: Tensor, scale: Tensor, global_scale: Tensor) -> Tensor:
    """value = FP4 x the scale of its 16 x the scale of the tensor.

    Args:
        packed: (N, M / 2) uint8.
        scale: (N, M / 16) float8.
        global_scale: one number, which multiplies.
    """
    return scaled(fp4(packed), scale.float() * global_scale.float().reshape(()))


def unpacked(packed: Tensor, bits: int, axis: int) -> Tensor:
    """Unsigned numbers of `bits` bits out of int32, from the lowest bits on, along an axis."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    axis %= packed.ndim
    shape = [1] * (packed.ndim + 1)
    shape[axis + 1] = len(shifts)
    apart = (packed.unsqueeze(axis + 1) >> shifts.view(shape)) & (2**bits - 1)
    return apart.flatten(axis, axis + 1)


def gptq(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, groups: Tensor, bits: int, *, shifted: bool
) -> Tensor:
    """W[o, i] = (q[i, o] - z[g(i), o]) s[g(i), o] (Frantar et al. 2022, as AutoGPTQ stores it).

    Args:
        qweight: (I bits / 32, O) int32.
        qzeros: (G, O bits / 32) int32.
        scales: (G, O).
        groups: (I,) group of each input.
        shifted: whether z - 1 is stored, as all but the format `gptq_v2` do.

    Returns:
        (O, I) float32.
    """
    q = unpacked(qweight, bits, 0)[: len(groups)]  # (I, O)
    z = unpacked(qzeros, bits, 1)[:, : scales.shape[1]]  # (G, O)
    if shifted:
        z = (z + 1) & (2**bits - 1)
    groups = groups.long()
    return ((q - z[groups]).float() * scales.float()[groups]).T.contiguous()


def awq(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Tensor:
    """W[o, i] = (q[i, o] - z[g(i), o]) s[g(i), o], 4 bits (Lin et al. 2023, the `gemm` layout).

    Args:
        qweight: (I, O / 8) int32, whose nibbles are the columns 0, 2, 4, 6, 1, 3, 5, 7.
        qzeros: (G, O / 8) int32 of the same order.
        scales: (G, O).

    Returns:
        (O, I) float32.
    """

    def ordered(packed: Tensor) -> Tensor:
        columns = unpacked(packed, 4, 1).unflatten(1, (-1, 8))
        return columns[:, :, list(_AWQ_ORDER)].flatten(1)

    size = len(qweight) // len(scales)
    q, z = ordered(qweight), ordered(qzeros).repeat_interleave(size, 0)
    return ((q - z).float() * scales.float().repeat_interleave(size, 0)).T.contiguous()


def lookup(codes: Tensor, table: Tensor, absmax: Tensor, block: int) -> Tensor:
    """value = table[code] x the largest magnitude of its block (Dettmers et al. 2022).

    Args:
        codes: (n,) integers.
        table: (16,) or (256,).
        absmax: (ceil(n / block),).

    Returns:
        (n,) float32.
    """
    return table.float()[codes.long()] * absmax.float().repeat_interleave(block)[: len(codes)]


def nf4(
    packed: Tensor,
    table: Tensor,
    absmax: Tensor,
    block: int,
    shape: Sequence[int],
    nested: tuple[Tensor, Tensor, int, float] | None = None,
) -> Tensor:
    """4-bit weights of bitsandbytes (nf4, fp4), the upper nibble first; `shape` in float32.

    Args:
        packed: (n / 2, 1) uint8.
        table: (16,) the number of each code.
        absmax: one number a block; uint8 codes where `nested` is given.
        nested: table, absmax, block and offset with which `absmax` itself is quantised.
    """
    if nested is not None:
        inner, largest, size, offset = nested
        absmax = lookup(absmax.flatten(), inner, largest, size) + offset
    flat = packed.flatten()
    codes = torch.stack([flat >> 4, flat & 15], -1).flatten()
    count = 1
    for one in shape:
        count *= one
    return lookup(codes, table, absmax, block)[:count].reshape(*shape)
