"""The tensors of a model as floating-point numbers, under the names of the unquantised model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.documents import CONFIG, read_config
from mlflow_scalpel.tensors.files import FLOATS, Header, TensorFiles

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
_FP8 = ("F8_E4M3", "F8_E5M2")
_NARROW = (*_FP8, "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2", "F4")
# Tensors about how activations are quantised, or how others are packed; not weights.
_AUXILIARY = (
    ".input_scale", ".output_scale", ".activation_scale", ".k_scale", ".v_scale", ".kv_scale",
    ".q_scale", ".prob_scale", ".weight_format", ".input_zero_point", ".output_zero_point",
    ".input_global_scale", ".act_scale", "_activation_scale",
)  # fmt: skip
# What arithmetic on parts of any shape, and settings of any type, may raise.
_ODD = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
_UNFIT = "its quantised parts do not fit each other"
_BNB_STATE = ".quant_state.bitsandbytes__"


class FloatTensors:
    """Each floating-point tensor of a model's directory, dequantised where it is quantised.

    `headers` has them by the name that the unquantised model gives them, with the shape that it
    gives them; a dequantised one is F32, and as long as all that it is made of. Those that
    `reasons` has too cannot be read, each for its reason, and have the dtype and shape that is
    stored. Integers that are not weights (positions, counts, masks) are in `integers`.

    Known are fp8 and int8 with scales, mxfp4, nvfp4, GPTQ, AWQ, compressed-tensors and
    bitsandbytes (4 and 8 bits).

    Raises ScalpelError as `TensorFiles` does.
    """

    def __init__(self, directory: Path) -> None:
        self.files = TensorFiles(directory)
        self.directory = directory
        self.headers: dict[str, Header] = {}
        self.integers: dict[str, Header] = {}
        self.reasons: dict[str, str] = {}
        self._reads: dict[str, Callable[[], Tensor]] = {}
        self._config = _quantization_of(directory)
        self.method = str(self._config.get("quant_method") or "").lower()
        """Of quantisation, as config.json names it; empty where it names none."""
        taken: set[str] = set()
        for name in self.files.headers:
            self._quantised(name, taken)
        for name, header in self.files.headers.items():
            if name in taken or (self._config and name.endswith(_AUXILIARY)):
                continue
            if header.dtype in FLOATS:
                self.headers[name] = header
                self._reads[name] = partial(self.files.read, name)
            elif header.dtype in _NARROW or self._looks_quantised(header):
                self._refuse(name, name, self._not_known(header))
            else:
                self.integers[name] = header
                self._reads[name] = partial(self.files.read, name)

    @property
    def as_stored(self) -> bool:
        """Whether the files hold the model as it is: not quantised, and without prefixes."""
        return not self.quantised and all(
            header.stored_name == name for name, header in self.files.headers.items()
        )

    @property
    def quantised(self) -> bool:
        """Whether any tensor is dequantised, or could not be."""
        return any(
            header is not self.files.headers.get(n) for n, header in self.headers.items()
        ) or bool(self.reasons)

    def check_complete(self) -> None:
        """Raise ScalpelError unless the tensors are the model, and all can be read."""
        if self.reasons:
            name, reason = next(iter(self.reasons.items()))
            raise ScalpelError(f"{self.directory}: {name} {reason}")
        if self.method and not self.quantised:
            raise ScalpelError(
                f"{self.directory}: its config.json says that it is quantised by {self.method}, "
                "and none of its tensors is: it is not known which model is meant; where the "
                "weights are the model, remove quantization_config from config.json"
            )

    def read(self, name: str) -> Tensor:
        """The tensor: the file's own pages in its own dtype, or float32 where it is dequantised.

        Raises ScalpelError for one that `reasons` has, or whose parts do not fit each other.
        """
        if name in self.reasons:
            raise ScalpelError(f"{self.directory}: {name}: {self.reasons[name]}")
        try:
            return self._reads[name]()
        except _ODD as error:
            raise ScalpelError(
                f"{self.directory}: {name}: {_UNFIT} ({type(error).__name__}: {error}); save or "
                "copy the checkpoint again"
            ) from error

    def put(self, headers: Mapping[str, Header]) -> None:
        """Take tensors of another file in place of those of their names."""
        self.files.headers |= headers
        for name, header in headers.items():
            self.headers[name] = header
            self.reasons.pop(name, None)
            self._reads[name] = partial(self.files.read, name)

    def _add(self, name: str, shape: Shape, read: Callable[[], Tensor], *parts: str) -> None:
        first = self.files.headers[parts[0]]
        size = sum(self.files.headers[part].bytes for part in parts)
        self.headers[name] = replace(first, dtype="F32", shape=tuple(shape), end=first.begin + size)
        self._reads[name] = read

    def _refuse(self, name: str, stored: str, reason: str) -> None:
        self.headers[name], self.reasons[name] = self.files.headers[stored], reason

    def _quantised(self, name: str, taken: set[str]) -> None:
        """Add the tensor of which `name` is the first part, if it is that of a quantised one."""
        for rule in (
            self._mxfp4, self._bitsandbytes, self._int8_of_bitsandbytes, self._gptq_or_awq,
            self._packed, self._fp4, self._scaled,
        ):  # fmt: skip
            try:
                parts = rule(name)
            except _ODD as error:
                self._refuse(name, name, f"{_UNFIT} ({type(error).__name__}: {error})")
                parts = {name}
            if parts:
                taken.update(parts)
                return

    def _has(self, *names: str) -> bool:
        return all(name in self.files.headers for name in names)

    def _mxfp4(self, name: str) -> set[str]:
        from mlflow_scalpel.tensors.dequantise import mxfp4

        stem = name.removesuffix("_blocks")
        parts = name, f"{stem}_scales"
        if stem == name or not self._has(*parts):
            return set()
        shape = self.files.headers[name].shape
        if len(shape) != 4 or self.files.headers[name].dtype != "U8":
            return set()
        full = shape[0], 2 * shape[2] * shape[3], shape[1]
        self._add(stem, full, lambda: mxfp4(*map(self.files.read, parts)), *parts)
        return set(parts)

    def _bitsandbytes(self, name: str) -> set[str]:
        from mlflow_scalpel.tensors.dequantise import nf4

        state = next(
            (f"{name}{_BNB_STATE}{kind}" for kind in ("nf4", "fp4")
             if self._has(f"{name}{_BNB_STATE}{kind}")), None
        )  # fmt: skip
        if state is None or not self._has(f"{name}.absmax", f"{name}.quant_map"):
            return set()
        parts = {one for one in self.files.headers if one.startswith(f"{name}.")} | {name}
        values = json.loads(bytes(self.files.read(state).tolist()))
        shape, block = tuple(map(int, values["shape"])), int(values["blocksize"])
        size = int(values.get("nested_blocksize") or 1)
        offset = float(values.get("nested_offset") or 0.0)

        def read() -> Tensor:
            get = self.files.read
            nested = None
            if self._has(f"{name}.nested_absmax", f"{name}.nested_quant_map"):
                nested = (
                    get(f"{name}.nested_quant_map"), get(f"{name}.nested_absmax"), size, offset
                )  # fmt: skip
            return nf4(
                get(name), get(f"{name}.quant_map"), get(f"{name}.absmax"), block, shape, nested
            )

        self._add(name, shape, read, *parts)
        return parts

    def _int8_of_bitsandbytes(self, name: str) -> set[str]:
        from mlflow_scalpel.tensors.dequantise import scaled

        scale = f"{name.removesuffix('weight')}SCB"
        if not name.endswith(".weight") or not self._has(scale):
            return set()
        header = self.files.headers[name]
        if header.dtype != "I8":
            return set()
        self._add(
            name,
            header.shape,
            lambda: scaled(self.files.read(name), self.files.read(scale) / 127.0),
            name,
            scale,
        )
        return {name, scale}

    def _gptq_or_awq(self, name: str) -> set[str]:
        stem = name.removesuffix(".qweight")
        needed = name, f"{stem}.qzeros", f"{stem}.scales"
        if stem == name or not self._has(*needed):
            return set()
        parts = {*needed, *(one for one in (f"{stem}.g_idx",) if self._has(one))}
        weight = f"{stem}.weight"
        q, _, s = (self.files.headers[part].shape for part in needed)
        bits = int(self._config.get("bits") or self._config.get("w_bit") or 4)
        packing = str(
            self._config.get("packing_format") or self._config.get("backend") or self.method
        )
        transposed = len(q) == 2 and len(s) == 2 and q[1] == s[1]
        if transposed and "awq" not in packing and bits in (2, 4, 8):
            self._add(weight, (q[1], q[0] * 32 // bits), partial(self._gptq, stem, bits), *parts)
        elif (
            len(q) == 2
            and len(s) == 2
            and q[1] * 8 == s[1]
            and "gptq" not in packing
            and bits == 4
            and self._config.get("version", "gemm").lower() == "gemm"
        ):
            self._add(weight, (s[1], q[0]), partial(self._awq, stem), *parts)
        else:
            layout = self._config.get("version") or self._config.get("checkpoint_format") or packing
            what = f"{self.method or 'GPTQ or AWQ'} of {bits} bits in the layout {layout}"
            self._refuse(weight, name, self._remedy(what))
        return parts

    def _gptq(self, stem: str, bits: int) -> Tensor:
        import torch

        from mlflow_scalpel.tensors.dequantise import gptq

        q, z, s = (self.files.read(f"{stem}.{part}") for part in ("qweight", "qzeros", "scales"))
        inputs = len(q) * 32 // bits
        if self._has(f"{stem}.g_idx"):
            groups = self.files.read(f"{stem}.g_idx")
        else:
            groups = torch.arange(inputs) // -(-inputs // len(s))
        later = "gptq_v2" in str(self._config.get("checkpoint_format", ""))
        return gptq(q, z, s, groups, bits, shifted=not later)

    def _awq(self, stem: str) -> Tensor:
        from mlflow_scalpel.tensors.dequantise import awq

        return awq(*(self.files.read(f"{stem}.{part}") for part in ("qweight", "qzeros", "scales")))

    def _packed(self, name: str) -> set[str]:
        """compressed-tensors: integers in int32, with a scale (and zero) a group or row."""
        stem = name.removesuffix("_packed")
        scale, shape = f"{stem}_scale", f"{stem}_shape"
        if stem == name or not self._has(scale, shape):
            return set()
        parts = {one for one in self.files.headers if one.startswith(f"{stem}_")}
        stored = self.files.headers[name].shape
        size = tuple(map(int, self.files.read(shape).tolist()))
        fitting = [bits for bits in (1, 2, 4, 8) if stored[-1] == -(-size[-1] * bits // 32)]
        if len(fitting) == 1 and stored[:-1] == size[:-1]:
            self._add(stem, size, partial(self._unpack, stem, fitting[0], size), *parts)
        else:
            reason = self._remedy("packed integers of a width that is not 1, 2, 4 or 8")
            self._refuse(stem, name, reason)
        return parts

    def _unpack(self, stem: str, bits: int, size: Shape) -> Tensor:
        from mlflow_scalpel.tensors.dequantise import scaled, unpacked

        middle = 2 ** (bits - 1)
        q = unpacked(self.files.read(f"{stem}_packed"), bits, -1)[..., : size[-1]] - middle
        scale, zero = self.files.read(f"{stem}_scale"), None
        if self._has(f"{stem}_zero_point"):
            zero = unpacked(self.files.read(f"{stem}_zero_point"), bits, -2) - middle
            zero = zero.narrow(-2, 0, size[-2])
        if self._has(f"{stem}_g_idx"):
            groups = self.files.read(f"{stem}_g_idx").long()
            scale = scale[..., groups]
            zero = None if zero is None else zero[..., groups]
        return scaled(q, scale, zero=zero)

    def _fp4(self, name: str) -> set[str]:
        """Two FP4 a byte: nvfp4 with a scale for the tensor too, mxfp4 without one."""
        from mlflow_scalpel.tensors.dequantise import fp4, nvfp4, scaled

        header = self.files.headers[name]
        stem = name.removesuffix("_packed")
        scale = f"{stem}_scale"
        second, divisor = f"{stem}_scale_2", f"{stem}_global_scale"
        global_scale = next((one for one in (second, divisor) if self._has(one)), None)
        if header.dtype != "U8" or len(header.shape) < 2 or not self._has(scale):
            return set()
        if (self.files.headers[scale].dtype == "F8_E4M3") != (global_scale is not None):
            return set()
        if global_scale is None and (stem == name or self.files.headers[scale].dtype != "U8"):
            return set()

        def read() -> Tensor:
            packed, scales = self.files.read(name), self.files.read(scale)
            if global_scale is None:
                return scaled(fp4(packed), scales)
            one = self.files.read(global_scale).float()
            return nvfp4(packed, scales, one if global_scale == second else 1.0 / one)

        parts = {name, scale, *([global_scale] if global_scale else [])}
        self._add(stem, (*header.shape[:-1], 2 * header.shape[-1]), read, *parts)
        return parts

    def _scaled(self, name: str) -> set[str]:
        """fp8 or int8 with a scale for the tensor, for each row, or for each block.

        Beside fp8, int8 are two FP4 a byte: experts of DeepSeek-V4, in blocks of 32.
        """
        import torch

        from mlflow_scalpel.tensors.dequantise import fp4, scaled

        header = self.files.headers[name]
        if header.dtype not in (*_FP8, "I8"):
            return set()
        ends = ("_scale_inv", "_scale")
        scale = next((f"{name}{end}" for end in ends if self._has(f"{name}{end}")), None)
        if scale is None:
            return set()
        zero = f"{name}_zero_point" if self._has(f"{name}_zero_point") else None
        block = self._config.get("weight_block_size")
        paired = header.dtype == "I8" and scale.endswith("_inv")
        shape = (*header.shape[:-1], header.shape[-1] * (2 if paired else 1))

        def read() -> Tensor:
            values = self.files.read(name)
            if paired:
                values = fp4(values.view(torch.uint8))
            return scaled(
                values,
                self.files.read(scale),
                block,
                None if zero is None else self.files.read(zero),
            )

        parts = {name, scale, *([zero] if zero else [])}
        self._add(name, shape, read, *parts)
        return parts

    def _looks_quantised(self, header: Header) -> bool:
        """Integers that are weights: those called so, and matrices of a quantised model."""
        if header.dtype not in ("I8", "U8", "I16", "U16", "I32", "U32"):
            return False
        named = header.stored_name.endswith("weight")
        return named or (bool(self._config) and len(header.shape) >= 2)

    def _not_known(self, header: Header) -> str:
        kind = self.method or "a quantisation that config.json does not name"
        if header.dtype in _FP8:
            return self._remedy(f"{header.dtype} without a scale beside it ({kind})")
        return self._remedy(f"{header.dtype} by {kind}, of which no way back is known here")

    def _remedy(self, what: str) -> str:
        return (
            f"is stored as {what}; where its package is installed, "
            "AutoModelForCausalLM.from_pretrained(...).dequantize().save_pretrained(...) makes a "
            "model that can be measured"
        )


def _quantization_of(directory: Path) -> Mapping[str, Any]:
    """The settings of quantisation in config.json; empty where there are none to read."""
    for content in _configs(directory):
        for place in (content, content.get("text_config")):
            if isinstance(place, dict):
                found = place.get("quantization_config") or place.get("compression_config")
                if isinstance(found, dict):
                    return found
    return {}


def _configs(directory: Path) -> Iterator[Mapping[str, Any]]:
    for name in (CONFIG, "quantize_config.json", "hf_quant_config.json"):
        if content := read_config(directory, name):
            yield content if name == CONFIG else {"quantization_config": content}
