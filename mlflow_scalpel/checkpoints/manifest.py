"""The manifest of a checkpoint: what its files and tensors are, down to the bit.

Files carry a SHA-256, which also withstands somebody who means harm. Tensors carry an XXH3-128,
ten times as fast, which tells two tensors apart and finds damage, but no forger.
"""

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
from mlflow_scalpel.tensors.files import WEIGHTS, read_headers

# Bytes read at a time. (hashlib.file_digest reads a quarter of that, and asks four times as often
# for the interpreter's lock, which it shares with training.)
_PIECE = 1 << 20


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredTensor(_Frozen):
    """A tensor of a safetensors file."""

    dtype: str
    """As safetensors names it: F32, BF16 ..."""
    shape: tuple[int, ...]
    digest: str
    """XXH3-128 over the tensor's bytes, as "xxh3:<32 hex digits>"."""


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
    file is not whole.
    """
    # The file's digest and its tensors' are taken side by side: both release the GIL, and the
    # second reading comes from the page cache.
    # (ThreadPool, because a concurrent.futures pool takes no work while the interpreter exits, when
    # the last checkpoint may still be on its way.)
    with ThreadPool(2) as pool:
        digests = pool.map_async(sha256, files, chunksize=1)
        tensors = pool.map_async(_tensors, files, chunksize=1)
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

    Raises ScalpelError where it is no manifest, or names a file outside of the checkpoint.
    """
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise ScalpelError(f"{name}: is no manifest of a checkpoint: {error}") from error
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


def damage(directory: Path, manifest: Manifest) -> dict[str, str]:
    """What is wrong with each file in `directory` that is not as the manifest says; {} if whole."""
    found = {}
    for name, described in manifest.files.items():
        problem = file_damage(directory / name, described)
        if problem is not None:
            found[name] = problem
    return found


def file_damage(file: Path, described: StoredFile) -> str | None:
    """What is wrong with a file that should be as described; None where nothing is."""
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
    changed = _changed_tensors(file, described)
    return f"has SHA-256 {digest[:12]}... in place of {described.sha256[:12]}...{changed}"


def sha256(file: Path) -> str:
    """SHA-256 of a file, 64 hex digits; raises ScalpelError where it cannot be read."""
    whole, piece = hashlib.sha256(), memoryview(bytearray(_PIECE))
    try:
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(piece):
                whole.update(piece[:count])
    except OSError as error:
        raise ScalpelError(f"{file}: cannot be read ({error}); check its permissions") from error
    return whole.hexdigest()


def _changed_tensors(file: Path, described: StoredFile) -> str:
    """Which tensors changed, for a message; empty where that cannot be told."""
    if not described.tensors:
        return ""
    try:
        now = _tensors(file, finite=False)
    except ScalpelError:
        return " (its header is damaged)"
    changed = [name for name, tensor in described.tensors.items() if now.get(name) != tensor]
    return f" (changed: {', '.join(changed[:3])}{' ...' if len(changed) > 3 else ''})"


def _tensors(file: Path, *, finite: bool = True) -> dict[str, StoredTensor]:
    """Describe the tensors of a safetensors file; none for any other file."""
    if file.suffix != WEIGHTS:
        return {}
    import numpy as np
    import xxhash

    described = {}
    for name, header in read_headers(file).items():
        # Read, not mapped: a mapped file that somebody cuts off meanwhile ends the whole process.
        content = np.fromfile(file, np.uint8, count=header.bytes, offset=header.begin)
        described[name] = StoredTensor(
            dtype=header.dtype,
            shape=header.shape,
            digest=f"xxh3:{xxhash.xxh3_128(content.data).hexdigest()}",
        )
        if finite:
            broken = _broken(content, header.dtype)
            if broken:
                raise ScalpelError(
                    f"{file}: tensor {name} holds {broken} values that are NaN or infinite: "
                    "training had diverged when it was saved; take an earlier checkpoint, and "
                    "a smaller learning rate"
                )
    return described


def _broken(content: Any, dtype: str) -> int:
    """How many elements of a tensor are NaN or infinite; `content` is its bytes (uint8 array)."""
    import torch

    floats = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "C64": torch.float32,  # pairs
    }
    if dtype in floats and content.size:
        tensor = torch.from_numpy(content).view(floats[dtype])
        # NaN and infinity survive a sum; only where one shows is every element looked at.
        return 0 if bool(tensor.sum().isfinite()) else int((~tensor.isfinite()).sum())
    # Eight bits: the few patterns that are no number (OCP 8-bit floating point, OFP8 and MX).
    patterns = {
        "F8_E4M3": (0x7F, 0xFF),
        "F8_E5M2": (*range(0x7C, 0x80), *range(0xFC, 0x100)),
        "F8_E4M3FNUZ": (0x80,),
        "F8_E5M2FNUZ": (0x80,),
        "F8_E8M0": (0xFF,),
    }
    return sum(int((content == pattern).sum()) for pattern in patterns.get(dtype, ()))
