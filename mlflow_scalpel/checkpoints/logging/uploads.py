"""The uploads of this process: an uploader for each run, all of them ended together."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModel

from mlflow_scalpel.checkpoints.logging.spool import Spool
from mlflow_scalpel.checkpoints.logging.uploader import Uploader, UploadPending
from mlflow_scalpel.errors import ScalpelError

SPOOLS = ".scalpel"  # folder beside checkpoints, with what of them waits to be sent
_uploaders: dict[tuple[str, str], Uploader] = {}
LOST_WARNING = "checkpoints_lost"  # code of the warning


@dataclass(frozen=True)
class Upload:
    """A checkpoint that is being stored in the background."""

    uploader: Uploader
    job: str

    @property
    def model_id(self) -> str | None:
        """ID of the LoggedModel; None until the tracking server has created it."""
        return self.uploader.outcome(self.job).model_id

    @property
    def digest(self) -> str | None:
        """Digest of the checkpoint's content; None until it is stored."""
        return self.uploader.outcome(self.job).digest

    def wait(self) -> LoggedModel:
        """The LoggedModel, once it is READY.

        Raises ScalpelError with the reason where it is FAILED, and UploadPending where the
        server is away for longer than SCALPEL_PATIENCE seconds.
        """
        outcome = self.uploader.wait_for(self.job)
        if outcome.status == "FAILED" or outcome.model is None:
            raise ScalpelError(outcome.reason or "the checkpoint could not be stored")
        return outcome.model


def uploader_for(run_id: str, beside: Path) -> Uploader:
    """This process's uploader of a run, begun where there is none.

    What an earlier process left in the run's spool is sent first.
    """
    key = (mlflow.get_tracking_uri(), run_id)
    if key not in _uploaders:
        _uploaders[key] = Uploader(Spool(spool_directory(run_id, beside), *key))
    return _uploaders[key]


def spool_directory(run_id: str, beside: Path) -> Path:
    """Directory of a run's spool: `beside`/.scalpel/<run ID>, or under $SCALPEL_SPOOL.

    `beside` is the directory that holds the checkpoints, whose file system can link them. Where it
    cannot be written (somebody else's checkpoints), it is under the user's state directory.
    """
    folder = Path(os.environ.get("SCALPEL_SPOOL") or beside / SPOOLS)
    if not os.access(_existing(folder.absolute()), os.W_OK):
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        folder = Path(state) / "mlflow-scalpel"
    return folder.resolve() / run_id


def close_uploaders(limit: float | None = None) -> None:
    """Send all that is under way, and end the background threads; `limit` is in seconds.

    Raises UploadPending, with the command that sends it later, where something could not be sent.
    """
    problems = []
    while _uploaders:
        _, uploader = _uploaders.popitem()
        try:
            uploader.drain(limit)
        except UploadPending as error:
            problems.append(str(error))
        finally:
            uploader.close()
    if problems:
        raise UploadPending("\n".join(problems))


@contextlib.contextmanager
def all_sent() -> Iterator[None]:
    """Send all that is added in this block; UploadPending is raised once, and uploads end."""
    try:
        yield
        close_uploaders()
    except UploadPending:
        with contextlib.suppress(UploadPending):  # which is being raised
            close_uploaders(limit=0.0)
        raise


@atexit.register
def _close_at_exit() -> None:
    try:
        close_uploaders()
    except ScalpelError as error:
        print(f"\n{error}", file=sys.stderr)
        sys.stderr = _FailsAtTheEnd(sys.stderr)  # type: ignore[assignment]


class _FailsAtTheEnd:
    """stderr whose last flush fails, which alone gives a process that ends by itself a status.

    (120: what the interpreter exits with where it could not flush. Raising while it ends is
    without effect, and `os._exit` would skip what others do then.)
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def flush(self) -> None:
        self._stream.flush()
        if sys.is_finalizing():
            raise OSError("checkpoints could not be sent: see above")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    return path


def lost_message(lost: Mapping[int, str], stored: int) -> str:
    """One sentence about checkpoints that were lost, beside `stored` that were not."""
    steps = ", ".join(str(step) for step in lost)
    others = "1 other is" if stored == 1 else f"{stored} others are"
    kept = f"; {others}" if stored else "; no other is"
    return f"the checkpoints of step {steps} are not stored{kept}: {next(iter(lost.values()))}"


def failed_uploads(uploads: Mapping[int, Upload]) -> dict[int, str]:
    """The reasons of the uploads that failed, by step."""
    outcomes = {step: one.uploader.outcome(one.job) for step, one in sorted(uploads.items())}
    return {
        step: outcome.reason or "it could not be stored"
        for step, outcome in outcomes.items()
        if outcome.status == "FAILED"
    }
