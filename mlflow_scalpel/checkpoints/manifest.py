"""The manifest of a checkpoint: its files, down to the bit, and the tensors in them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mlflow_scalpel.checkpoints.files import (
    MANIFEST,
    NOT_CONTENT,
    checkpoint_files,
    is_inner_name,
    name_in,
)
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.files import WEIGHTS, read_headers, read_stored_bytes

# Bytes read at a time. (hashlib.file_digest reads a quarter of that, and asks four times as often
# for the interpreter's lock, which it shares with training.)
_PIECE = 1 << 20
_BLOCK = 1 << 16  # elements that are looked at together, and stay in the processor's cache
# The bits of the exponent, all of which are set in NaN and infinity, and the integers that have
# them. (C64 is pairs of F32.)
_EXPONENTS = {
    "F64": ("uint64", 0x7FF0_0000_0000_0000),
    "F32": ("uint32", 0x7F80_0000),
    "F16": ("uint16", 0x7C00),
    "BF16": ("uint16", 0x7F80),
    "C64": ("uint32", 0x7F80_0000),
}
# Eight bits: the few patterns that are not a number (OCP 8-bit floating point, OFP8 and MX).
_NOT_NUMBERS = {
    "F8_E4M3": (0x7F, 0xFF),
    "F8_E5M2": (*range(0x7C, 0x80), *range(0xFC, 0x100)),
    "F8_E4M3FNUZ": (0x80,),
    "F8_E5M2FNUZ": (0x80,),
    "F8_E8M0": (0xFF,),
}


class _Frozen(BaseModel):
    # Fields that another version has written do not make a checkpoint unreadable.
    model_config = ConfigDict(extra="ignore", frozen=True)


class StoredTensor(_Frozen):
    """A tensor of a safetensors file."""

    dtype: str
    """As safetensors names it: F32, BF16 ..."""
    shape: tuple[int, ...]


class StoredFile(_Frozen):
    """A file of a checkpoint."""

    bytes: int
    sha256: str
    """64 hex digits."""
    tensors: dict[str, StoredTensor] = {}


class Manifest(_Frozen):
    """Every file of a checkpoint by name."""

    files: dict[str, StoredFile]

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor of all files by name."""
        return {
            name: tensor for file in self.files.values() for name, tensor in file.tensors.items()
        }

    @property
    def digest(self) -> str:
        """SHA-256 over names and content of the files, as "sha256:<64 hex digits>"."""
        lines = [f"{file.sha256}  {name}\n" for name, file in sorted(self.files.items())]
        return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"

    def write(self, directory: Path) -> Path:
        """Write the manifest beside the files that it lists."""
        path = directory / MANIFEST
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return path


def make_manifest(files: Sequence[Path], root: Path) -> Manifest:
    """Read every file once, two at a time, and describe it; names are relative to `root`.

    Raises ScalpelError that names file and tensor where a tensor holds NaN or infinity, or where a
    file is not complete.
    """
    # Files are hashed and searched for NaN side by side: both release the GIL, and the second
    # reading comes from the page cache.
    # (ThreadPool, because a concurrent.futures pool takes no work while the interpreter exits, when
    # the last checkpoint may still be on its way.)
    with ThreadPool(2) as pool:
        digests = pool.map_async(sha256, files, chunksize=1)
        tensors = pool.map_async(_finite_tensors, files, chunksize=1)
        described = {
            name_in(root, file): StoredFile(
                bytes=file.stat().st_size, sha256=digest, tensors=inside
            )
            for file, digest, inside in zip(files, digests.get(), tensors.get(), strict=True)
        }
    return Manifest(files=described)


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest in `directory`; None where there is none (a model that MLflow itself logged)."""
    path = directory / MANIFEST
    return parse_manifest(path.read_bytes(), str(path)) if path.is_file() else None


def parse_manifest(content: bytes, name: str) -> Manifest:
    """A manifest from its JSON; `name` is what an error calls it.

    Raises ScalpelError where it is not a manifest, or names a file outside of the checkpoint.
    """
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise ScalpelError(f"{name}: is not a manifest of a checkpoint: {error}") from error
    for file in manifest.files:
        if not is_inner_name(file) or file in NOT_CONTENT:
            raise ScalpelError(
                f"{name}: lists {file!r}, which leads out of the checkpoint; "
                "the manifest was tampered with, and the checkpoint is not used"
            )
    return manifest


def content_digest(directory: Path) -> str:
    """SHA-256 over names and content of the checkpoint's files, as "sha256:<64 hex digits>"."""
    return plain_manifest(directory).digest


def plain_manifest(directory: Path) -> Manifest:
    """The manifest of the checkpoint in a directory, without looking at its tensors."""
    return file_manifest(checkpoint_files(directory), directory)


def file_manifest(files: Sequence[Path], root: Path) -> Manifest:
    """The manifest of the files, without looking at their tensors; names are relative to `root`."""
    return Manifest(
        files={
            name_in(root, f): StoredFile(bytes=f.stat().st_size, sha256=sha256(f)) for f in files
        }
    )


def file_damage(file: Path, described: StoredFile) -> str | None:
    """The fault of a file that should be as described; None where it has none."""
    if file.is_symlink():
        return f"is a link to {file.readlink()}, and a stored file never is"
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    if size != described.bytes:
        return f"has {size} bytes in place of {described.bytes}"
    digest = sha256(file)
    if digest == described.sha256:
        return None
    return f"has SHA-256 {digest[:12]}... in place of {described.sha256[:12]}..."


def sha256(file: Path) -> str:
    """SHA-256 of a file, 64 hex digits; raises ScalpelError where it cannot be read."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(_PIECE))
    try:
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(piece):
                digest.update(piece[:count])
    except OSError as error:
        raise ScalpelError(f"{file}: cannot be read ({error}); check its permissions") from error
    return digest.hexdigest()


def tensors_in(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, none of which is read; {} for any other file.

    Raises ScalpelError where it is not complete.
    """
    if file.suffix != WEIGHTS:
        return {}
    return {
        name: StoredTensor(dtype=header.dtype, shape=header.shape)
        for name, header in read_headers(file).items()
    }


def _finite_tensors(file: Path) -> dict[str, StoredTensor]:
    """As `tensors_in`; raises ScalpelError where an element is NaN or infinite."""
    if file.suffix != WEIGHTS:
        return {}
    for name, header in read_headers(file).items():
        broken = _count_not_finite(read_stored_bytes(header), header.dtype)
        if broken:
            raise ScalpelError(
                f"{file}: tensor {name} holds {broken} values that are NaN or infinite: "
                "training had diverged when it was saved; take an earlier checkpoint, and "
                "a smaller learning rate"
            )
    return tensors_in(file)


def _count_not_finite(content: Any, dtype: str) -> int:
    """Number of elements of a tensor that are NaN or infinite; `content` is its bytes (uint8)."""
    import numpy as np

    if dtype in _EXPONENTS:
        width, mask = _EXPONENTS[dtype]
        bits, exponent = content.view(width), np.dtype(width).type(mask)
        blocks = (bits[at : at + _BLOCK] for at in range(0, len(bits), _BLOCK))
        return sum(int(np.count_nonzero((block & exponent) == exponent)) for block in blocks)
    return sum(int((content == pattern).sum()) for pattern in _NOT_NUMBERS.get(dtype, ()))
