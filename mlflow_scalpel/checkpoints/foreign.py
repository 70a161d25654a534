"""Checkpoints that another tool writes: finished runs of it, and runs that still go on."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Metric
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints.find import made_by, state_of, step_of
from mlflow_scalpel.checkpoints.lanes import is_final
from mlflow_scalpel.checkpoints.layout import check_whole, checkpoint_files
from mlflow_scalpel.checkpoints.log import Delivery, courier_for, fingerprint, log_checkpoint
from mlflow_scalpel.checkpoints.manifest import file_manifest
from mlflow_scalpel.checkpoints.once import FINGERPRINT_TAG
from mlflow_scalpel.checkpoints.stores import Link
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.links import DESCRIPTION_TAG, run_note
from mlflow_scalpel.tensors.steps import step_of_name

DIRECTORY_TAG = "scalpel.directory"
_BATCH = 1000  # metrics of one request
_NAP = 0.2  # seconds of sleep after which `watch` sees that it is to stop


@dataclass(frozen=True)
class Origin:
    """What is known of the run that wrote the checkpoints."""

    base: str | None = None
    run_id: str | None = None
    """MLflow run to log to; None takes the run of that directory, and makes it where none is."""
    register_as: str | None = None
    link: Link | None = None
    trainer_state: bool = False
    params: Mapping[str, str] = field(default_factory=dict)


def step_directories(directory: Path) -> dict[int, Path]:
    """Checkpoint directories by step: `directory` itself, or those in it (checkpoint-N, step-N)."""
    own = step_of_name(directory.name) is not None
    candidates = [directory] if own else directory.iterdir()
    found = {
        step: path
        for path in candidates
        if path.is_dir() and (step := step_of_name(path.name)) is not None
    }
    return dict(sorted(found.items()))


def log_directory(directory: Path, origin: Origin) -> tuple[str, dict[int, Delivery]]:
    """Log every checkpoint of a finished run that its MLflow run does not have yet.

    What an earlier process left waiting is sent first. A checkpoint is the one that the run has
    where step and content are the same: one whose content has changed is logged again.

    Returns the run ID and a delivery a step. Raises ScalpelError where no checkpoint is there.
    """
    checkpoints = step_directories(directory)
    if not checkpoints:
        raise ScalpelError(
            f"{directory}: holds no directory named checkpoint-N or step-N, with the step as N; "
            "give the directory that holds them, or one of them"
        )
    run_id = run_of(directory, origin)
    finish_spool(directory, run_id)
    stored = stored_models(run_id)
    deliveries = {
        step: _log(path, step, run_id, origin)
        for step, path in checkpoints.items()
        if not is_stored(path, stored.get(step, []))
    }
    if origin.run_id is None:
        _log_history(checkpoints, run_id)
    return run_id, deliveries


def watch(
    directory: Path,
    origin: Origin,
    *,
    interval: float,
    idle: float | None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Delivery]]:
    """Log checkpoints of a run that goes on, each once it is whole; yields step and delivery.

    One that is written again, with other content, is logged again.

    A checkpoint is whole when its weights are as long as their headers say and nothing in it has
    changed between two looks, `interval` seconds apart. Ends when nothing new has come for `idle`
    seconds (None: never), and before the next look where `stopped()`.
    """
    run_id = run_of(directory, origin)
    finish_spool(directory, run_id)
    stored = stored_models(run_id)
    seen: dict[int, tuple[Any, ...]] = {}  # as they looked when they were taken
    marks: dict[int, str] = {}
    looks: dict[int, tuple[Any, ...]] = {}
    changed = time.monotonic()
    while not stopped() and (idle is None or time.monotonic() - changed < idle):
        for step, path in step_directories(directory).items() if directory.is_dir() else ():
            look = _look(path)
            if look == seen.get(step):
                continue
            if look != looks.get(step):
                looks[step] = look
                changed = time.monotonic()
            elif is_whole(path):
                seen[step] = look
                files = checkpoint_files(path, trainer_state=origin.trainer_state)
                before, marks[step] = marks.get(step), fingerprint(files)
                # Not what only came to lie beside it, such as the state of the optimizer.
                if marks[step] != before and not is_stored(path, stored.get(step, [])):
                    yield step, _log(path, step, run_id, origin)
        next_look = time.monotonic() + interval
        while not stopped() and (left := next_look - time.monotonic()) > 0:
            time.sleep(min(left, _NAP))


def is_whole(directory: Path) -> bool:
    """Whether all weights of the checkpoint are there to the end."""
    try:
        check_whole(directory)
    except (ScalpelError, OSError):  # not yet, or removed again
        return False
    return True


def run_of(directory: Path, origin: Origin) -> str:
    """The MLflow run of a directory of checkpoints; begun where there is none."""
    client = MlflowClient()
    if origin.run_id is not None:
        try:
            return str(client.get_run(origin.run_id).info.run_id)
        except MlflowException as error:
            if not is_final(error):
                raise ScalpelError(
                    f"run {origin.run_id}: {mlflow.get_tracking_uri()} does not say whether there "
                    f"is such a run ({' '.join(str(error).split())[:300]}); try again later"
                ) from error
            raise ScalpelError(
                f"run {origin.run_id}: there is no such run at {mlflow.get_tracking_uri()} "
                f"({error}); copy the ID from the UI's run page, and check MLFLOW_TRACKING_URI"
            ) from error
    home = directory.resolve()
    home = home if step_of_name(home.name) is None else home.parent
    with _alone(home):
        return _run_of(client, home, origin)


def _run_of(client: MlflowClient, home: Path, origin: Origin) -> str:
    experiment_id = str(mlflow.tracking.fluent._get_experiment_id())
    quoted = str(home).replace("'", "\\'")
    found = client.search_runs([experiment_id], f"tags.`{DIRECTORY_TAG}` = '{quoted}'")
    if found:
        return str(found[0].info.run_id)
    tags = {DIRECTORY_TAG: str(home), "scalpel.stage": "log"}
    if "algorithm" in origin.params:
        tags["scalpel.algorithm"] = origin.params["algorithm"]
    run = client.create_run(experiment_id, run_name=home.name, tags=tags)
    client.set_tag(run.info.run_id, DESCRIPTION_TAG, run_note(run.info.run_id))
    for key, value in origin.params.items():
        client.log_param(run.info.run_id, key, value)
    return str(run.info.run_id)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep out another process that begins a run for the same directory at the same moment."""
    handle = os.open(directory if directory.is_dir() else directory.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def finish_spool(directory: Path, run_id: str) -> None:
    """Send what an earlier process took of this directory, and was killed before it was sent.

    Raises Undelivered where the server is away: what waits cannot be told from what is missing.
    """
    home = directory.resolve()
    beside = home if step_of_name(home.name) is None else home.parent
    courier_for(run_id, beside).drain()


def stored_models(run_id: str) -> dict[int, list[LoggedModel]]:
    """The run's READY checkpoints by step; of a step that was written anew there are several."""
    client = MlflowClient()
    found: dict[int, list[LoggedModel]] = {}
    for model in made_by(client, client.get_run(run_id)):
        if state_of(model) == "READY":
            found.setdefault(step_of(model), []).append(model)
    return found


def is_stored(directory: Path, models: Sequence[LoggedModel]) -> bool:
    """Whether one of the models is the checkpoint in `directory`, down to its content.

    Files that were not touched since they were logged are not read again.
    """
    if not models:
        return False
    try:
        for trainer_state in (False, True):
            files = checkpoint_files(directory, trainer_state=trainer_state)
            seen = fingerprint(files)
            if any(model.tags.get(FINGERPRINT_TAG) == seen for model in models):
                return True
        digests = {model.params.get("digest") for model in models}
        return any(
            file_manifest(checkpoint_files(directory, trainer_state=trainer_state)).digest
            in digests
            for trainer_state in (False, True)
        )
    except (ScalpelError, OSError):  # which logging it will say
        return False


def _log(path: Path, step: int, run_id: str, origin: Origin) -> Delivery:
    return log_checkpoint(
        path,
        step=step,
        base=origin.base,
        run_id=run_id,
        params=origin.params,
        name=f"{path.resolve().parent.name}-step-{step:06d}",
        register_as=origin.register_as,
        link=origin.link,
        trainer_state=origin.trainer_state,
    )


def _look(directory: Path) -> tuple[Any, ...]:
    """What changes while the directory is written."""
    try:
        stats = [(file.name, file.stat()) for file in sorted(directory.iterdir())]
    except FileNotFoundError:  # a temporary file that was renamed meanwhile
        return (time.monotonic(),)
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _log_history(checkpoints: Mapping[int, Path], run_id: str) -> None:
    """Log what a Transformers trainer noted in its newest checkpoint: loss, learning rate ...

    What the run has of it is left out, so that a second call ends what a first one began.
    """
    newest = checkpoints[max(checkpoints)] / "trainer_state.json"
    if not newest.is_file():
        return
    history = json.loads(newest.read_text(encoding="utf-8")).get("log_history", [])
    client = MlflowClient()
    written = int(newest.stat().st_mtime * 1000)
    metrics = [
        Metric(key, float(value), written, int(entry["step"]))
        for entry in history
        for key, value in entry.items()
        if key != "step" and isinstance(value, int | float)
    ]
    known = {
        (key, point.step)
        for key in {metric.key for metric in metrics} & set(client.get_run(run_id).data.metrics)
        for point in client.get_metric_history(run_id, key)
    }
    missing = [metric for metric in metrics if (metric.key, metric.step) not in known]
    for start in range(0, len(missing), _BATCH):
        client.log_batch(run_id, metrics=missing[start : start + _BATCH])
