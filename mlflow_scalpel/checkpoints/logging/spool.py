"""The spool of a run: a directory of numbered entries on their way to MLflow, sent in order.

Training adds entries and continues; an uploader sends and removes them. What could not be sent,
because the tracking server was away or the process was killed, is still there, and is sent by
the next uploader on the same directory: a resumed run's, or that of `mlflow-scalpel upload SPOOL`.

Its entries wait in lanes, each of which one thread of an uploader works through.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from mlflow_scalpel.checkpoints.artifact_store import Link
from mlflow_scalpel.checkpoints.atomic import write_atomically
from mlflow_scalpel.credentials import with_credentials, without_credentials
from mlflow_scalpel.errors import ScalpelError

_ABOUT = "spool.json"
_LOCK = "lock"
_REFUSED = "refused"
_PRIVATE = 0o600  # entries hold what a run logs, and where to


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class CheckpointEntry(_Entry):
    """A checkpoint to be stored as a LoggedModel."""

    kind: Literal["checkpoint"] = "checkpoint"
    job: str
    """Names this upload for good: what was created before a crash, or twice, is found by it."""
    name: str
    step: int
    params: dict[str, str]
    base: str | None
    """The base: a model's ID or URI, a directory, or a hub name; the last three are looked up, and
    logged where they are not, when the checkpoint is sent."""
    source: str
    """Directory that the trainer wrote, or the hub repository."""
    revision: str | None = None
    """Commit of the hub repository; None for a directory."""
    files: list[str] = []
    """Names of the checkpoint's files, relative to its directory."""
    notes: list[str] = []
    """Files of the directory that are not stored, and other remarks, a line each."""
    problem: str | None = None
    """The reason why it cannot be stored, where that was seen at once."""
    snapshot: bool = False
    """Whether the entry's own directory holds the files; else they are read from `source`."""
    fingerprint: str | None = None
    """Names, sizes and times of the files in `source` when they were taken."""
    link: Link | None = None
    register_as: str | None = None
    tried: bool = False
    """Whether creating the LoggedModel was tried, so that it may exist."""
    model_id: str | None = None


class MetricValue(_Entry):
    """One value of a metric."""

    key: str
    value: float
    timestamp: int
    """Milliseconds since 1970."""
    step: int
    dataset_name: str | None = None
    dataset_digest: str | None = None


class MetricsEntry(_Entry):
    """Metrics of the run, and of a model where `model_id` or `job` names one."""

    kind: Literal["metrics"] = "metrics"
    metrics: list[MetricValue]
    model_id: str | None = None
    job: str | None = None


class ArtifactEntry(_Entry):
    """A file for the run's artifacts; it lies in the entry's directory under its own name."""

    kind: Literal["artifact"] = "artifact"
    folder: str


class ImageEntry(_Entry):
    """A picture (image.png in the entry's directory) for MLflow's image chart."""

    kind: Literal["image"] = "image"
    key: str
    step: int
    timestamp: int


class TagsEntry(_Entry):
    """Tags of the run; None removes one."""

    kind: Literal["tags"] = "tags"
    tags: dict[str, str | None]


class BestEntry(_Entry):
    """The alias best-<run> goes to the version that is best by a metric of the models."""

    kind: Literal["best"] = "best"
    metric: str
    minimize: bool


class EndEntry(_Entry):
    """The run's end."""

    kind: Literal["end"] = "end"
    status: str


Entry = Annotated[
    CheckpointEntry | MetricsEntry | ArtifactEntry | ImageEntry | TagsEntry | BestEntry | EndEntry,
    Field(discriminator="kind"),
]
_ENTRY: TypeAdapter[Any] = TypeAdapter(Entry)


class Spool:
    """The entries of one run, in a directory of their own. Safe for the threads of one process."""

    def __init__(self, directory: Path, tracking_uri: str, run_id: str) -> None:
        self.directory = directory
        self.tracking_uri = tracking_uri
        self.run_id = run_id
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        place = without_credentials(tracking_uri)
        about = json.dumps({"tracking_uri": place, "run_id": run_id}).encode()
        if not (directory / _ABOUT).is_file() or (directory / _ABOUT).read_bytes() != about:
            write_atomically(directory / _ABOUT, about, durable=True, mode=_PRIVATE)
        self._mutex = threading.Lock()
        self._last = max([*self.numbers(), *self._refused()], default=0)
        self._held: int | None = None

    @classmethod
    def open(cls, directory: Path) -> Spool:
        """The spool that some process left in `directory`; raises ScalpelError where none is."""
        try:
            about = json.loads((directory / _ABOUT).read_text(encoding="utf-8"))
            return cls(directory, with_credentials(about["tracking_uri"]), about["run_id"])
        except (OSError, ValueError, KeyError) as error:
            raise ScalpelError(
                f"{directory}: is not a spool ({type(error).__name__}: {error}); give the "
                "directory that the message about unsent checkpoints named"
            ) from error

    def numbers(self) -> list[int]:
        """Numbers of the entries that wait, in their order."""
        return sorted(int(file.stem) for file in self.directory.glob("[0-9]*.json"))

    def read(self, number: int) -> Any:
        """The entry of that number."""
        path = self._path(number)
        try:
            return _ENTRY.validate_json(path.read_bytes())
        except ValidationError as error:
            raise ScalpelError(
                f"{path}: is not an entry that can be sent ({error}); its files, if any, are in "
                f"{self.folder(number)}; log them by hand and remove it"
            ) from error

    def folder(self, number: int) -> Path:
        """Directory of the entry's files, which need not exist."""
        return self.directory / f"{number:08d}"

    def add(self, entry: _Entry, fill: Callable[[Path], object] | None = None) -> int:
        """Add an entry, with the files that `fill` puts into its directory; its number.

        The entry is on disk when this returns, and not at all where it raises.
        """
        with self._mutex:
            self._last += 1
            number = self._last
        if fill is not None:
            folder = self.folder(number)
            shutil.rmtree(folder, ignore_errors=True)  # of a process that died here
            folder.mkdir()
            try:
                fill(folder)
            except BaseException:
                shutil.rmtree(folder)
                raise
        self.write(number, entry)
        return number

    def write(self, number: int, entry: _Entry) -> None:
        """Write the entry of that number, complete or not at all."""
        # A metric may be lost to a power cut, a checkpoint may not.
        durable = isinstance(entry, CheckpointEntry)
        content = entry.model_dump_json().encode()
        write_atomically(self._path(number), content, durable=durable, mode=_PRIVATE)

    def remove(self, number: int) -> None:
        """Remove an entry that was sent, and its files."""
        self._path(number).unlink(missing_ok=True)
        shutil.rmtree(self.folder(number), ignore_errors=True)

    def refuse(self, number: int, reason: str) -> None:
        """Set an entry aside that the server will never take, with the reason beside it."""
        refused = self.directory / _REFUSED
        refused.mkdir(exist_ok=True, mode=0o700)
        text = without_credentials(reason).encode(errors="replace")
        write_atomically(refused / f"{number:08d}.txt", text, mode=_PRIVATE)
        # The entry last: as long as it waits it is not lost.
        for path in (self.folder(number), self._path(number)):
            if path.exists():
                path.rename(refused / path.name)

    def retry_refused(self) -> int:
        """Have what was set aside wait again, as after the server was fixed; number of entries."""
        numbers = self._refused()
        for number in numbers:
            aside = self.directory / _REFUSED
            for path in (self.folder(number), self._path(number)):
                if (aside / path.name).exists():
                    (aside / path.name).rename(path)
            (aside / f"{number:08d}.txt").unlink(missing_ok=True)
        if numbers and not any((self.directory / _REFUSED).iterdir()):
            (self.directory / _REFUSED).rmdir()
        return len(numbers)

    def hold(self) -> None:
        """Take the spool for this process; raises ScalpelError where another one sends from it."""
        if self._held is not None:
            return
        handle = os.open(self.directory / _LOCK, os.O_CREAT | os.O_RDWR, _PRIVATE)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise ScalpelError(
                f"{self.directory}: another process is sending from it (run {self.run_id}); "
                "wait for it, or end it first"
            ) from error
        self._held = handle

    def release(self) -> None:
        """Let another process have the spool, and remove its directory where nothing waits."""
        if self._held is None:
            return
        if not self.numbers() and not (self.directory / _REFUSED).exists():
            shutil.rmtree(self.directory, ignore_errors=True)
            with contextlib.suppress(OSError):  # another run's spool is there, or was at once
                self.directory.parent.rmdir()
        os.close(self._held)
        self._held = None

    def _refused(self) -> list[int]:
        """Numbers of the entries that were set aside."""
        return sorted(int(file.stem) for file in self.directory.glob(f"{_REFUSED}/[0-9]*.json"))

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:08d}.json"


def find_spools(directory: Path) -> list[Path]:
    """Spools in `directory` or below; raises ScalpelError where none is."""
    found = sorted(path.parent for path in directory.rglob(_ABOUT))
    if not found:
        raise ScalpelError(
            f"{directory}: holds no spool; everything was sent, or it is another directory than "
            "the message about unsent checkpoints named"
        )
    return found


class Pulse:
    """The time when the server last answered, and whether anybody waits for it."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._busy = 0

    def beat(self) -> None:
        """The server took or gave something, or is asked anew."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Work within is done on this machine, and waits for no server, however long it takes."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self.beat()

    @property
    def silent_since(self) -> float:
        """time.monotonic() of the last sign of life; infinite while none is waited for."""
        return math.inf if self._busy else self._last


class Lane:
    """Numbers of entries that one thread works through."""

    def __init__(self, numbers: list[int]) -> None:
        self.waiting = deque(numbers)
        self.working = False
        self.pulse = Pulse()
        self.failing_since = math.inf
        """time.monotonic() of the first of its latest failures; infinite where it works."""
        self.last_failure = ""

    @property
    def idle(self) -> bool:
        return not self.waiting

    def stuck_for(self) -> float:
        """Seconds for which the server has not taken what is sent; 0 where it does."""
        since = min(self.failing_since, self.pulse.silent_since if self.working else math.inf)
        return max(0.0, time.monotonic() - since)

    def let_others_go_first(self, number: int, others: set[int]) -> None:
        """Put an entry that fails behind those of the `others` that wait here."""
        behind = max((i for i, waiting in enumerate(self.waiting) if waiting in others), default=0)
        if behind:
            self.waiting.remove(number)
            self.waiting.insert(behind, number)
