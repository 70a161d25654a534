"""The header of a safetensors file: which tensors it holds, and where."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from mlflow_scalpel.errors import ScalpelError

# Bits of an element, by the name that safetensors gives its dtype.
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64,
    "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Header:
    """A stored tensor: where it is, and what it is."""

    file: Path
    stored_name: str
    dtype: str
    """As safetensors names it: F32, BF16 ..."""
    shape: tuple[int, ...]
    begin: int
    """Bytes from the beginning of the file to its first element."""
    end: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.begin


def read_headers(file: Path) -> dict[str, Header]:
    """The tensors of a safetensors file by the name that they have there; none of them is read.

    The safetensors library checks the header: dtypes, shapes and offsets that agree, tensors that
    neither overlap nor leave room between them, and a file of just that length.

    Raises ScalpelError that names the file where it cannot be opened or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ScalpelError(f"{file}: is not a file; save or copy the checkpoint again")
    try:
        with safe_open(file, framework="np"):
            pass
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entries = json.loads(stream.read(length), object_pairs_hook=_no_name_twice)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ScalpelError(
            f"{file}: is not a complete safetensors file of {file.stat().st_size} bytes ({error}): "
            "it is cut off, damaged or still being written; save or copy the checkpoint again"
        ) from error
    data = 8 + length
    return {
        name: Header(
            file,
            name,
            entry["dtype"],
            tuple(entry["shape"]),
            data + entry["data_offsets"][0],
            data + entry["data_offsets"][1],
        )
        for name, entry in entries.items()
        if name != "__metadata__"
    }


def _no_name_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"its header has the name {twice!r} twice")
    return found
