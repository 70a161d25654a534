"""Keeps what came from remote stores, so that it travels once; safe for many processes at once.

An entry is a directory, `entries/KEY`. It is filled as `partial/KEY`, which survives a crash and is
continued, and becomes visible complete, by a rename, once its files and the record of them
(`records/KEY`) are on the disk; what does not agree with its record is filled again. The lock
`locks/KEY` is held exclusively while the entry is filled, and shared by each process that uses it
until that process ends: what somebody reads is never evicted. The kernel frees the locks of a
process that dies, however it dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow_scalpel.checkpoints.atomic import sync
from mlflow_scalpel.checkpoints.reading.cache_records import Record, record_of
from mlflow_scalpel.errors import ScalpelError

DIRECTORY_VARIABLE = "SCALPEL_CACHE"
LIMIT_VARIABLE = "SCALPEL_CACHE_GB"
DEFAULT_GB = 100.0
_held: dict[Path, int] = {}  # entry -> descriptor of its lock, for the life of this process


def directory() -> Path:
    """`$SCALPEL_CACHE`, else `mlflow-scalpel` in `$XDG_CACHE_HOME` or `~/.cache`."""
    named = os.environ.get(DIRECTORY_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches).absolute() / "mlflow-scalpel"


def limit() -> int:
    """Bytes that the entries may take together: `$SCALPEL_CACHE_GB` x 1e9, else 100e9."""
    given = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_GB)
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise ScalpelError(
            f"{LIMIT_VARIABLE} = {given!r}: is not a size; give the gigabytes that the cache "
            f"{directory()} may take, such as {LIMIT_VARIABLE}=50"
        )
    return int(gigabytes * 1e9)


def keep(key: str, size: int, fill: Callable[[Path], None], *, check: bool = False) -> Path:
    """The directory of the entry `key`; `fill` puts its files there if it is not there yet.

    The files stay until this process ends, or calls `release`; nobody may write to them.

    Args:
        key: names the content, so that equal keys mean equal files.
        size: bytes that the entry will have; what was used longest ago is evicted to make room.
        fill: gets the directory to fill, in which an earlier attempt may have left files.
        check: compare the digests of what is there, and not only sizes and times.

    Raises:
        ScalpelError: the entry does not fit, or is damaged and in use elsewhere. What `fill`
            raises: the entry is not there then.
    """
    root = directory()
    entry = root / "entries" / key
    with _explained(root):
        for folder in ("entries", "partial", "locks", "records"):
            (root / folder).mkdir(parents=True, exist_ok=True)
    while True:
        if _use(entry) and _is_right(root, key, check):
            return entry
        lock = _open_lock(root, key)
        try:
            _wait_shared(lock, entry)
            if not entry.is_dir():
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not entry.is_dir() and _is_in_place(lock, root, key):
                    _make_room(root, key, lock, size)
                    partial = root / "partial" / key
                    partial.mkdir(exist_ok=True)
                    fill(partial)
                    record_of(partial).write(root / "records" / key)
                    partial.rename(entry)
                    sync(entry.parent)
                    check = False  # it was hashed just now
                fcntl.flock(lock, fcntl.LOCK_SH)
            # Between the two locks another process may have evicted it: then once more.
            if entry.is_dir() and _is_in_place(lock, root, key) and entry not in _held:
                _held[entry] = lock
                lock = -1
        finally:
            if lock >= 0:
                os.close(lock)


def find(key: str, *, check: bool = False) -> Path | None:
    """The entry `key` if it is there and right, held like one from `keep`; None if not."""
    entry = directory() / "entries" / key
    if not entry.is_dir():
        return None
    with contextlib.suppress(_NotThere):
        return keep(key, 0, _refuse, check=check)
    return None


def release(entry: Path) -> None:
    """Let go of an entry that this process reads no more; it may be evicted from now on."""
    lock = _held.pop(entry, None)
    if lock is not None:
        os.close(lock)


def protect(folder: Path) -> None:
    """Make all files below a directory read-only: who writes into an entry harms its readers."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o444)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise ScalpelError if the disk of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ScalpelError(
            f"{folder}: {what} needs {needed} bytes ({needed / 1e9:.3g} GB), and the disk has "
            f"{free} free ({free / 1e9:.3g} GB); free some, or take another disk "
            f"(--dst, or {DIRECTORY_VARIABLE} for the cache)"
        )


class _NotThere(Exception):
    """An entry that was evicted just before it could be held."""


def _refuse(partial: Path) -> None:
    raise _NotThere(str(partial))


def _use(entry: Path) -> bool:
    """Whether this process holds the entry; tells the others that it was used just now."""
    if entry not in _held:
        return False
    if not entry.is_dir():  # somebody emptied the cache by hand
        release(entry)
        return False
    os.utime(_held[entry])
    return True


def _is_right(root: Path, key: str, check: bool) -> bool:
    """Whether a held entry is as it was stored; one that is not is removed, with a message.

    Raises ScalpelError where another process uses it.
    """
    entry, path = root / "entries" / key, root / "records" / key
    record = Record.read(path)
    if record is None:
        problem: str | None = "there is no record of what it should hold"
    else:
        before = record.model_copy(deep=True)
        problem = record.problem(entry, digests=check or record.is_due)
        if problem is None:
            if record != before:
                with contextlib.suppress(OSError):  # others then compare the digests again
                    record.write(path)
            return True
    print(f"{entry}: is damaged ({problem}), and is made again", file=sys.stderr)
    release(entry)
    with _only_one(root):
        if not _evict(root, key) and entry.is_dir():
            raise ScalpelError(
                f"{entry}: is damaged ({problem}), and other processes use it; end them, and run "
                "this again: it is made again then"
            )
    return False


def _open_lock(root: Path, key: str) -> int:
    return os.open(root / "locks" / key, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _is_in_place(lock: int, root: Path, key: str) -> bool:
    """Whether the open lock is still the one that others will find under its name."""
    try:
        named = os.stat(root / "locks" / key)
    except FileNotFoundError:
        return False
    return named.st_ino == os.fstat(lock).st_ino


def _wait_shared(lock: int, entry: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        if not entry.is_dir():
            print(f"waiting for the process that puts {entry} into the cache", file=sys.stderr)
        fcntl.flock(lock, fcntl.LOCK_SH)


@dataclass(frozen=True)
class _Item:
    key: str
    bytes: int
    used: float
    """When it was used last."""
    free: bool
    """Whether nobody used it just now."""


def _make_room(root: Path, key: str, lock: int, size: int) -> None:
    """Reserve `size` bytes for `key`, and evict what was used longest ago until they fit."""
    if size == 0:
        return
    most = limit()
    if size > most:
        raise ScalpelError(
            f"{root}: an entry of {size} bytes does not fit into the cache of {most / 1e9:.3g} GB; "
            f"set {LIMIT_VARIABLE} to at least {math.ceil(size / 1e9)}, or give the files a "
            "directory of their own (--dst)"
        )
    with _explained(root), _only_one(root):
        items = [item for item in _items(root) if item.key != key]
        used = sum(item.bytes for item in items)
        evictable = sorted((item for item in items if item.free), key=lambda item: item.used)
        if used - sum(item.bytes for item in evictable) + size > most:
            raise ScalpelError(
                f"{root}: {size} bytes do not fit into the cache of {most / 1e9:.3g} GB, "
                "because running processes (this one included) use the rest; raise "
                f"{LIMIT_VARIABLE}, let the others end, or give the files a directory of their "
                "own (--dst)"
            )
        there = _tree_bytes(root / "partial" / key)
        for item in evictable:
            if used + size <= most and shutil.disk_usage(root).free >= size - there:
                break
            if _evict(root, item.key):
                used -= item.bytes
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(size).encode(), 0)


def _items(root: Path) -> Iterator[_Item]:
    """Every key of the cache, with what it takes or will take once it is filled."""
    for path in sorted((root / "locks").iterdir()):
        lock = _open_lock(root, path.name)
        try:
            free = _is_free(lock)
            size = _tree_bytes(root / "entries" / path.name)
            if not size:
                size = (
                    _tree_bytes(root / "partial" / path.name)
                    if free
                    else int(os.pread(lock, 40, 0) or b"0")
                )
            yield _Item(path.name, size, os.fstat(lock).st_mtime, free)
        finally:
            os.close(lock)


def _is_free(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _evict(root: Path, key: str) -> bool:
    """Remove an entry, or what an attempt left of one, unless somebody uses it."""
    lock = _open_lock(root, key)
    try:
        if not _is_free(lock):
            return False
        for folder in ("entries", "partial"):
            evicted = root / folder / key
            if evicted.is_dir():
                # Renamed first: an entry is there complete or not at all.
                shutil.rmtree(evicted.rename(root / "trash" / uuid.uuid4().hex))
        (root / "records" / key).unlink(missing_ok=True)
        (root / "locks" / key).unlink()
    finally:
        os.close(lock)
    return True


@contextlib.contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """One process at a time decides what is evicted; the one before it may have died meanwhile."""
    lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        trash = root / "trash"
        if trash.is_dir():
            shutil.rmtree(trash)
        trash.mkdir()
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def _explained(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ScalpelError(
            f"{root}: the cache cannot be kept there ({error}); name a directory that can be "
            f"written to with {DIRECTORY_VARIABLE}"
        ) from error


def _tree_bytes(folder: Path) -> int:
    """Bytes of all files below a directory; 0 where there is none."""
    if not folder.is_dir():
        return 0
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
