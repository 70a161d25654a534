"""The tensors of a model's directory: files, index, headers, and values read one at a time."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.documents import read_object
from mlflow_scalpel.tensors.names import unwrapped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


# Bits of an element, by the name that safetensors gives its dtype.
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64,
    "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
# PyTorch's names of the floating-point numbers that it computes with.
TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FLOATS = tuple(TORCH_NAMES)
WEIGHTS = ".safetensors"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")


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


def read_stored_bytes(header: Header) -> NDArray[np.uint8]:
    """The bytes of a stored tensor, (header.bytes,) uint8.

    Read, not mapped: a mapped file that somebody cuts off meanwhile ends the process.
    """
    import numpy as np

    return np.fromfile(header.file, np.uint8, count=header.bytes, offset=header.begin)


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


def is_adapter(directory: Path) -> bool:
    """Whether the directory holds a PEFT adapter (such as LoRA) and not a complete model."""
    return (directory / ADAPTER_CONFIG).is_file()


def holds_codes(directory: Path) -> bool:
    """Whether the weights in `directory` are quantised: matrices that are stored as codes.

    Raises ScalpelError for files that cannot be read.
    """
    headers = TensorFiles(directory).headers
    return any(
        header.dtype not in FLOATS and name.endswith((".weight", ".qweight"))
        for name, header in headers.items()
    )


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that Transformers or PEFT would read in `directory`, sorted by name.

    An adapter's weights are in `adapter_model.safetensors`; a model's in `model.safetensors`, or in
    the shards that the index names, or in the only safetensors file that is there.

    Raises ScalpelError that names the files where none is there, where a shard is missing, or where
    it cannot be told which are the model's.
    """
    there = sorted(file for file in directory.glob(f"*{WEIGHTS}"))
    if is_adapter(directory):
        wanted = directory / ADAPTER_WEIGHTS
        if wanted not in there:
            raise ScalpelError(
                f"{directory}: holds no {ADAPTER_WEIGHTS}; save the adapter with "
                "save_pretrained(..., safe_serialization=True)"
            )
        return [wanted]
    single, index = directory / SINGLE, directory / INDEX
    if index.is_file():
        shards = sorted({directory / shard for shard in read_index(index).values()})
        if single in there and single not in shards:
            raise ScalpelError(
                f"{directory}: holds {SINGLE}, and {INDEX}, which names other files; Transformers "
                "reads the first and other tools the others: delete those that are not current"
            )
        for shard in shards:
            if shard not in there:
                raise ScalpelError(
                    f"{shard}: is missing, and {INDEX} names it; copy it there, or save the "
                    "checkpoint again"
                )
        return shards
    if single in there:
        return [single]
    own = [file for file in there if file.name != ADAPTER_WEIGHTS]
    if len(own) == 1 and not _SHARD.search(own[0].name):
        return own
    if not own:
        pickles = sorted(file.name for file in directory.glob("*.bin"))
        found = f" ({', '.join(pickles)} is a pickle, which is never opened)" if pickles else ""
        raise ScalpelError(
            f"{directory}: holds no {WEIGHTS} file{found}; save the model with "
            "save_pretrained(..., safe_serialization=True)"
        )
    if numbered := [match for file in own if (match := _SHARD.search(file.name))]:
        count = int(numbered[0][2])
        there_are = {int(match[1]) for match in numbered}
        missing = [str(number) for number in range(1, count + 1) if number not in there_are]
        also = f" and the shards {', '.join(missing[:8])} of {count}" if missing else ""
        raise ScalpelError(
            f"{directory}: {INDEX}{also} is missing: it is still being written, or was cut off; "
            "save the checkpoint again"
        )
    raise ScalpelError(
        f"{directory}: holds {', '.join(file.name for file in own[:4])}"
        f"{' ...' if len(own) > 4 else ''} and neither {SINGLE} nor {INDEX}, so that it is not "
        "known which tensors the model has: it is still being written, was cut off, or holds the "
        "shards of several processes; save the complete model with save_pretrained"
    )


def read_index(index: Path) -> dict[str, str]:
    """Name of the file of each tensor, as `model.safetensors.index.json` says.

    Raises ScalpelError where it cannot be read, or names a file in another directory.
    """
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ScalpelError(
            f"{index}: its weight_map does not map tensors to files; save the checkpoint again"
        )
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or "\0" in shard:
            raise ScalpelError(
                f"{index}: places {tensor!r} in {shard!r}, which is not the name of a file beside "
                "it, and is not followed; save the checkpoint again"
            )
    return weight_map


class TensorFiles:
    """The tensors of a model's directory by name, memory-mapped and read one at a time.

    Names are given without what wrappers add (`_orig_mod.`, `module.`, ...); `headers[name]` has
    the name in the file.

    Raises ScalpelError for a file that is not complete, for a tensor that the index places in a
    file that does not hold it, and for one name in two files.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = weight_files(directory)
        self.headers: dict[str, Header] = {}
        index = directory / INDEX
        placed = read_index(index) if index.is_file() and not is_adapter(directory) else {}
        stored = {file.name: read_headers(file) for file in self.files}
        for tensors in stored.values():
            for header in tensors.values():
                self._add(header)
        for name, shard in placed.items():
            if name not in stored[shard]:
                raise ScalpelError(
                    f"{directory / shard}: has no tensor {name}, which {INDEX} places there; "
                    "save the checkpoint again"
                )

    @cached_property
    def unread(self) -> list[str]:
        """Names of the safetensors files in the directory that are not the model's."""
        own = {file.name for file in self.files}
        return sorted(
            file.name for file in self.directory.glob(f"*{WEIGHTS}") if file.name not in own
        )

    def read(self, name: str) -> Tensor:
        """The tensor, in its own dtype; the file's own pages, of which nothing is copied.

        Raises ScalpelError for a dtype that PyTorch does not have.
        """
        from safetensors import SafetensorError

        header = self.headers[name]
        try:
            tensor: Tensor = self._handle(header.file).get_tensor(header.stored_name)
        except SafetensorError as error:
            raise ScalpelError(
                f"{header.file}: the tensor {header.stored_name} of {header.dtype} cannot be read "
                f"({error}); save it in a dtype that PyTorch has"
            ) from error
        return tensor

    def _handle(self, file: Path) -> Any:
        from safetensors import safe_open

        if file not in self._handles:
            self._handles[file] = safe_open(file, framework="pt")
        return self._handles[file]

    @cached_property
    def _handles(self) -> dict[Path, Any]:
        return {}

    def _add(self, header: Header) -> None:
        name = unwrapped(header.stored_name)
        if ".base_layer." in name and not is_adapter(self.directory):
            raise ScalpelError(
                f"{header.file}: holds {header.stored_name}, of a model with a PEFT adapter that "
                "is neither merged nor saved apart; merge it first (merge_and_unload), or save the "
                "adapter with save_pretrained"
            )
        known = self.headers.setdefault(name, header)
        if known is not header:
            raise ScalpelError(
                f"{header.file}: holds the tensor {header.stored_name}, and {known.file} holds "
                f"{known.stored_name}: one name, two tensors; delete the file that is not current, "
                "or save the checkpoint again"
            )
