"""Training processes that are killed, and resumed: nothing lost, nothing twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_scalpel.checkpoints.search import checkpoints_of_run
from mlflow_scalpel.comparison.run_store import stored_table
from mlflow_scalpel.runs.resume import RESUMED_TAG
from tests.interpreters import Interpreter

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MLFLOW = Path(sys.executable).with_name("mlflow")
TINY = (
    "train.steps=4 text.sequences=200 train.batch_size=32 threads=1 architecture.hidden_size=32 "
    "architecture.num_hidden_layers=3 architecture.intermediate_size=64"
)
SHORT = (
    "train.max_steps=8 train.per_device_train_batch_size=8 checkpoints.count=4 threads=1 "
    "probes.base_style.limit=4 probes.teacher_style.limit=4 metrics=[weights,kl] "
    "rare_metrics=[kl_on_base_samples]"
)

# Runs a stage, and ends its process without a word at the given place.
KILLER = """
import os, runpy, signal, sys
from pathlib import Path

import transformers

place, step, script = sys.argv[1], int(sys.argv[2]), sys.argv[3]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name, act, at):
    real = getattr(owner, name)
    def patched(self, *arguments, **options):
        if at(self):
            act(self)
        return real(self, *arguments, **options)
    setattr(owner, name, patched)

Trainer = transformers.Trainer
reached = lambda trainer: trainer.state.global_step == step
if place == "between saves":
    before(Trainer, "training_step", lambda trainer: die(), reached)
elif place == "in a save":
    before(Trainer, "_save_optimizer_and_scheduler", lambda trainer: die(), reached)
elif place == "power cut":
    def cut(trainer):
        weights = Path(trainer.args.output_dir, f"checkpoint-{step}", "model.safetensors")
        os.truncate(weights, weights.stat().st_size // 2)
        die()
    before(Trainer, "_save_rng_state", cut, reached)
elif place == "after a save":
    from mlflow_scalpel.training.callback import CheckpointCallback
    real = CheckpointCallback.on_save
    def on_save(self, args, state, control, **options):
        if state.global_step == step:
            die()
        return real(self, args, state, control, **options)
    CheckpointCallback.on_save = on_save
elif place in ("after measuring", "after it was trained"):
    from mlflow_scalpel.training.callback import CheckpointCallback
    name = {"after measuring": "_measure", "after it was trained": "on_train_end"}[place]
    real = getattr(CheckpointCallback, name)
    def then_die(self, first, second, *rest, **options):
        real(self, first, second, *rest, **options)
        if name == "on_train_end" or second == step:
            die()
    setattr(CheckpointCallback, name, then_die)
elif place == "before its recipe is stored":
    import mlflow
    mlflow.log_text = lambda *_: die()
elif place == "before its base is opened":
    from mlflow_scalpel.training import base
    base.open_base = lambda *_: die()
sys.argv = sys.argv[3:]
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory, training_python):
    """A directory with a base model in a tracking store of its own."""
    folder = tmp_path_factory.mktemp("resume")
    shutil.copytree(ROOT / "projects", folder / "projects")
    shutil.copy(ROOT / "MLproject", folder)
    shutil.copy(ROOT / "conda.yaml", folder)
    (folder / "killer.py").write_text(KILLER)
    uri = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    stage(training_python, folder, "base", TINY)
    yield folder
    mlflow.set_tracking_uri(None)


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return kept | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{MLFLOW.parent}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
    }


def stage(
    python: Interpreter,
    home: Path,
    name: str,
    settings: str,
    *,
    kill: tuple[str, int] | None = None,
) -> str:
    """Run a stage as a process, killed where `kill` says; its run ID."""
    script = f"projects/{name}/{name}.py"
    words = [script] if kill is None else ["killer.py", kill[0], str(kill[1]), script]
    done = python.run([*words, "--set", settings], cwd=home, env=environment(home))
    expected = 0 if kill is None else -signal.SIGKILL
    assert done.returncode == expected, done.stdout + done.stderr
    return newest_run().info.run_id


def newest_run() -> Run:
    (run,) = MlflowClient().search_runs(["0"], max_results=1, order_by=["start_time DESC"])
    return run


def train(
    python: Interpreter, home: Path, algorithm: str, *, kill: tuple[str, int] | None = None
) -> str:
    model = "model=models:/tiny-base/latest"
    return stage(python, home, algorithm, f"{model} {SHORT}", kill=kill)


def resume(python: Interpreter, home: Path, algorithm: str, run_id: str, *, code: int = 0) -> str:
    """Take a run up in a process of its stage; what was printed."""
    words = [f"projects/{algorithm}/{algorithm}.py", "--resume", run_id]
    done = python.run(words, cwd=home, env=environment(home))
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def mlflow_run(home: Path, algorithm: str, run_id: str) -> None:
    """Take a run up as a user does, in an interpreter that has imported nothing before."""
    done = subprocess.run(
        [
            *(str(MLFLOW), "run", ".", "-e", algorithm, "--env-manager", "local"),
            *("-P", f"resume={run_id}"),
        ],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def uninterrupted(home, training_python):
    """Digest of the last checkpoint, and the values of runs that nobody killed."""
    runs = {algorithm: train(training_python, home, algorithm) for algorithm in ("sft", "grpo")}
    return {
        algorithm: (checkpoints_of_run(run)[1][-1].digest, values(run))
        for algorithm, run in runs.items()
    }


def values(run_id: str) -> pd.Series:
    """All that was measured but times, in one order."""
    table = stored_table(run_id)
    table = table[~table["metric"].isin(["cost/wall_seconds", "cost/measuring_seconds"])]
    keys = ["step", "metric", "layer", "head", "matrix", "bin", "texts"]
    return table.set_index(keys)["value"].sort_index()


@pytest.mark.parametrize(
    ("algorithm", "place", "step", "goes_on_from"),
    [
        ("sft", "before its recipe is stored", 0, 0),
        ("sft", "before its base is opened", 0, 0),
        ("sft", "between saves", 1, 0),
        ("sft", "in a save", 2, 0),
        ("sft", "between saves", 5, 4),
        ("sft", "power cut", 6, 4),
        ("sft", "after a save", 6, 6),
        ("sft", "after a save", 8, 8),
        ("sft", "after measuring", 8, 8),
        ("sft", "after it was trained", 8, 8),
        ("grpo", "in a save", 6, 4),
    ],
)
def test_a_killed_run_ends_as_if_nobody_had_killed_it(
    home, training_python, uninterrupted, algorithm, place, step, goes_on_from
):
    run_id = train(training_python, home, algorithm, kill=(place, step))
    assert MlflowClient().get_run(run_id).info.status == "RUNNING"
    if place == "power cut":
        mlflow_run(home, algorithm, run_id)
    else:
        resume(training_python, home, algorithm, run_id)

    run = MlflowClient().get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags[RESUMED_TAG].startswith(f"from step {goes_on_from}")
    _, checkpoints = checkpoints_of_run(run_id)
    assert [(c.step, c.status) for c in checkpoints] == [(s, "READY") for s in (2, 4, 6, 8)]
    assert sorted(o.step for o in run.outputs.model_outputs) == [2, 4, 6, 8]
    versions = MlflowClient().search_model_versions(f"run_id = '{run_id}'")
    assert sorted(int(version.tags["step"]) for version in versions) == [2, 4, 6, 8]
    for metric in ("loss", "weights/relative_frobenius/mean", "cost/tokens_trained"):
        steps = [point.step for point in MlflowClient().get_metric_history(run_id, metric)]
        wanted = range(1, 9) if metric == "loss" else (0, 2, 4, 6, 8)
        assert steps == list(wanted), metric
    table = stored_table(run_id)
    norms = table[table["metric"] == "weights/relative_frobenius"]
    assert list(norms.groupby("step").size()) == [norms.groupby("step").size().iloc[0]] * 5
    identified = dict(zip(table["step"], table["model_id"], strict=True))
    assert {step: identified[step] for step in (2, 4, 6, 8)} == {
        c.step: c.model_id for c in checkpoints
    }
    assert set(table["model_digest"]) >= {c.digest for c in checkpoints}
    assert not set(table["model_digest"]) & {"", None}
    alias = MlflowClient().get_model_version_by_alias(versions[0].name, f"last-{run_id}")
    assert alias.tags["step"] == "8"
    # bit by bit what it would have been
    digest, measured = uninterrupted[algorithm]
    assert checkpoints[-1].digest == digest
    pd.testing.assert_series_equal(values(run_id), measured)
    last = {c.step: c.learning_rate_sum for c in checkpoints}
    assert last[8] > last[6] > last[4]


def test_what_cannot_be_taken_up_says_why(home, training_python, uninterrupted):
    finished = MlflowClient().search_runs(
        ["0"], "attributes.status = 'FINISHED' AND attributes.run_name = 'tiny-sft'"
    )[0]
    run_id = finished.info.run_id
    assert "has FINISHED, so nothing of it is left to do" in resume(
        training_python, home, "sft", run_id, code=2
    )
    assert "is a run of sft; resume it with" in resume(
        training_python, home, "grpo", run_id, code=2
    )
    assert "there is no such run" in resume(training_python, home, "sft", "0" * 32, code=2)


def test_what_cannot_be_resumed_is_ended(home, training_python, uninterrupted):
    run_id = train(training_python, home, "sft", kill=("between saves", 5))
    shutil.move(home / "outputs" / run_id, home / "elsewhere")
    said = resume(training_python, home, "sft", run_id, code=2)
    assert f"outputs/{run_id} is not under" in said
    assert "is KILLED now" in said
    run = MlflowClient().get_run(run_id)
    assert run.info.status == "KILLED"
    assert "its checkpoints are gone" in run.data.tags["scalpel.failure"]
