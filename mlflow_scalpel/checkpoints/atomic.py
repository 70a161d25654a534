"""Files that other processes, and what comes after a crash, see complete or not at all."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_atomically(
    file: Path, content: bytes, *, durable: bool = False, mode: int = 0o666
) -> None:
    """Write a file, complete or not at all, and make its directory where there is none.

    Args:
        file: what is written, or replaced.
        content: all of it.
        durable: whether it survives a power cut once this has returned.
        mode: permissions, from which the process's umask is taken.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        handle = os.open(scratch, os.O_CREAT | os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(handle, "wb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        scratch.replace(file)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    if durable:
        sync(file.parent)


def sync(path: Path) -> None:
    """Have a file, or the names in a directory, survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Let one process at a time do what is done within, of all that ask for the same directory.

    Some network file systems lock no directories: there nobody waits.
    """
    lock = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
