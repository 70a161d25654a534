"""The record of a cache entry's files, written before the entry counts, and compared later.

Sizes, and the times of the last change, are compared at every use; digests once a week (or as
`$SCALPEL_CACHE_DAYS` says), where a file was touched, and on request.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mlflow_scalpel.checkpoints.atomic import sync, write_atomically
from mlflow_scalpel.checkpoints.manifest import sha256
from mlflow_scalpel.errors import ScalpelError

DAYS_VARIABLE = "SCALPEL_CACHE_DAYS"
DEFAULT_DAYS = 7.0
_THREADS = 4  # hashing lets other Python threads run


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bytes: int
    changed: int
    """Time of the last change, in nanoseconds since 1970."""
    sha256: str


class Record(BaseModel):
    """The files of one entry, by their path in it."""

    model_config = ConfigDict(extra="forbid")

    files: dict[str, _File]
    checked: float
    """Seconds since 1970 when the digests were last compared."""

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """The record in a file; None where there is none, or none that can be read."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, path: Path) -> None:
        """Write it, complete or not at all, and to the disk."""
        write_atomically(path, self.model_dump_json().encode(), durable=True)

    def problem(self, folder: Path, *, digests: bool) -> str | None:
        """The fault of an entry; None where it has none. Notes when digests were compared."""
        found = {str(file.relative_to(folder)): file for file in _files(folder)}
        for name in sorted(self.files.keys() ^ found.keys()):
            return f"{name} is missing" if name in self.files else f"{name} was not stored with it"
        touched = []
        for name, file in found.items():
            stat, known = file.stat(), self.files[name]
            if stat.st_size != known.bytes:
                return f"{name} has {stat.st_size} bytes in place of {known.bytes}"
            if digests or stat.st_mtime_ns != known.changed:
                touched.append(name)
        with ThreadPoolExecutor(_THREADS) as pool:
            for name, digest in zip(
                touched, pool.map(lambda name: sha256(found[name]), touched), strict=True
            ):
                if digest != self.files[name].sha256:
                    return f"{name} has other bytes than it was stored with"
                self.files[name].changed = found[name].stat().st_mtime_ns
        if digests:
            self.checked = time.time()
        return None

    @property
    def is_due(self) -> bool:
        """Whether the digests were compared too long ago."""
        return not 0 <= time.time() - self.checked < _days() * 86400


def record_of(folder: Path) -> Record:
    """The record of a folder whose files are right, after they were written to the disk."""
    files = sorted(_files(folder))
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(_sync_and_hash, files))
    for inner in sorted({file.parent for file in files} | {folder}):
        sync(inner)
    described = {
        str(file.relative_to(folder)): _File(
            bytes=file.stat().st_size, changed=file.stat().st_mtime_ns, sha256=digest
        )
        for file, digest in zip(files, digests, strict=True)
    }
    return Record(files=described, checked=time.time())


def _sync_and_hash(file: Path) -> str:
    sync(file)
    return sha256(file)


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_symlink() or file.is_file())


def _days() -> float:
    given = os.environ.get(DAYS_VARIABLE) or str(DEFAULT_DAYS)
    try:
        days = float(given)
    except ValueError:
        days = math.nan
    if not days >= 0:
        raise ScalpelError(
            f"{DAYS_VARIABLE} = {given!r}: is not a number of days; give the days after which the "
            f"files in the cache are compared with their digests again, such as {DAYS_VARIABLE}=1"
        )
    return days
