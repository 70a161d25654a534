"""Sends the entries of a spool, in the background, while training continues.

Two lanes: small things (metrics, pictures, the creation of a model) in their order, so that charts
are up to date however large the checkpoints are; and behind it the files of the checkpoints. What
fails because the server is away is tried again until it is back; what the server will never take is
set aside, with a message.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel

from mlflow_scalpel.checkpoints.logging import upload
from mlflow_scalpel.checkpoints.logging.mlflow_writes import find_created, give_best, send
from mlflow_scalpel.checkpoints.logging.spool import (
    BestEntry,
    CheckpointEntry,
    EndEntry,
    Lane,
    MetricsEntry,
    Spool,
)
from mlflow_scalpel.credentials import shortened, without_credentials
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.server_errors import is_final, is_own

_PATIENCE_SECONDS = 120.0  # for which a server that is away is waited for
_PAUSE_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # between attempts; the last one repeats
_ATTEMPTS_PER_TURN = 3  # attempts after which the next checkpoint comes first
_OWN_ATTEMPTS = 5  # for an entry that fails by itself, whatever the server says
_SILENCE_SECONDS = 3.0  # without a sign of the server, after which it is not waited for at the end


class UploadPending(ScalpelError):
    """Something could not be sent, and waits in its spool."""


@dataclass
class Outcome:
    """The state of one checkpoint's upload."""

    model_id: str | None = None
    digest: str | None = None
    status: str | None = None
    """READY or FAILED; None while it is under way."""
    reason: str | None = None
    model: LoggedModel | None = None
    """The model itself, once it is READY."""


class Uploader:
    """The threads that empty one spool, begun with what already lies in it."""

    def __init__(self, spool: Spool) -> None:
        spool.hold()
        self.spool = spool
        self.refused = 0
        """Entries that MLflow will never take, and that were set aside."""
        self.failed: dict[int, str] = {}
        """Steps whose checkpoints are FAILED, and why."""
        self._client = MlflowClient(tracking_uri=spool.tracking_uri)
        self._changed = threading.Condition()
        self._outcomes: dict[str, Outcome] = {}
        self._stopping = False
        self._unreleased = False
        self._checkpoints = _checkpoints_of(spool)  # that wait, by number
        self._small = Lane(spool.numbers())
        self._bulk = Lane([])
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
                self._checkpoints[number] = entry
            self._small.waiting.append(number)
            self._changed.notify_all()

    def outcome(self, job: str) -> Outcome:
        """The state of a checkpoint's upload."""
        return self._outcomes[job]

    def wait_for(self, job: str) -> Outcome:
        """Wait until a checkpoint is READY or FAILED; raises UploadPending as `drain` does."""
        self._wait(lambda: self._outcomes[job].status is not None, patience(), None)
        return self._outcomes[job]

    def drain(self, limit: float | None = None) -> None:
        """Wait until everything is sent.

        Raises UploadPending, with the command that sends the rest, where the server has been away
        for SCALPEL_PATIENCE seconds, or where it took longer than `limit` seconds.
        """
        self._wait(lambda: self._small.idle and self._bulk.idle, patience(), limit)

    def wait_for_room(self, full: Callable[[], bool], limit: float) -> None:
        """Wait while `full()`, for `limit` seconds at most, and while the server takes things."""
        end = time.monotonic() + limit
        with self._changed:
            while (
                full()
                and (left := end - time.monotonic()) > 0
                and self.stuck_for() < _SILENCE_SECONDS
            ):
                self._changed.wait(min(left, 0.5))

    def waiting_checkpoints(self) -> list[CheckpointEntry]:
        """Checkpoints that are not stored yet."""
        with self._changed:
            return list(self._checkpoints.values())

    def stuck_for(self) -> float:
        """Seconds for which the server has been away, failing, or silent; 0 where it is not."""
        return max(self._small.stuck_for(), self._bulk.stuck_for())

    def close(self) -> None:
        """Stop sending after what is in hand, and give the spool back.

        What is in hand is not waited for where the server gives no sign: the spool is given back
        when its request ends, or the process.
        """
        end = time.monotonic() + _PATIENCE_SECONDS
        lanes = (self._small, self._bulk)
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            while any(lane.working for lane in lanes) and time.monotonic() < end:
                silent = [lane.pulse.silent_since for lane in lanes if lane.working]
                if all(time.monotonic() - since > _SILENCE_SECONDS for since in silent):
                    break
                self._changed.wait(0.2)
            self._unreleased = any(lane.working for lane in lanes)
        if not self._unreleased:
            self.spool.release()

    def _failing(self) -> Lane | None:
        """The lane whose last attempts failed, the one that has failed for longest."""
        failing = [lane for lane in (self._small, self._bulk) if lane.failing_since < math.inf]
        return min(failing, key=lambda lane: lane.failing_since, default=None)

    def _wait(self, done: Callable[[], bool], patience: float, limit: float | None) -> None:
        began = time.monotonic()
        with self._changed:
            while not done():
                late = limit is not None and time.monotonic() - began > limit
                if late or self.stuck_for() > patience:
                    raise UploadPending(self._pending_message())
                self._changed.wait(0.5)

    def _pending_message(self) -> str:
        failing = self._failing()
        silent = (
            f" (no answer for {self.stuck_for():.0f} s)"
            if self.stuck_for() > _SILENCE_SECONDS
            else ""
        )
        why = f" ({failing.last_failure})" if failing else silent
        steps = sorted({entry.step for entry in self._checkpoints.values()})
        which = f" (checkpoints of step {', '.join(map(str, steps))} among them)" if steps else ""
        return (
            f"{len(self.spool.numbers())} checkpoints, metrics or files of run "
            f"{self.spool.run_id}{which} could not be sent to {self.spool.tracking_uri} yet{why}; "
            f"they wait in {self.spool.directory}. Send them later with: "
            f"mlflow-scalpel upload {self.spool.directory}"
        )

    def _run(self, lane: Lane, work: Callable[[int, Any], None]) -> None:
        """A lane's thread: one entry after the other, each until it is sent or refused."""
        failures: Counter[int] = Counter()
        while True:
            with self._changed:
                lane.working = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: lane.waiting or self._stopping)
                if self._stopping:
                    break
                lane.working = True
                number = lane.waiting[0]
                lane.pulse.beat()
            try:
                self._send_or_refuse(number, work, last=failures[number] >= _OWN_ATTEMPTS)
            except Exception as error:  # noqa: BLE001 - reported below, and nothing is lost
                self._note_failure(lane, error)
                self._pause(_PAUSE_SECONDS[min(failures[number], len(_PAUSE_SECONDS) - 1)])
                failures[number] += 1
                if failures[number] % _ATTEMPTS_PER_TURN == 0 and lane is self._bulk:
                    with self._changed:  # a fault of one checkpoint does not hold up the others
                        lane.let_others_go_first(number, set(self._checkpoints))
                continue
            with self._changed:
                lane.waiting.remove(number)
                self._note_success(lane)
                self._changed.notify_all()
        with self._changed:
            if self._unreleased and not (self._small.working or self._bulk.working):
                self._unreleased = False
                self.spool.release()

    def _send_or_refuse(self, number: int, work: Callable[[int, Any], None], *, last: bool) -> None:
        """Send an entry, or set it aside; raises what may work when it is tried again.

        `last`: a fault that looks like the entry's own is not tried again.
        """
        try:
            entry = self.spool.read(number)
            if isinstance(entry, CheckpointEntry):
                self._checkpoints.setdefault(number, entry)
            work(number, entry)
        except Exception as error:
            if not (is_final(error) or (last and is_own(error))):
                raise
            self._refuse(number, error)

    def _send_small(self, number: int, entry: Any) -> None:
        if isinstance(entry, CheckpointEntry):
            self._create(number, entry)
        # These come after the files of the checkpoints before them, and so do the metrics of a
        # checkpoint whose model is known by its content only.
        later = isinstance(entry, CheckpointEntry | BestEntry | EndEntry)
        if isinstance(entry, MetricsEntry) and entry.job in self._outcomes:
            later = self._outcomes[entry.job].model_id is None
        if later:
            with self._changed:
                self._bulk.waiting.append(number)
                self._changed.notify_all()
            return
        self._send(number, entry)
        self.spool.remove(number)

    def _send(self, number: int, entry: Any) -> None:
        model_id = self._model_id(entry) if isinstance(entry, MetricsEntry) else None
        send(self._client, entry, self.spool.run_id, self.spool.folder(number), model_id)

    def _send_bulk(self, number: int, entry: Any) -> None:
        if isinstance(entry, CheckpointEntry):
            self._store(number, entry)
        elif isinstance(entry, BestEntry):
            give_best(self._client, self.spool.run_id, entry.metric, minimize=entry.minimize)
        elif isinstance(entry, EndEntry):
            self._client.set_terminated(self.spool.run_id, entry.status)
        else:
            self._send(number, entry)
        self._remove(number)

    def _store(self, number: int, entry: CheckpointEntry) -> None:
        """Store a checkpoint's files; where it cannot be, it is FAILED with the reason."""
        outcome = self._outcomes.setdefault(entry.job, Outcome(entry.model_id))

        def keep(known: CheckpointEntry) -> None:
            self.spool.write(number, known)
            outcome.model_id = known.model_id

        others = {e.job for other, e in list(self._checkpoints.items()) if other != number}
        try:
            model = upload.store(
                self._client,
                entry,
                self.spool.folder(number),
                self.spool.run_id,
                keep=keep,
                waiting=others,
                pulse=self._bulk.pulse,
            )
        except ScalpelError as error:
            if not is_final(error):
                raise
            self.failed[entry.step] = str(error)
            self._settle(outcome, "FAILED", str(error))
            print(f"WARNING: step {entry.step} is FAILED: {error}", file=sys.stderr)
        else:
            outcome.digest, outcome.model = model.params.get("digest"), model
            self._settle(outcome, "READY")

    def _create(self, number: int, entry: CheckpointEntry) -> None:
        outcome = self._outcomes.setdefault(entry.job, Outcome())
        if entry.model_id is None:
            if not entry.tried:
                self.spool.write(number, entry.model_copy(update={"tried": True}))
            model = upload.create(self._client, entry, self.spool.run_id)
            if model is None:
                return
            created = entry.model_copy(update={"tried": True, "model_id": model.model_id})
            self.spool.write(number, created)
            outcome.model_id = model.model_id
        else:
            outcome.model_id = entry.model_id

    def _remove(self, number: int) -> None:
        """Forget an entry that was sent."""
        self.spool.remove(number)
        with self._changed:
            self._checkpoints.pop(number, None)

    def _model_id(self, entry: MetricsEntry) -> str | None:
        if entry.job is None:
            return entry.model_id
        if entry.job not in self._outcomes:  # stored by a process before this one
            experiment_id = self._client.get_run(self.spool.run_id).info.experiment_id
            model = find_created(self._client, entry.job, experiment_id)
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
        with self._changed:
            self._checkpoints.pop(number, None)
        kept = self.spool.directory / "refused"
        print(
            without_credentials(
                f"WARNING: MLflow refused what is kept in {kept}: {reason}\nOnce the cause is "
                f"fixed, send it with: mlflow-scalpel upload {self.spool.directory}"
            ),
            file=sys.stderr,
        )
        if isinstance(entry, CheckpointEntry):
            self.failed[entry.step] = reason
            self._settle(self._outcomes.setdefault(entry.job, Outcome()), "FAILED", reason)

    def _note_failure(self, lane: Lane, error: Exception) -> None:
        with self._changed:
            lane.last_failure = f"{type(error).__name__}: {shortened(error, 300)}"
            failing_before = self._failing() is not None
            lane.failing_since = min(lane.failing_since, time.monotonic())
        if not failing_before:
            text = (
                f"WARNING: {self.spool.tracking_uri} does not take what is sent "
                f"({lane.last_failure}); it waits in {self.spool.directory}, and is tried again; "
                "training continues"
            )
            print(without_credentials(text), file=sys.stderr)

    def _note_success(self, lane: Lane) -> None:
        if lane.failing_since < math.inf:
            lane.failing_since = math.inf
            if self._failing() is None:
                place = without_credentials(self.spool.tracking_uri)
                print(f"{place} takes what is sent again", file=sys.stderr)

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, timeout=seconds)


def _checkpoints_of(spool: Spool) -> dict[int, CheckpointEntry]:
    """The checkpoints that an earlier process left in a spool, by number."""
    found = {}
    for number in spool.numbers():
        with contextlib.suppress(ScalpelError):  # no entry: set aside in its turn
            entry = spool.read(number)
            if isinstance(entry, CheckpointEntry):
                found[number] = entry
    return found


def patience() -> float:
    """Seconds for which a server that is away is waited for: $SCALPEL_PATIENCE, or 120."""
    given = os.environ.get("SCALPEL_PATIENCE", str(_PATIENCE_SECONDS))
    try:
        return float(given)
    except ValueError as error:
        raise ScalpelError(f"SCALPEL_PATIENCE = {given}: is not a number of seconds") from error
