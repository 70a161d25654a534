"""Files of a LoggedModel where MLflow keeps them: a local directory, or a store over the wire."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol

from mlflow_scalpel.errors import ScalpelError

Link = Literal["reflink", "hard", "copy"]
LINKS: tuple[Link, ...] = ("reflink", "hard", "copy")  # the best first
PARALLEL_FILES = 4  # files that travel at the same time

_FICLONE = (
    0x40049409  # linux/fs.h: share the blocks of another file until one of the two is written
)


class Store(Protocol):
    """Where the files of one LoggedModel are."""

    local: Path | None
    """The directory itself, where it is on this machine; None where files travel."""

    def put(self, files: Mapping[str, Path], link: Link | None = None) -> None:
        """Store each file under its name; raises ScalpelError or the store's own error."""

    def fetch(self, name: str, target: Path, progress: Callable[[int], Any] = ...) -> None:
        """Bring one file to `target`, going on where an earlier attempt left off if that works."""

    def sizes(self) -> dict[str, int]:
        """Bytes of each stored file."""

    def delete(self, name: str) -> None:
        """Remove one file; it is no error if it is not there."""


def open_store(location: str) -> Store:
    """The store behind a LoggedModel's `artifact_location`."""
    directory = local_directory(location)
    return RemoteStore(location) if directory is None else LocalStore(directory)


def local_directory(location: str) -> Path | None:
    """The directory that an artifact location names on this machine; None for any other kind."""
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    if not is_local_uri(location, is_tracking_or_registry_uri=False):
        return None
    return Path(local_file_uri_to_path(location))


class LocalStore:
    """A directory on this machine."""

    def __init__(self, directory: Path) -> None:
        self.local: Path | None = directory
        self._directory = directory

    def put(self, files: Mapping[str, Path], link: Link | None = None) -> None:
        """Place each file by the best way that works (`reflink`, `hard`, `copy`), or by `link`."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for name, file in files.items():
            place(file, self._directory / name, link)

    def fetch(
        self, name: str, target: Path, progress: Callable[[int], Any] = lambda count: None
    ) -> None:
        """Copy a file out of the store, sharing its blocks where the file system can.

        Never a hard link: what is done to the copy must not happen to what is stored.
        """
        source = self._inside(name)
        target.unlink(missing_ok=True)
        try:
            place(source, target, "reflink")
        except OSError:
            place(source, target, "copy")
        progress(target.stat().st_size)

    def sizes(self) -> dict[str, int]:
        """Bytes of each stored file."""
        if not self._directory.is_dir():
            return {}
        return {file.name: file.stat().st_size for file in self._directory.iterdir()}

    def delete(self, name: str) -> None:
        """Remove one file."""
        (self._directory / name).unlink(missing_ok=True)

    def _inside(self, name: str) -> Path:
        file = self._directory / name
        if file.is_symlink() or not file.resolve().is_relative_to(self._directory.resolve()):
            raise ScalpelError(
                f"{file}: leads out of the artifact store; no stored file does, and it is not read"
            )
        return file


class RemoteStore:
    """A store that files travel to: MLflow's server as proxy, or an object store."""

    def __init__(self, location: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self.local: Path | None = None
        self._location = location
        self._repository = get_artifact_repository(location)

    def put(self, files: Mapping[str, Path], link: Link | None = None) -> None:
        """Send the files, several at a time, each byte once."""
        for name, file in files.items():
            if file.name != name:
                raise ValueError(f"{file} would be stored as {file.name}, not as {name}")
        with ThreadPoolExecutor(PARALLEL_FILES) as pool:
            sent = [pool.submit(self._repository.log_artifact, str(f)) for f in files.values()]
        for future in sent:
            future.result()

    def fetch(
        self, name: str, target: Path, progress: Callable[[int], Any] = lambda count: None
    ) -> None:
        """Download one file."""
        self._repository._download_file(name, str(target))
        progress(target.stat().st_size)

    def sizes(self) -> dict[str, int]:
        """Bytes of each stored file, as the store lists them."""
        return {
            file.path.rsplit("/", 1)[-1]: int(file.file_size or 0)
            for file in self._repository.list_artifacts()
            if not file.is_dir
        }

    def delete(self, name: str) -> None:
        """Remove one file."""
        self._repository.delete_artifacts(name)


def place(source: Path, target: Path, link: Link | None = None) -> Link:
    """Put the content of `source` at `target`, and say how: the best way, or the given one.

    A reflink or a hard link takes no bytes. What lay at `target` is unlinked first, never written
    over. Raises ScalpelError where the disk is full.
    """
    source = source.resolve()
    target.unlink(missing_ok=True)
    for way in LINKS if link is None else (link,):
        try:
            _place_by(way, source, target)
        except OSError as error:
            target.unlink(missing_ok=True)
            if error.errno == errno.ENOSPC:
                raise ScalpelError(
                    f"{target}: the disk is full, {source.stat().st_size} bytes of {source.name} "
                    "do not fit; free some (`mlflow-scalpel prune` frees stored checkpoints), "
                    "or let MLflow keep its artifacts elsewhere"
                ) from error
            if way == (link or "copy"):
                raise
            continue
        return way
    raise AssertionError("the last way either worked or raised")


def _place_by(way: Link, source: Path, target: Path) -> None:
    if way == "hard":
        os.link(source, target)
    elif way == "copy":
        shutil.copyfile(source, target)
    else:
        with source.open("rb") as read, target.open("wb") as written:
            fcntl.ioctl(written.fileno(), _FICLONE, read.fileno())
