"""Files of a LoggedModel where MLflow keeps them: a local directory, or a store over the wire."""

from __future__ import annotations

import errno
import fcntl
import os
import posixpath
import shutil
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol
from urllib.parse import quote, unquote, urlparse, urlunparse

from mlflow_scalpel.checkpoints.files import is_inner_name
from mlflow_scalpel.errors import DiskFull, ScalpelError

Link = Literal["reflink", "hard", "copy"]
LINKS: tuple[Link, ...] = ("reflink", "hard", "copy")  # the best first
PARALLEL_FILES = 4  # files that travel at the same time
_CHUNK = 1 << 18  # bytes of a download that are written at a time, and lost where it breaks off

_FICLONE = (
    0x40049409  # linux/fs.h: share the blocks of another file until one of the two is written
)


def checked_link(link: Link | None) -> Link | None:
    """The link, which a caller may have spelled otherwise; then ScalpelError is raised."""
    if link is not None and link not in LINKS:
        raise ScalpelError(f"link {link!r}: is not one of {', '.join(LINKS)}; give one")
    return link


class Store(Protocol):
    """The place of the files of one LoggedModel."""

    local: Path | None
    """The directory itself, where it is on this machine; None where files travel."""

    def put(
        self,
        files: Mapping[str, Path],
        link: Link | None = None,
        beat: Callable[[], Any] = lambda: None,
    ) -> None:
        """Store each file under its name; `beat` is called as bytes travel.

        Raises DiskFull, ScalpelError for a name that the store cannot keep, or the store's own
        error.
        """

    def fetch(self, name: str, target: Path, progress: Callable[[int], Any] = ...) -> None:
        """Bring one file to `target`, going on where an earlier attempt left off if that works."""

    def sizes(self) -> dict[str, int]:
        """Bytes of each stored file."""

    def delete(self, name: str) -> None:
        """Remove one file; not an error if it is not there."""


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

    def put(
        self,
        files: Mapping[str, Path],
        link: Link | None = None,
        beat: Callable[[], Any] = lambda: None,
    ) -> None:
        """Place each file by the best way that works (`reflink`, `hard`, `copy`), or by `link`."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for name, file in files.items():
            target = self._directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            place(file, target, link)
            beat()

    def fetch(
        self, name: str, target: Path, progress: Callable[[int], Any] = lambda count: None
    ) -> None:
        """Copy a file out of the store, sharing its blocks where the file system can.

        Never a hard link: what is done to the copy must not happen to what is stored.
        """
        copy_out(self._inside(name), target)
        progress(target.stat().st_size)

    def sizes(self) -> dict[str, int]:
        """Bytes of each stored file; of a link, which no store should have, its own."""
        if not self._directory.is_dir():
            return {}
        return {
            file.relative_to(self._directory).as_posix(): file.lstat().st_size
            for file in self._directory.rglob("*")
            if file.is_symlink() or file.is_file()
        }

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

    def put(
        self,
        files: Mapping[str, Path],
        link: Link | None = None,
        beat: Callable[[], Any] = lambda: None,
    ) -> None:
        """Send the files, several at a time, each byte once."""
        for name, file in files.items():
            if file.name != posixpath.basename(name):
                raise ValueError(f"{file} would be stored as {file.name}, not as {name}")
            check_travels(name)

        def send(name: str) -> None:
            self._send(name, files[name], beat)

        # ThreadPool: a concurrent.futures pool takes no work while the interpreter exits.
        with ThreadPool(PARALLEL_FILES) as pool:
            pool.map(send, files, chunksize=1)

    def _send(self, name: str, file: Path, beat: Callable[[], Any]) -> None:
        """Send one file; MLflow's own way does not quote its name, nor report progress."""
        from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
        from mlflow.utils.request_utils import augmented_raise_for_status
        from mlflow.utils.rest_utils import http_request

        repository = self._repository
        if not isinstance(
            repository, HttpArtifactRepository
        ) or repository._should_multipart_upload(str(file)):
            repository.log_artifact(str(file), posixpath.dirname(name) or None)
            beat()
            return
        with file.open("rb") as stream:
            answer = http_request(
                repository._host_creds,
                f"/{quote(name)}",
                "PUT",
                # An empty body would be sent in chunks of unknown number.
                data=_ReportedFile(stream, beat) if file.stat().st_size else b"",
                extra_headers={"Content-Type": "application/octet-stream"},
            )
        augmented_raise_for_status(answer)
        beat()

    def fetch(
        self, name: str, target: Path, progress: Callable[[int], Any] = lambda count: None
    ) -> None:
        """Download one file, going on where an earlier attempt left off if MLflow's server can.

        `progress` gets the number of bytes that came into place, those of the earlier attempt
        included, and a negative number where these had to be given up. A broken connection is
        resumed as long as each attempt brings something.
        """
        from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

        # Where the server sends its clients on to the object store, MLflow fetches parts of the
        # file side by side, which is faster and starts over.
        if not isinstance(self._repository, HttpArtifactRepository) or self._is_sent_on():
            self._repository._download_file(name, str(target))
            progress(target.stat().st_size)
            return
        _Download(self._repository._host_creds, f"/{quote(name)}", target, progress).run()

    def _is_sent_on(self) -> bool:
        asks = getattr(self._repository, "_is_multipart_download_enabled", None)
        return bool(asks is not None and asks())

    def sizes(self) -> dict[str, int]:
        """Bytes of each stored file, as the store lists them."""
        sizes = {}
        folders: list[str | None] = [None]
        while folders:
            for entry in self._repository.list_artifacts(folders.pop()):
                # A path that leads out of the model is not one of its files.
                if not is_inner_name(entry.path):
                    continue
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    sizes[entry.path] = int(entry.file_size or 0)
        return sizes

    def delete(self, name: str) -> None:
        """Remove one file."""
        from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

        over_http = isinstance(self._repository, HttpArtifactRepository)
        self._repository.delete_artifacts(quote(name) if over_http else name)


def check_travels(name: str) -> None:
    """Raise ScalpelError for a file name that MLflow's server would refuse, or read otherwise.

    The server decodes what it is sent until nothing changes, and takes `#` and `\\` for attacks.
    """
    decoded = urlunparse(urlparse(unquote(name)))
    bad = [char for char in name if char in "#\\" or ord(char) < 32 or ord(char) == 127]
    if bad or decoded != name or ".." in name.split("/"):
        why = f"{bad[0]!r} in it" if bad else f"would be read as {decoded!r}"
        raise ScalpelError(
            f"{name!r}: MLflow's server takes no file of such a name ({why}); rename the file, or "
            "remove it where the model does not need it, and log the checkpoint again"
        )


class _ReportedFile:
    """A file that calls `beat` each time that a piece of it was read, and so is under way."""

    def __init__(self, stream: BinaryIO, beat: Callable[[], Any]) -> None:
        self._stream = stream
        self._beat = beat

    def read(self, size: int = -1) -> bytes:
        self._beat()
        return self._stream.read(size)

    def __getattr__(self, name: str) -> Any:  # its size and position, as the sender asks for them
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read(_CHUNK):
            yield piece


class _Download:
    """One file over HTTP, with `Range` for what is not there yet."""

    def __init__(
        self, host: Any, endpoint: str, target: Path, progress: Callable[[int], Any]
    ) -> None:
        self._host = host
        self._endpoint = endpoint
        self._target = target
        self._progress = progress
        self._reported = 0

    def run(self) -> None:
        """Fetch all of it; raises what `requests` or MLflow raise."""
        from requests.exceptions import RequestException

        while True:
            before = self._size()
            try:
                if self._go_on(before):
                    return
            except RequestException:
                if self._size() <= before:
                    raise

    def _go_on(self, start: int) -> bool:
        """One request for what follows byte `start`; False where the answer is of no use."""
        from mlflow.utils.request_utils import augmented_raise_for_status
        from mlflow.utils.rest_utils import http_request

        headers = {"Accept-Encoding": "identity"}  # bytes of a packed stream have other places
        if start:
            headers["Range"] = f"bytes={start}-"
        with http_request(
            self._host, self._endpoint, "GET", stream=True, extra_headers=headers
        ) as answer:
            given = answer.headers.get("Content-Range", "")
            if answer.status_code == 416 and given == f"bytes */{start}":
                self._report(start)  # all of it was there
                return True
            going_on = answer.status_code == 206 and given.startswith(f"bytes {start}-")
            if start and answer.status_code in (206, 416) and not going_on:
                self._target.unlink()
                return False
            augmented_raise_for_status(answer)
            size = start if going_on else 0
            with self._target.open("ab" if going_on else "wb") as file:
                self._report(size)
                for chunk in answer.iter_content(_CHUNK):
                    file.write(chunk)
                    size += len(chunk)
                    self._report(size)
        return True

    def _size(self) -> int:
        return self._target.stat().st_size if self._target.exists() else 0

    def _report(self, size: int) -> None:
        self._progress(size - self._reported)
        self._reported = size


def copy_out(source: Path, target: Path) -> None:
    """Put a file of its own at `target`, which shares its blocks where the file system can."""
    try:
        place(source, target, "reflink")
    except OSError:
        place(source, target, "copy")


def can_link(source: Path, directory: Path) -> bool:
    """Whether a file can be put into `directory` without its bytes: by a reflink or a hard link."""
    probe = directory / f".{source.name}.{os.getpid()}"
    for way in ("reflink", "hard"):
        try:
            place(source, probe, way)  # type: ignore[arg-type]
        except OSError:
            continue
        else:
            return True
        finally:
            probe.unlink(missing_ok=True)
    return False


def place(source: Path, target: Path, link: Link | None = None) -> Link:
    """Put the content of `source` at `target`, and say how: the best way, or the given one.

    A reflink or a hard link takes no bytes. What lay at `target` is unlinked first, never written
    over. Raises DiskFull where the disk is full.
    """
    source = source.resolve()
    target.unlink(missing_ok=True)
    for way in LINKS if link is None else (link,):
        try:
            _place_by(way, source, target)
        except OSError as error:
            target.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(
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
