"""Puts what a trainer noted of its training into the run that its checkpoints are logged to.

All of it may be done again: what the run has already is left as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, ViewType
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints.trainer_state import (
    RATES,
    STATE,
    dtype_of,
    history_of,
    known_of_step,
    metric_name,
    points,
    rates_of,
    read_state,
    settings_of,
    settings_of_run,
)
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.server_errors import check_answered

_BATCH = 1000  # metrics of one request
_LOSSES = ("loss", "train/loss", "train_loss", "actor/pg_loss", "reward", "critic/rewards/mean")
_RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Notes:
    """What the trainer noted, in its own files or in a run of its own."""

    history: Sequence[tuple[int, Mapping[str, float]]] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    rates: Mapping[int, float] = field(default_factory=dict)
    """Those of the trainer's own run, by step; empty where the state has its own."""
    written: int = 0
    """When it was written, in milliseconds since 1970."""


def read_notes(
    home: Path, newest: Path | None, trainer_run: str | None, own_run: str | None
) -> Notes:
    """What there is in the newest step's directory, in the run's, and in the trainer's own run.

    Args:
        home: the run's directory.
        newest: directory of its newest step.
        trainer_run: ID of the run that the trainer itself logged, where the user names it.
        own_run: ID of the run that the checkpoints go to, which may be that run too.

    Raises:
        ScalpelError: there is no run `trainer_run`, or a state cannot be read.
    """
    states = [
        (entries[-1][0], folder, state)
        for folder in dict.fromkeys(filter(None, (newest, home)))
        if (entries := history_of(state := read_state(folder)))
    ]
    settings: dict[str, str] = {}
    history: Sequence[tuple[int, Mapping[str, float]]] = ()
    written = 0
    if states:
        _, folder, state = max(states, key=lambda found: found[0])
        history, settings = history_of(state), settings_of(state)
        written = int((folder / STATE).stat().st_mtime * 1000)
    rates: dict[int, float] = {}
    run = _trainer_run(home, trainer_run, own_run)
    if run is not None:
        settings |= settings_of_run(run)
        values = _histories(run)
        noted = rates_of(values)
        rates = noted if len(noted) >= len(rates_of(history)) else {}
        if not history:
            history, written = values, int(run.info.start_time or 0)
    if newest is not None and "weights_dtype" not in settings:
        dtype = dtype_of(newest)
        settings |= {"weights_dtype": dtype} if dtype else {}
    noted = rates or rates_of(history)
    if noted and "learning_rate" not in settings:
        settings["learning_rate"] = f"{max(noted.values()):.6g}"
    return Notes(history, settings, rates, written)


def log_notes(run_id: str, notes: Notes) -> None:
    """Log history and settings to the run, but for what it has; say which names were changed."""
    client = MlflowClient()
    has = client.get_run(run_id).data
    params = {key: value for key, value in notes.settings.items() if key not in has.params}
    if params:
        client.log_batch(run_id, params=[Param(key, value) for key, value in params.items()])
    found = list(points(notes.history))
    known = {
        (key, point.step)
        for key in {key for key, _, _ in found} & set(has.metrics)
        for point in client.get_metric_history(run_id, key)
    }
    metrics = [
        Metric(key, value, notes.written, step)
        for key, step, value in found
        if (key, step) not in known
    ]
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
    changed = sorted(
        {key for _, values in notes.history for key in values if metric_name(key) != key}
    )
    if changed and metrics:
        told = ", ".join(f"{key} as {metric_name(key)}" for key in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        print(f"metrics that MLflow takes under another name only: {told}{more}", flush=True)


def params_of(directories: Sequence[Path], step: int, notes: Notes | None = None) -> dict[str, str]:
    """Params of the checkpoint of a step: rate, its sum so far, steps and dtype, where known.

    The state of the first directory that has one counts. Raises ScalpelError where it cannot be
    read.
    """
    state: dict[str, Any] = {}
    for directory in directories:
        state = state or read_state(directory)
    rates = notes.rates if notes else {}
    if not rates and notes and not rates_of(history_of(state)):
        rates = rates_of(notes.history)
    params = known_of_step(state, step, rates)
    for name in ("learning_rate", "max_steps"):
        if notes and name in notes.settings:
            params[name] = notes.settings[name]
    if params and (dtype := dtype_of(directories[0])):
        params["dtype"] = dtype
    return params


def _trainer_run(home: Path, named: str | None, own_run: str | None) -> Run | None:
    """The run that the trainer itself logged: named, beside the checkpoints, or known by them."""
    client = MlflowClient()
    if named is not None:
        try:
            return client.get_run(named)
        except MlflowException as error:
            check_answered(error)
            raise ScalpelError(
                f"run {named}: there is no such run at {mlflow.get_tracking_uri()} ({error}); "
                "give the ID of the run that the trainer logged"
            ) from error
    if own_run is not None:
        run = client.get_run(own_run)
        if any(name in run.data.metrics for name in RATES):
            return run
    for file in sorted(home.glob("*run_id*")):
        if file.is_file() and file.stat().st_size < 100:
            found = _RUN_ID.search(file.read_text(encoding="utf-8", errors="replace"))
            if found:
                try:
                    return client.get_run(found[0])
                except MlflowException:  # of another server
                    continue
    return _by_output_directory(client, home, own_run)


def _by_output_directory(client: MlflowClient, home: Path, own_run: str | None) -> Run | None:
    """The only run whose param `output_dir`, which Transformers logs, is this directory."""
    relative = os.path.relpath(home)
    experiments = [known.experiment_id for known in client.search_experiments(max_results=1000)]
    runs: dict[str, Run] = {}
    for spelled in dict.fromkeys((str(home), relative, f"./{relative}")):
        quoted = spelled.replace("'", "\\'")
        for run in client.search_runs(
            experiments, f"params.output_dir = '{quoted}'", ViewType.ACTIVE_ONLY, max_results=10
        ):
            if run.info.run_id != own_run:
                runs[run.info.run_id] = run
    return next(iter(runs.values())) if len(runs) == 1 else None


def _histories(run: Run) -> list[tuple[int, dict[str, float]]]:
    """Rates and losses of a run, by step."""
    client = MlflowClient()
    by_step: dict[int, dict[str, float]] = {}
    for name in (*RATES, *_LOSSES):
        if name in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, name):
                by_step.setdefault(int(point.step), {})[name] = float(point.value)
    return sorted(by_step.items())
