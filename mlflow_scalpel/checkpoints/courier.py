"""Sends what lies in a spool, in the background, while training goes on.

Two lanes: small things (metrics, pictures, the creation of a model) in their order, so that charts
are up to date however large the checkpoints are; and behind it the files of the checkpoints. What
fails because the server is away is tried again until it is back; what the server will never take is
set aside, and said.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_scalpel.checkpoints.spool import (
    ArtifactEntry,
    BestEntry,
    CheckpointEntry,
    EndEntry,
    ImageEntry,
    MetricsEntry,
    Spool,
    TagsEntry,
)
from mlflow_scalpel.credentials import without_credentials
from mlflow_scalpel.errors import ScalpelError

_PATIENCE = 120.0  # seconds
_PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds between attempts; the last one repeats
_FINAL_CODES = (400, 404)  # answers that will be the same next time


class Undelivered(ScalpelError):
    """Something could not be sent, and waits in its spool."""


@dataclass
class Outcome:
    """What has become of one checkpoint so far."""

    model_id: str | None = None
    digest: str | None = None
    status: str | None = None
    """READY or FAILED; None while it is under way."""
    reason: str | None = None


class Courier:
    """The threads that empty one spool, begun with what already lies in it."""

    def __init__(self, spool: Spool) -> None:
        from mlflow import MlflowClient

        spool.hold()
        self.spool = spool
        self.refused = 0
        """Entries that MLflow will never take, and that were set aside."""
        self._client = MlflowClient(tracking_uri=spool.tracking_uri)
        self._changed = threading.Condition()
        self._outcomes: dict[str, Outcome] = {}
        self._stopping = False
        self._small = _Lane(spool.numbers())
        self._bulk = _Lane([])
        for name, lane, work in (
            ("small", self._small, self._send_small),
            ("bulk", self._bulk, self._send_bulk),
        ):
            threading.Thread(
                target=self._run, args=(lane, work), name=f"scalpel-{name}", daemon=True
            ).start()

    def add(self, entry: Any, fill: Callable[[Path], object] | None = None) -> None:
        """Put an entry into the spool, and have it sent in its turn."""
        number = self.spool.add(entry, fill)
        with self._changed:
            if isinstance(entry, CheckpointEntry):
                self._outcomes[entry.job] = Outcome()
            self._small.waiting.append(number)
            self._changed.notify_all()

    def outcome(self, job: str) -> Outcome:
        """What has become of a checkpoint so far."""
        return self._outcomes[job]

    def wait_for(self, job: str) -> Outcome:
        """Wait until a checkpoint is READY or FAILED; raises Undelivered as `drain` does."""
        self._wait(lambda: self._outcomes[job].status is not None, patience(), None)
        return self._outcomes[job]

    def drain(self, limit: float | None = None) -> None:
        """Wait until everything is sent.

        Raises Undelivered, with the command that sends the rest, where the server has been away for
        SCALPEL_PATIENCE seconds, or where it took longer than `limit` seconds.
        """
        self._wait(lambda: self._small.idle and self._bulk.idle, patience(), limit)

    def wait_for_room(self, full: Callable[[], bool]) -> bool:
        """Wait while `full()` and the server takes what is sent; whether there is room now."""
        with self._changed:
            while full():
                if self._failing() is not None:
                    return False
                self._changed.wait(1.0)
        return True

    def pending_checkpoints(self) -> int:
        """Checkpoints that are not stored yet."""
        return sum(outcome.status is None for outcome in self._outcomes.values())

    def close(self) -> None:
        """Stop sending after what is in hand, and give the spool back."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: not (self._small.working or self._bulk.working), timeout=_PATIENCE
            )
        self.spool.release()

    def _failing(self) -> _Lane | None:
        """The lane whose last attempts failed, the one that has failed for longest."""
        failing = [lane for lane in (self._small, self._bulk) if lane.failing_since < math.inf]
        return min(failing, key=lambda lane: lane.failing_since, default=None)

    def _wait(self, done: Callable[[], bool], patience: float, limit: float | None) -> None:
        began = time.monotonic()
        with self._changed:
            while not done():
                now, failing = time.monotonic(), self._failing()
                away = failing is not None and now - failing.failing_since > patience
                if away or (limit is not None and now - began > limit):
                    raise Undelivered(self._undelivered())
                self._changed.wait(0.5)

    def _undelivered(self) -> str:
        failing = self._failing()
        why = f" ({failing.last_failure})" if failing else ""
        return (
            f"{len(self.spool.numbers())} checkpoints, metrics or files of run "
            f"{self.spool.run_id} could not be sent to {self.spool.tracking_uri} yet{why}; they "
            f"wait in {self.spool.directory}. Send them later with: "
            f"mlflow-scalpel upload {self.spool.directory}"
        )

    def _run(self, lane: _Lane, work: Callable[[int, Any], None]) -> None:
        """A lane's thread: one entry after the other, each until it is sent or refused."""
        failures = 0
        while True:
            with self._changed:
                lane.working = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: lane.waiting or self._stopping)
                if self._stopping:
                    return
                lane.working = True
                number = lane.waiting[0]
            try:
                entry = self.spool.read(number)
                work(number, entry)
            except Exception as error:  # noqa: BLE001 - sorted here, told below, nothing is lost
                if not is_final(error):
                    self._note_failure(lane, error)
                    self._pause(_PAUSES[min(failures, len(_PAUSES) - 1)])
                    failures += 1
                    continue
                self._refuse(number, error)
            failures = 0
            with self._changed:
                lane.waiting.popleft()
                self._note_success(lane)
                self._changed.notify_all()

    def _send_small(self, number: int, entry: Any) -> None:
        if isinstance(entry, CheckpointEntry):
            self._create(number, entry)
        if isinstance(entry, CheckpointEntry | BestEntry | EndEntry):
            with self._changed:  # these come after the files of the checkpoints before them
                self._bulk.waiting.append(number)
                self._changed.notify_all()
            return
        send(self._client, entry, self.spool, number, self._model_id)
        self.spool.remove(number)

    def _send_bulk(self, number: int, entry: Any) -> None:
        from mlflow_scalpel.checkpoints import deliver

        if isinstance(entry, CheckpointEntry):
            outcome = self._outcomes.setdefault(entry.job, Outcome(entry.model_id))
            try:
                folder = self.spool.folder(number)
                model = deliver.store(self._client, entry, folder, self.spool.run_id)
            except ScalpelError as error:
                assert entry.model_id is not None  # the first lane has created it
                deliver.fail(self._client, entry.model_id, str(error))
                self._settle(outcome, "FAILED", str(error))
                print(f"WARNING: step {entry.step} is FAILED: {error}", file=sys.stderr)
            else:
                outcome.digest = model.params.get("digest")
                self._settle(outcome, "READY")
        elif isinstance(entry, BestEntry):
            run_id = self.spool.run_id
            deliver.give_best(self._client, run_id, entry.metric, minimize=entry.minimize)
        elif isinstance(entry, EndEntry):
            self._client.set_terminated(self.spool.run_id, entry.status)
        self.spool.remove(number)

    def _create(self, number: int, entry: CheckpointEntry) -> None:
        from mlflow_scalpel.checkpoints import deliver

        outcome = self._outcomes.setdefault(entry.job, Outcome())
        if entry.model_id is None:
            first = not entry.tried
            if first:
                self.spool.write(number, entry.model_copy(update={"tried": True}))
            model = deliver.create(self._client, entry, self.spool.run_id)
            created = entry.model_copy(update={"tried": True, "model_id": model.model_id})
            self.spool.write(number, created)
            outcome.model_id = model.model_id
        else:
            outcome.model_id = entry.model_id

    def _model_id(self, entry: MetricsEntry) -> str | None:
        if entry.job is None:
            return entry.model_id
        if entry.job not in self._outcomes:  # stored by a process before this one
            from mlflow_scalpel.checkpoints import deliver

            model = deliver.made_before(self._client, entry.job, self.spool.run_id)
            return model.model_id if model else None
        return self._outcomes[entry.job].model_id

    def _settle(self, outcome: Outcome, status: str, reason: str | None = None) -> None:
        with self._changed:
            outcome.status, outcome.reason = status, reason
            self._changed.notify_all()

    def _refuse(self, number: int, error: Exception) -> None:
        reason = without_credentials(f"{type(error).__name__}: {error}")
        try:
            entry = self.spool.read(number)
        except ScalpelError:
            entry = None
        self.spool.refuse(number, reason)
        self.refused += 1
        kept = self.spool.directory / "refused"
        said = f"WARNING: MLflow refused what is kept in {kept}: {reason}"
        print(without_credentials(said), file=sys.stderr)
        if isinstance(entry, CheckpointEntry):
            self._settle(self._outcomes.setdefault(entry.job, Outcome()), "FAILED", reason)

    def _note_failure(self, lane: _Lane, error: Exception) -> None:
        with self._changed:
            lane.last_failure = f"{type(error).__name__}: {str(error)[:300]}"
            told_before = self._failing() is not None
            lane.failing_since = min(lane.failing_since, time.monotonic())
        if not told_before:
            said = (
                f"WARNING: {self.spool.tracking_uri} does not take what is sent "
                f"({lane.last_failure}); it waits in {self.spool.directory}, and is tried again; "
                "training goes on"
            )
            print(without_credentials(said), file=sys.stderr)

    def _note_success(self, lane: _Lane) -> None:
        if lane.failing_since < math.inf:
            lane.failing_since = math.inf
            if self._failing() is None:
                place = without_credentials(self.spool.tracking_uri)
                print(f"{place} takes what is sent again", file=sys.stderr)

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, timeout=seconds)


class _Lane:
    """Numbers of entries that one thread works through."""

    def __init__(self, numbers: list[int]) -> None:
        self.waiting = deque(numbers)
        self.working = False
        self.failing_since = math.inf
        """time.monotonic() of the first of its latest failures; infinite where it works."""
        self.last_failure = ""

    @property
    def idle(self) -> bool:
        return not self.waiting


def is_final(error: Exception) -> bool:
    """Whether a failure would be the same next time, so that trying again is in vain."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.get_http_status_code() in _FINAL_CODES
    return isinstance(error, ScalpelError)


def send(
    client: Any,
    entry: Any,
    spool: Spool,
    number: int,
    model_id_of_entry: Callable[[MetricsEntry], str | None],
) -> None:
    """Send an entry that is no checkpoint; sending it twice does no harm."""
    from mlflow.entities import Metric, RunTag

    run_id, folder = spool.run_id, spool.folder(number)
    if isinstance(entry, MetricsEntry):
        model_id = model_id_of_entry(entry)
        metrics = [
            Metric(**value.model_dump(), model_id=model_id, run_id=run_id)
            for value in entry.metrics
        ]
        client.log_batch(run_id, metrics=metrics)
    elif isinstance(entry, ArtifactEntry):
        for file in folder.iterdir():
            client.log_artifact(run_id, str(file), entry.folder)
    elif isinstance(entry, ImageEntry):
        from mlflow import Image

        image = Image(str(folder / "image.png"))
        client.log_image(run_id, image, key=entry.key, step=entry.step, timestamp=entry.timestamp)
    elif isinstance(entry, TagsEntry):
        tags = [RunTag(key, value) for key, value in entry.tags.items() if value is not None]
        client.log_batch(run_id, tags=tags)
        gone = {key for key, value in entry.tags.items() if value is None}
        for key in gone.intersection(client.get_run(run_id).data.tags if gone else ()):
            client.delete_tag(run_id, key)
    else:
        raise AssertionError(f"{entry.kind} is sent elsewhere")


def patience() -> float:
    """Seconds to wait for a server that is away: $SCALPEL_PATIENCE, or 120."""
    given = os.environ.get("SCALPEL_PATIENCE", str(_PATIENCE))
    try:
        return float(given)
    except ValueError as error:
        raise ScalpelError(f"SCALPEL_PATIENCE = {given}: is no number of seconds") from error
