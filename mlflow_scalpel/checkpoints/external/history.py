"""The notes that a trainer took of its training, and logging them to the run of its checkpoints.

They are read from `trainer_state.json`, or from the run that the trainer logged itself. Rates are
noted every few steps only; the sum over all steps is interpolated between them, and marked as
approximate. All of it may be logged again: what the run has already is left as it is.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, ViewType
from mlflow.exceptions import MlflowException

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.server_errors import check_answered
from mlflow_scalpel.tensors.documents import read_object
from mlflow_scalpel.tensors.files import TORCH_NAMES, TensorFiles

_BATCH = 1000  # metrics of one request
_LOSSES = ("loss", "train/loss", "train_loss", "actor/pg_loss", "reward", "critic/rewards/mean")
_RUN_ID = re.compile(r"[0-9a-f]{32}")
STATE = "trainer_state.json"
# What trainers call the learning rate, the first that is there.
RATES = (
    "learning_rate", "train/learning_rate", "lr", "train/lr", "actor/lr", "optim/lr",
    "train_learning_rate", "policy/lr",
)  # fmt: skip
# Settings of the Trainer, of its state or among the params that its MLflow callback logs; ours.
_SETTINGS = {
    "max_steps": "max_steps",
    "num_train_epochs": "num_train_epochs",
    "train_batch_size": "train_batch_size",
    "per_device_train_batch_size": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "lr_scheduler_type",
    "warmup_steps": "warmup_steps",
    "weight_decay": "weight_decay",
    "optim": "optim",
    "seed": "seed",
    "logging_steps": "logging_steps",
}
_REFUSED = re.compile(r"[^0-9A-Za-z_\-. :/]")  # by MLflow in a metric's name
_LONGEST_NAME = 250


@dataclass(frozen=True)
class Notes:
    """A trainer's notes, from its own files or from a run of its own."""

    history: Sequence[tuple[int, Mapping[str, float]]] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    rates: Mapping[int, float] = field(default_factory=dict)
    """Those of the trainer's own run, by step; empty where the state has its own."""
    written: int = 0
    """When it was written, in milliseconds since 1970."""


def read_notes(
    home: Path, newest: Path | None, trainer_run: str | None, own_run: str | None
) -> Notes:
    """The notes in the newest step's directory, in the run's, and in the trainer's own run.

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
    """Log history and settings to the run, but for what it has; print which names were changed."""
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
        renamed = ", ".join(f"{key} as {metric_name(key)}" for key in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        print(f"metrics that MLflow takes under another name only: {renamed}{more}", flush=True)


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


def read_state(directory: Path) -> dict[str, Any]:
    """The trainer's state beside a checkpoint, {} where there is none.

    Raises ScalpelError where it is not a readable JSON object.
    """
    file = directory / STATE
    return read_object(file) if file.is_file() else {}


def history_of(state: Mapping[str, Any]) -> list[tuple[int, dict[str, float]]]:
    """Step and values of each entry of the state's log, numbers alone; what is odd is left out."""
    log = state.get("log_history")
    entries = []
    for entry in log if isinstance(log, list) else ():
        if not isinstance(entry, dict) or not _is_step(entry.get("step")):
            continue
        found = {str(key): _number(value) for key, value in entry.items() if key != "step"}
        values = {key: value for key, value in found.items() if value is not None}
        entries.append((int(entry["step"]), values))
    return entries


def metric_name(key: str) -> str:
    """A name that MLflow takes, as Transformers' own callback writes it: others become `_`."""
    name = _REFUSED.sub("_", key)
    # `/`, `.` and `..` at the ends of parts would be paths.
    name = "/".join(part for part in name.split("/") if part.strip(". ")) or "_"
    return name[:_LONGEST_NAME]


def metric_names(keys: Iterable[str]) -> dict[str, str]:
    """The names under which metrics are logged; no two keys get one name."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for key in sorted(set(keys), key=lambda one: (metric_name(one) != one, one)):
        name, number = metric_name(key), 1
        while name in taken:
            number += 1
            name = f"{metric_name(key)[: _LONGEST_NAME - 4]}_{number}"
        taken.add(name)
        names[key] = name
    return names


def rates_of(history: Iterable[tuple[int, Mapping[str, float]]]) -> dict[int, float]:
    """The learning rate by step, of the first name under which there is one."""
    entries = list(history)
    for key in RATES:
        found = {step: values[key] for step, values in entries if key in values and step > 0}
        found = {step: rate for step, rate in found.items() if math.isfinite(rate) and rate >= 0}
        if found:
            return found
    return {}


def rate_sum(rates: Mapping[int, float], step: int) -> tuple[float, bool] | None:
    """Sum of the rates of steps 1 to `step`, and whether each of them was noted.

    Between two noted steps the rate is interpolated linearly, and continued likewise before the
    first and after the last, never below 0 (so constant and linear schedules are exact, a warm-up
    that ends between two notes is not). None where no rate is known.
    """
    known = sorted((at, rate) for at, rate in rates.items() if at <= step)
    if not known or step < 1:
        return None
    if len(known) == step:
        return math.fsum(rate for _, rate in known), True
    import numpy as np

    steps, values = (np.array(column, dtype=np.float64) for column in zip(*known, strict=True))
    every = np.arange(1, step + 1, dtype=np.float64)
    rate = np.interp(every, steps, values)
    if len(known) > 1:
        for where, first, second in (
            (every < steps[0], 0, 1),
            (every > steps[-1], -1, -2),
        ):
            slope = (values[second] - values[first]) / (steps[second] - steps[first])
            rate[where] = values[first] + slope * (every[where] - steps[first])
    return float(np.maximum(rate, 0.0).sum()), False


def known_of_step(
    state: Mapping[str, Any], step: int, rates: Mapping[int, float] | None = None
) -> dict[str, str]:
    """Params of a checkpoint that the trainer's notes give: rate, its sum so far, steps.

    `rates` are those of the trainer's own run, in place of the state's.
    """
    found: dict[str, str] = {}
    if _is_step(state.get("max_steps")) and state["max_steps"] > 0:
        found["max_steps"] = str(int(state["max_steps"]))
    exact = _own_sum(state, step)
    noted = rates or rates_of(history_of(state))
    if noted:
        found["learning_rate"] = f"{max(noted.values()):.6g}"
    summed = (exact, True) if exact is not None else rate_sum(noted, step)
    if summed is not None:
        found["learning_rate_sum"] = repr(summed[0])
        if not summed[1]:
            found["learning_rate_sum_is"] = "approximate: interpolated between the noted steps"
    return found


def settings_of(state: Mapping[str, Any]) -> dict[str, str]:
    """Settings of the run that the state tells: steps, epochs, batch."""
    return {
        name: _text(state[key])
        for key, name in _SETTINGS.items()
        if _is_step(state.get(key)) and state[key] > 0
    }


def settings_of_run(run: Run) -> dict[str, str]:
    """Settings that the trainer itself logged as params of its run."""
    params = run.data.params
    found = {
        name: params[key]
        for key, name in _SETTINGS.items()
        if params.get(key) not in (None, "", "None", "-1")
    }
    dtype = params.get("dtype") or params.get("torch_dtype")
    if dtype not in (None, "", "None", "auto"):
        found["weights_dtype"] = str(dtype).removeprefix("torch.")
    return found


def dtype_of(directory: Path) -> str | None:
    """The dtype of most of the stored elements; None where the weights cannot be read."""
    elements: dict[str, int] = {}
    try:
        for header in TensorFiles(directory).headers.values():
            elements[header.dtype] = elements.get(header.dtype, 0) + header.elements
    except (ScalpelError, OSError):
        return None
    most = max(elements, key=lambda name: elements[name], default=None)
    return TORCH_NAMES.get(most or "")


def _own_sum(state: Mapping[str, Any], step: int) -> float | None:
    """The exact sum, where our own callback kept it in the state of this step."""
    callbacks = state.get("stateful_callbacks")
    kept = callbacks.get("CheckpointCallback") if isinstance(callbacks, dict) else None
    value: Any = kept.get("learning_rate_sum") if isinstance(kept, dict) else None
    return float(value) if _is_number(value) and state.get("global_step") == step else None


def _number(value: Any) -> float | None:
    """The number that a value of the log is, which may be written as a text; None where none is."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return float(value) if _is_number(value) else None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**63 if isinstance(value, int) else True


def _is_step(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value) and 0 <= value < 2**53


def _text(value: float) -> str:
    return json.dumps(int(value) if value == int(value) else value)


def points(
    history: Iterable[tuple[int, Mapping[str, float]]],
) -> Iterator[tuple[str, int, float]]:
    """Name, step and value of each metric of a history, once each."""
    entries = list(history)
    names = metric_names(key for _, values in entries for key in values)
    latest: dict[tuple[str, int], float] = {}
    for step, values in entries:
        for key, value in values.items():
            latest[names[key], step] = value
    for (name, step), value in latest.items():
        yield name, step, value
