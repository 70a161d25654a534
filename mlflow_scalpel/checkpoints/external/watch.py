"""Logs the checkpoints of a run that is still training, each once it is complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlflow_scalpel.checkpoints.external.external_run import (
    ExternalRun,
    finish_spool,
    is_stored,
    log_step,
    notes_of,
    run_begun,
    stored_models,
    why_incomplete,
    why_no_step,
)
from mlflow_scalpel.checkpoints.external.layouts import (
    StepDirectory,
    find_steps,
)
from mlflow_scalpel.checkpoints.files import checkpoint_files, fingerprint
from mlflow_scalpel.checkpoints.logging.uploads import SPOOLS, Upload
from mlflow_scalpel.errors import ScalpelError

_STOP_CHECK_SECONDS = 0.2  # of sleep, after which `watch` asks whether to stop


def watch(
    directory: Path,
    external: ExternalRun,
    *,
    interval: float,
    idle: float | None,
    stopped: Callable[[], bool] = lambda: False,
    report: Callable[[str], None] = lambda line: None,
    gone: dict[int, str] | None = None,
) -> Iterator[tuple[int, Upload]]:
    """Log checkpoints of a run that is still training, each once it is complete.

    Yields step and upload. A checkpoint that is written again, with other content, is logged again.

    One is complete when its weights are as long as their headers say and nothing in it has changed
    between two polls, `interval` seconds apart. `report` gets the reason why one that does not
    change any more is waited for, once for each reason. `gone` gets the steps whose model was
    removed before it was taken, and what to do about it. Ends when nothing new has come for `idle`
    seconds (None: never), and before the next poll where `stopped()`.
    """
    if directory.exists() and not directory.is_dir():
        raise ScalpelError(f"{directory}: is a file; give the directory that the trainer writes to")
    with run_begun(directory, external) as run_id:
        finish_spool(directory, run_id)
        yield from _watch(directory, external, run_id, interval, idle, stopped, report, gone)


def _watch(
    directory: Path,
    external: ExternalRun,
    run_id: str,
    interval: float,
    idle: float | None,
    stopped: Callable[[], bool],
    report: Callable[[str], None],
    gone: dict[int, str] | None,
) -> Iterator[tuple[int, Upload]]:
    stored = stored_models(run_id)
    seen: dict[int, tuple[Any, ...]] = {}  # states of the steps when they were taken
    marks: dict[int, str] = {}
    states: dict[int, tuple[Any, ...]] = {}
    reported: set[str] = set()
    begun: dict[int, Path] = {}  # models of which something is there
    changed = time.monotonic()

    def tell(line: str) -> None:
        if line not in reported:
            reported.add(line)
            report(line)

    while not stopped() and (idle is None or time.monotonic() - changed < idle):
        found = _found_now(directory, external, tell)
        for step in [step for step, model in begun.items() if not model.is_dir()]:
            del begun[step]
            if step in seen or step in stored:
                continue
            why = (
                "its directory was removed before it was seen complete; let the trainer keep more "
                "checkpoints (save_total_limit), or poll more often (--interval)"
            )
            tell(f"step {step}: is lost: {why}")
            if gone is not None:
                gone[step] = why
        begun |= {one.step: one.model for one in found if one.model is not None}
        for one in found:
            state = _state_of(one.model or one.place)
            if state == seen.get(one.step):
                continue
            if state != states.get(one.step):
                states[one.step] = state
                changed = time.monotonic()
                continue
            reason = why_incomplete(one.model) if one.model is not None else one.why
            if reason is not None or one.model is None:
                tell(f"step {one.step}: waits: {reason}")
                continue
            seen[one.step] = state
            files = checkpoint_files(one.model, trainer_state=external.trainer_state)
            before, marks[one.step] = marks.get(one.step), fingerprint(files, one.model)
            # Not what only came to lie beside it, such as the state of the optimizer.
            if marks[one.step] != before and not is_stored(one.model, stored.get(one.step, [])):
                notes = notes_of(directory, one, external, run_id)
                yield one.step, log_step(one, run_id, external, notes)
        next_poll = time.monotonic() + interval
        while not stopped() and (left := next_poll - time.monotonic()) > 0:
            time.sleep(min(left, _STOP_CHECK_SECONDS))


def _found_now(
    directory: Path, external: ExternalRun, tell: Callable[[str], None]
) -> list[StepDirectory]:
    """The steps that are there; where they are ambiguous that is reported, and nothing taken."""
    if not directory.is_dir():
        tell(f"{directory}: is not there yet; it is waited for")
        return []
    try:
        found = find_steps(directory, external.step)
    except ScalpelError as error:
        tell(str(error))
        return []
    if not found and any(one.name != SPOOLS for one in directory.iterdir()):
        tell(f"waits: {why_no_step(directory)}")
    return found


def _state_of(directory: Path) -> tuple[Any, ...]:
    """Names, sizes and times of all files, which change while the directory is written."""
    try:
        stats = [(str(file), file.stat()) for file in sorted(directory.rglob("*"))]
    except FileNotFoundError:  # a temporary file that was renamed meanwhile
        return (time.monotonic(),)
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
