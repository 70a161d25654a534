"""Training processes that are killed, and taken up: nothing lost, nothing twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_scalpel.checkpoints.search import checkpoints_of_run
from mlflow_scalpel.comparison.run_store import stored_table
from mlflow_scalpel.runs.resume import SEAMS_TAG

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MLFLOW = Path(sys.executable).with_name("mlflow")
SHORT = (
    "train.max_steps=8 train.per_device_train_batch_size=16 checkpoints.count=4 threads=1 "
    "probes.base_style.limit=4 probes.teacher_style.limit=4"
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
    from mlflow_scalpel.training import session
    session.open_base = lambda *_: die()
sys.argv = sys.argv[3:]
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with a base model in a tracking store of its own."""
    folder = tmp_path_factory.mktemp("resume")
    shutil.copytree(ROOT / "projects", folder / "projects")
    shutil.copy(ROOT / "MLproject", folder)
    shutil.copy(ROOT / "conda.yaml", folder)
    (folder / "killer.py").write_text(KILLER)
    uri = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    stage(folder, "base", "train.steps=4 text.sequences=200 train.batch_size=32 threads=1")
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


def stage(home: Path, name: str, settings: str, *, kill: tuple[str, int] | None = None) -> str:
    """Run a stage as a process, killed where `kill` says; its run ID."""
    script = f"projects/{name}/{name}.py"
    command = [sys.executable, script]
    if kill is not None:
        command = [sys.executable, "killer.py", kill[0], str(kill[1]), script]
    done = subprocess.run(
        [*command, "--set", settings],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
    )
    expected = 0 if kill is None else -signal.SIGKILL
    assert done.returncode == expected, done.stdout + done.stderr
    runs = MlflowClient().search_runs(["0"], max_results=1, order_by=["start_time DESC"])
    return runs[0].info.run_id


def train(home: Path, algorithm: str, *, kill: tuple[str, int] | None = None) -> str:
    model = "model=models:/tiny-base/latest"
    return stage(home, algorithm, f"{model} {SHORT}", kill=kill)


def resume(home: Path, algorithm: str, run_id: str, *more: str, code: int = 0) -> str:
    given = [word for parameter in (f"resume={run_id}", *more) for word in ("-P", parameter)]
    done = subprocess.run(
        [str(MLFLOW), "run", ".", "-e", algorithm, "--env-manager", "local", *given],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def uninterrupted(home):
    """Digest of the last checkpoint of runs that nobody killed."""
    runs = {algorithm: train(home, algorithm) for algorithm in ("sft", "grpo")}
    return {algorithm: checkpoints_of_run(run)[1][-1].digest for algorithm, run in runs.items()}


@pytest.mark.parametrize(
    ("algorithm", "place", "step", "goes_on_from"),
    [
        ("sft", "before its recipe is stored", 0, 0),
        ("sft", "before its base is opened", 0, 0),
        ("sft", "after measuring", 0, 0),
        ("sft", "between saves", 1, 0),
        ("sft", "in a save", 2, 0),
        ("sft", "after a save", 2, 2),
        ("sft", "between saves", 5, 4),
        ("sft", "in a save", 6, 4),
        ("sft", "power cut", 6, 4),
        ("sft", "after a save", 6, 6),
        ("sft", "in a save", 8, 6),
        ("sft", "after a save", 8, 8),
        ("sft", "after measuring", 8, 8),
        ("sft", "after it was trained", 8, 8),
        ("grpo", "in a save", 6, 4),
        ("grpo", "after a save", 8, 8),
    ],
)
def test_a_killed_run_ends_as_if_nobody_had_killed_it(
    home, uninterrupted, algorithm, place, step, goes_on_from
):
    run_id = train(home, algorithm, kill=(place, step))
    assert MlflowClient().get_run(run_id).info.status == "RUNNING"
    resume(home, algorithm, run_id)

    run = MlflowClient().get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags[SEAMS_TAG].startswith(f"from step {goes_on_from}")
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
    assert checkpoints[-1].digest == uninterrupted[algorithm]
    last = {c.step: c.learning_rate_sum for c in checkpoints}
    assert last[8] > last[6] > last[4]


def test_what_cannot_be_taken_up_says_why(home, uninterrupted):
    finished = MlflowClient().search_runs(
        ["0"], "attributes.status = 'FINISHED' AND attributes.run_name = 'tiny-sft'"
    )[0]
    run_id = finished.info.run_id
    assert "has FINISHED, so nothing of it is left to do" in resume(home, "sft", run_id, code=1)
    assert "is a run of sft; take it up with" in resume(home, "grpo", run_id, code=1)
    assert "there is no such run" in resume(home, "sft", "0" * 32, code=1)


def test_what_nobody_can_take_up_is_ended(home, uninterrupted):
    run_id = train(home, "sft", kill=("between saves", 5))
    shutil.move(home / "outputs" / run_id, home / "elsewhere")
    said = resume(home, "sft", run_id, code=1)
    assert f"outputs/{run_id} is not under" in said
    assert "is KILLED now" in said
    run = MlflowClient().get_run(run_id)
    assert run.info.status == "KILLED"
    assert "its checkpoints are gone" in run.data.tags["scalpel.failure"]
