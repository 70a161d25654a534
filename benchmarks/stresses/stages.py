"""A training stage that is killed at random moments, and resumed until it is done."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import mlflow
from mlflow import MlflowClient

from stresses.world import Trial

_PROJECTS = Path(__file__).resolve().parents[2] / "projects"
_STEPS = (2, 4, 6, 8)
_KILLS = 3
_LONGEST = 25.0  # seconds that a stage of eight steps takes, more or less
_STAGE = """
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_SETTINGS = (
    "train.max_steps=8 train.per_device_train_batch_size=8 checkpoints.count=4 threads=1 "
    "rare_metrics=[] probes.base_style.limit=4 probes.teacher_style.limit=4"
)


def sft(trial: Trial, random: Random) -> None:
    """SFT with live measuring: four checkpoints, each registered and measured once."""
    trial.begin()
    script = str(_PROJECTS / "sft" / "sft.py")
    base = _base(trial)
    for attempt in range(_KILLS + 1):
        begun = _run_of_stage(trial)
        words = ["--recipe", "tiny", "--set", f"model={base} {_SETTINGS}"]
        if begun is not None:
            words = ["--resume", begun]
        child = trial.start(script, *words, code=_STAGE)
        if attempt == _KILLS:
            trial.finish(child)
        elif not trial.kill(child, random.uniform(0, _LONGEST)):
            trial.finish(child)
            break
    run_id = _run_of_stage(trial)
    assert run_id is not None  # it ended well
    trial.found["running"] += _others_running(trial, run_id)
    trial.out = trial.home / "outputs" / run_id
    trial.name = "tiny-sft"
    trial.count(run_id, _STEPS, ended=True)


def _run_of_stage(trial: Trial) -> str | None:
    """The stage's newest run that has not been given up; None before it has begun one."""
    mlflow.set_tracking_uri(trial.uri)
    runs = MlflowClient().search_runs(
        [trial.experiment], "tags.`scalpel.stage` = 'sft'", order_by=["start_time DESC"]
    )
    begun = [run.info.run_id for run in runs if run.info.status != "KILLED"]
    return begun[0] if begun else None


def _others_running(trial: Trial, run_id: str) -> int:
    runs = MlflowClient().search_runs([trial.experiment], "tags.`scalpel.stage` = 'sft'")
    return sum(run.info.status == "RUNNING" for run in runs if run.info.run_id != run_id)


def _base(trial: Trial) -> Path:
    """A base of a few steps, made once for all trials."""
    base = trial.world.folder / "tiny-base"
    if not base.is_dir():
        from mlflow_scalpel import pull

        home = trial.world.folder / "tiny-base-run"
        home.mkdir()
        store = f"sqlite:///{home}/mlflow.db"
        trial.run(
            str(_PROJECTS / "base" / "base.py"),
            *("--recipe", "tiny", "--set", "train.steps=6 text.sequences=300 threads=1"),
            code=_STAGE,
            env={"MLFLOW_TRACKING_URI": store, "MLFLOW_EXPERIMENT_NAME": "base"},
        )
        mlflow.set_tracking_uri(store)
        pulled = pull("models:/tiny-base/latest", dst=home / "pulled")
        shutil.copytree(pulled, base)
    return base


SCENARIOS = {"sft": sft}
