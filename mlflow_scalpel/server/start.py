"""Lists of the start page: experiments, runs, checkpoints. No artifact is read for it."""

from __future__ import annotations

from typing import Any

from mlflow.entities import Run

from mlflow_scalpel.checkpoints.search import PRUNED_TAG, by_step, check_run_id, state_of, step_of
from mlflow_scalpel.comparison.run_queries import EVALUATED_RUN_TAG, Source, compared_by
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.run_warnings import FAILURE_TAG

MOST_SHOWN = 500
"""Runs of an experiment that the page lists, the newest."""
_LONGEST_TEXT = 400  # characters of a name or a param; the rest is cut off


def experiment_rows(source: Source) -> list[dict[str, str]]:
    """ID and name of each experiment, the last changed first."""
    return [{"id": str(one.experiment_id), "name": _cut(one.name)} for one in source.experiments()]


def run_rows(source: Source, experiment_id: str) -> dict[str, Any]:
    """The runs of an experiment that a view can show, the newest first.

    Those are the runs with checkpoints or with something measured; evaluations and comparisons
    belong to the runs that they measured and are not listed.
    """
    if not experiment_id.isdecimal():
        raise ScalpelError(
            f"experiment {experiment_id[:80]!r}: is not an experiment's ID, a number"
        )
    every = source.runs(experiment_id)
    later: dict[str, set[str]] = {}  # run ID -> groups that other runs measured of it
    for one in every:
        for run_id in _measures(one):
            later.setdefault(run_id, set()).update(_measured(one))
    runs = [run for run in every if _can_be_shown(run)]
    rows = [_row(run, later.get(run.info.run_id, set())) for run in runs[:MOST_SHOWN]]
    return {"runs": rows, "left_off": len(runs[MOST_SHOWN:])}


def checkpoint_rows(source: Source, run_id: str) -> list[dict[str, Any]]:
    """The checkpoints of a run in order of step, with their state."""
    check_run_id(run_id)
    models = [model for model in source.models(source.run(run_id)) if step_of(model) > 0]
    return [
        {
            "step": step_of(model),
            "model_id": model.model_id,
            "name": _cut(model.name),
            "state": state_of(model),
            "reason": _cut(model.tags.get(FAILURE_TAG) or model.tags.get(PRUNED_TAG) or ""),
        }
        for model in sorted(models, key=by_step)
    ]


def _can_be_shown(run: Run) -> bool:
    if _measures(run):
        return False
    made = run.outputs.model_outputs if run.outputs else []
    return bool(made) or bool(_measured(run)) or "scalpel.imported" in run.data.tags


def _measures(run: Run) -> set[str]:
    """The IDs of the runs that this one evaluated or compared."""
    evaluated = run.data.tags.get(EVALUATED_RUN_TAG)
    return compared_by(run) | ({evaluated} if evaluated else set())


def _measured(run: Run) -> set[str]:
    """The groups of metrics of which the run has a summary."""
    groups = {key.split("/")[0] for key in run.data.metrics if "/" in key}
    return groups & {"weights", "kl", "attention", "capabilities", "eval", "frozen"}


def _row(run: Run, later: set[str]) -> dict[str, Any]:
    params, tags = run.data.params, run.data.tags
    made = run.outputs.model_outputs if run.outputs else []
    names = ("base_name", "base_model", "base", "base_model_id")
    base = next((params[name] for name in names if params.get(name)), "")
    return {
        "id": run.info.run_id,
        "name": _cut(run.info.run_name or run.info.run_id),
        "algorithm": _cut(params.get("algorithm") or tags.get("scalpel.algorithm") or ""),
        "status": str(run.info.status),
        "started": run.info.start_time,
        "base": _cut(base),
        "learning_rate": _cut(params.get("learning_rate", "")),
        "steps": _cut(params.get("max_steps", "")),
        "checkpoints": sorted({int(output.step) for output in made if output.step > 0}),
        "measured": sorted(_measured(run) | later),
        "imported": "scalpel.imported" in tags,
    }


def _cut(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _LONGEST_TEXT else line[: _LONGEST_TEXT - 1] + "\u2026"
