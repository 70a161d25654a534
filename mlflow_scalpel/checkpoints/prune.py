"""Frees the bytes of a run's checkpoints that nobody wants to keep; measurements are kept."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints.artifact_store import open_store
from mlflow_scalpel.checkpoints.files import MANIFEST, MLMODEL
from mlflow_scalpel.checkpoints.search import (
    PRUNED_TAG,
    metrics_of,
    models_of_run,
    registrations,
    state_of,
    step_of,
)
from mlflow_scalpel.errors import ScalpelError

_ALWAYS_KEPT = (MLMODEL, MANIFEST)


@dataclass(frozen=True)
class ToDelete:
    """A checkpoint whose files are to be deleted."""

    step: int
    model_id: str
    location: str
    files: Mapping[str, int]
    """Bytes of each file to delete."""
    begun: bool = False
    """Whether an earlier prune began with it, and was cut off."""

    @property
    def bytes(self) -> int:
        """Bytes of all files to delete."""
        return sum(self.files.values())


@dataclass(frozen=True)
class ToKeep:
    """A checkpoint that is left as it is."""

    step: int
    model_id: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A run's checkpoints that `prune` deletes, and those that it keeps."""

    run_id: str
    to_delete: tuple[ToDelete, ...]
    """In order of step."""
    to_keep: tuple[ToKeep, ...]
    """In order of step."""
    bytes_free: int
    """Bytes that become free on the disk: less than `bytes` where files have further hard links,
    in the trainer's output directory or in checkpoints that are kept."""

    @property
    def bytes(self) -> int:
        """Bytes of all files to delete."""
        return sum(checkpoint.bytes for checkpoint in self.to_delete)


def plan_prune(
    run_id: str,
    *,
    keep: int | None = None,
    keep_every: int | None = None,
    keep_best: str | None = None,
    minimize: bool = False,
) -> Plan:
    """Tell which checkpoints of a run to delete and which to keep; nothing is changed.

    A checkpoint is kept if any rule keeps it, or if a registered version of it has an alias. Only
    READY ones are deleted, and those that an earlier prune did not finish. The base never is.

    Args:
        run_id: the run.
        keep: keeps that many of the newest (largest steps).
        keep_every: keeps the steps that are multiples of it.
        keep_best: keeps the one with the largest value of this metric of the models.
        minimize: the smallest value of `keep_best` in place of the largest.

    Raises:
        ScalpelError: no rule is given or one is not positive, there is no such run, or no
            checkpoint has the metric.
    """
    _check_rules(keep, keep_every, keep_best, minimize)
    _, models = models_of_run(run_id)
    ready = [model for model in models if state_of(model) == "READY"]
    reasons: dict[str, list[str]] = defaultdict(list)
    if keep is not None:
        for model in ready[-keep:]:
            reasons[model.model_id].append(f"one of the {keep} newest")
    if keep_every is not None:
        for model in ready:
            if step_of(model) % keep_every == 0:
                reasons[model.model_id].append(f"a multiple of {keep_every}")
    if keep_best is not None:
        best, value = _best(ready, keep_best, minimize, run_id)
        reasons[best.model_id].append(f"the best {keep_best} ({value:.6g})")
    for model_id, aliases in _aliases().items():
        reasons[model_id] += [f"has the alias {alias}" for alias in aliases]

    to_delete, to_keep = [], []
    for model in models:
        state = state_of(model)
        files = _files(model) if state in ("READY", "PRUNED") else {}
        why = tuple(reasons[model.model_id])
        if state == "PRUNED":
            why = () if files else ("was pruned before",)
        elif state != "READY":
            why = (f"is {state}",)
        elif not files:
            why = (*why, "has no files to delete")
        if why:
            to_keep.append(ToKeep(step_of(model), model.model_id, why))
        else:
            to_delete.append(
                ToDelete(
                    step_of(model),
                    model.model_id,
                    model.artifact_location,
                    files,
                    begun=state == "PRUNED",
                )
            )
    return Plan(run_id, tuple(to_delete), tuple(to_keep), _bytes_to_be_freed(to_delete))


def prune(plan: Plan) -> list[ToDelete]:
    """Delete the files of the checkpoints to delete, all but MLmodel and manifest.json.

    Params, metrics, versions and aliases are kept. The tag `scalpel.pruned` (time in UTC, ISO) is
    set before a checkpoint's first file is deleted, so one that was cut off is PRUNED, and is
    finished by the next prune. Returns those that were pruned: not those that were given an alias
    since the plan was made.

    Raises ScalpelError where a store refuses to delete.
    """
    client = MlflowClient()
    aliases = _aliases()
    pruned = [
        checkpoint
        for checkpoint in plan.to_delete
        if checkpoint.begun or checkpoint.model_id not in aliases
    ]
    for checkpoint in pruned:
        if not checkpoint.begun:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            client.set_logged_model_tags(checkpoint.model_id, {PRUNED_TAG: now})
        store = open_store(checkpoint.location)
        for name in checkpoint.files:
            try:
                store.delete(name)
            except (MlflowException, OSError) as error:
                raise ScalpelError(
                    f"{checkpoint.location}/{name} (step {checkpoint.step}) could not be deleted "
                    f"({error}); the checkpoint is PRUNED already: when this is fixed, prune "
                    "again to delete the rest"
                ) from error
    return pruned


def _check_rules(
    keep: int | None, keep_every: int | None, keep_best: str | None, minimize: bool
) -> None:
    if keep is None and keep_every is None and keep_best is None:
        raise ScalpelError(
            "no rule says what to keep; give --keep N (the newest), --keep-every K (multiples of "
            "K steps) or --keep-best METRIC, or several of them"
        )
    for name, number in (("keep", keep), ("keep-every", keep_every)):
        if number is not None and number < 1:
            raise ScalpelError(f"{name} = {number}: has to be 1 or more")
    if minimize and keep_best is None:
        raise ScalpelError("minimize is given without a metric; name one with --keep-best METRIC")


def _best(
    ready: Sequence[LoggedModel], metric: str, minimize: bool, run_id: str
) -> tuple[LoggedModel, float]:
    """The checkpoint with the best value, and this value; the latest of several that are equal."""
    values = [(metrics_of(model).get(metric, math.nan), model) for model in ready]
    known = [(value, model) for value, model in values if not math.isnan(value)]
    if not known:
        names = sorted({name for model in ready for name in metrics_of(model)})
        raise ScalpelError(
            f"keep-best = {metric}: no READY checkpoint of run {run_id} has a value of this "
            f"metric; there are {', '.join(names) or 'no metrics at all'}"
        )
    sign = -1 if minimize else 1
    value, best = max(known, key=lambda one: (sign * one[0], step_of(one[1])))
    return best, value


def _aliases() -> dict[str, list[str]]:
    """Model ID -> aliases, of all models that have one."""
    return {
        model_id: sorted(registered.aliases)
        for model_id, registered in registrations(MlflowClient()).items()
        if registered.aliases
    }


def _files(model: LoggedModel) -> dict[str, int]:
    """Bytes of each stored file that pruning would delete; none of a pointer, which is tiny."""
    if model.params.get("kind") == "pointer":
        return {}
    sizes = open_store(model.artifact_location).sizes()
    return {name: size for name, size in sizes.items() if name not in _ALWAYS_KEPT}


def _bytes_to_be_freed(to_delete: Sequence[ToDelete]) -> int:
    """Bytes that no name leads to any more once the files are gone.

    Blocks that a reflink shares with another file cannot be distinguished, and are counted.
    """
    free = 0
    links: Counter[tuple[int, int]] = Counter()
    local = {}
    for checkpoint in to_delete:
        directory = open_store(checkpoint.location).local
        if directory is None:
            free += checkpoint.bytes
            continue
        for name in checkpoint.files:
            status = (directory / name).lstat()
            links[status.st_dev, status.st_ino] += 1
            local[status.st_dev, status.st_ino] = status
    return free + sum(
        status.st_size for key, status in local.items() if links[key] == status.st_nlink
    )
