"""A run of two training processes that is killed as a whole, and resumed."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from mlflow_scalpel.checkpoints.manifest import sha256
from mlflow_scalpel.checkpoints.reading.pull import resolve
from mlflow_scalpel.checkpoints.search import checkpoints_of_run
from mlflow_scalpel.comparison.run_store import stored_table
from mlflow_scalpel.runs.resume import RESUMED_TAG
from tests.interpreters import Interpreter
from tests.projects.test_resume import (  # noqa: F401
    SHORT,
    environment,
    home,
    mlflow_run,
    newest_run,
    resume,
)

pytestmark = pytest.mark.slow

# In place of a stage's script, for the launcher and its workers alike: ends all of them without a
# word where one worker comes to the given place. Workers are in sessions of their own.
KILLER = """
import os, signal, time
from pathlib import Path

import psutil
import transformers

place, step = os.environ["KILL_PLACE"], int(os.environ["KILL_STEP"])
Trainer, rank = transformers.Trainer, os.environ.get("RANK")

def die():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of a launcher that is gone
    launcher = psutil.Process(os.getppid())
    launcher.suspend()  # or it may say which worker died before it is ended itself
    for process in [*launcher.children(recursive=True), launcher]:
        if process.pid != os.getpid():
            process.kill()
    psutil.Process().kill()

def before(owner, name, act, at):
    real = getattr(owner, name)
    def patched(self, *arguments, **options):
        if at(self, *arguments):
            act(self)
        return real(self, *arguments, **options)
    setattr(owner, name, patched)

def reached(trainer, *_):
    return trainer.state.global_step == step

def die_once_the_main_one_has_saved(trainer):
    directory = Path(trainer.args.output_dir, f"checkpoint-{step}")
    while not (directory / "trainer_state.json").exists():
        time.sleep(0.05)
    time.sleep(2)  # of what the main one does next
    die()

if rank == "1" and place == "before its part of a save":
    before(Trainer, "_save_rng_state", die_once_the_main_one_has_saved, reached)
elif rank == "0" and place == "after a save":
    from mlflow_scalpel.training.callback import CheckpointCallback
    at = lambda callback, arguments, state, control: state.global_step == step
    before(CheckpointCallback, "on_save", lambda callback: die(), at)
elif rank == "1" and place == "nowhere, but slow":
    before(Trainer, "_save_rng_state", lambda trainer: time.sleep(2), reached)
script = os.environ["KILL_SCRIPT"]
code = compile(Path(script).read_text(), script, "exec")
exec(code, {"__name__": "__main__", "__file__": script})  # runpy would change what workers are told
"""
TWO = f"model=models:/tiny-base/latest processes=2 {SHORT} train.per_device_train_batch_size=8"

# What hangs on every random number: of GRPO the lengths of what was sampled.
LOGGED = {"sft": ["loss", "grad_norm"], "grpo": ["reward", "completions/mean_length"]}


def train(
    python: Interpreter,
    home: Path,  # noqa: F811
    algorithm: str,
    place: str,
    step: int,
    settings: str = "",
) -> tuple[int, str]:
    """Start a run of two processes; what the launcher ended with, and the run's ID."""
    (home / "tree_killer.py").write_text(KILLER)
    kill = {"KILL_PLACE": place, "KILL_STEP": str(step)}
    script = {"KILL_SCRIPT": f"projects/{algorithm}/{algorithm}.py"}
    done = python.run(
        ["tree_killer.py", "--set", f"{TWO} {settings}"],
        cwd=home,
        env=environment(home) | kill | script,
        timeout=300,
    )
    print(done.stdout, done.stderr)
    return done.returncode, newest_run().info.run_id


def left_behind(home: Path) -> list[psutil.Process]:  # noqa: F811
    """Processes that stay at work in the directory; what was killed takes a moment to be gone."""
    late = time.monotonic() + 10
    while (found := _at_work(home)) and time.monotonic() < late:
        time.sleep(0.1)
    return found


def _at_work(home: Path) -> list[psutil.Process]:  # noqa: F811
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(home):
                found.append(process)
        except psutil.Error:  # another user's, or gone
            continue
    return found


def points(run_id: str, metric: str) -> list[tuple[int, float]]:
    history = MlflowClient().get_metric_history(run_id, metric)
    return [(point.step, point.value) for point in history]


def weights(run_id: str) -> dict[int, str]:
    """SHA-256 of the weights of each step."""
    return {
        c.step: sha256(resolve(c.uri) / "model.safetensors") for c in checkpoints_of_run(run_id)[1]
    }


@pytest.fixture(scope="module")
def uninterrupted(home, training_python):  # noqa: F811
    """Weights and metrics of runs of two processes that nobody killed."""
    found = {}
    for algorithm in ("sft", "grpo"):
        settings = "checkpoints.trainer_state=true"
        code, run_id = train(training_python, home, algorithm, "nowhere, but slow", 6, settings)
        assert code == 0
        run = MlflowClient().get_run(run_id)
        assert (run.info.status, run.data.params["processes"]) == ("FINISHED", "2")
        assert run.data.metrics["cost/sequences"] == 8 * 2 * 8
        for metric, steps in (("loss", range(1, 9)), ("kl/all_tokens/base_style", range(0, 9, 2))):
            assert [step for step, _ in points(run_id, metric)] == list(steps), metric
        for checkpoint in checkpoints_of_run(run_id)[1]:
            # It is logged once every process has written its part.
            states = [file.name for file in resolve(checkpoint.uri).glob("rng_state*")]
            assert sorted(states) == ["rng_state_0.pth", "rng_state_1.pth"]
        found[algorithm] = (
            weights(run_id),
            {name: points(run_id, name) for name in LOGGED[algorithm]},
        )
    return found


@pytest.mark.parametrize(
    ("algorithm", "place", "step", "goes_on_from"),
    [
        ("sft", "before its part of a save", 6, 4),
        ("grpo", "after a save", 6, 6),
    ],
)
def test_killed_processes_are_taken_up_as_if_nobody_had_killed_them(
    home,  # noqa: F811
    training_python,
    uninterrupted,
    algorithm,
    place,
    step,
    goes_on_from,
):
    code, run_id = train(training_python, home, algorithm, place, step)
    assert code == -9
    client = MlflowClient()
    assert client.get_run(run_id).info.status == "RUNNING"
    assert left_behind(home) == []
    if algorithm == "sft":
        mlflow_run(home, algorithm, run_id)
    else:
        resume(training_python, home, algorithm, run_id)
    assert left_behind(home) == []

    run = client.get_run(run_id)
    assert (run.info.status, run.data.params["processes"]) == ("FINISHED", "2")
    assert run.data.tags[RESUMED_TAG].startswith(f"from step {goes_on_from}")
    _, checkpoints = checkpoints_of_run(run_id)
    assert [(c.step, c.status) for c in checkpoints] == [(s, "READY") for s in (2, 4, 6, 8)]
    assert sorted(o.step for o in run.outputs.model_outputs) == [2, 4, 6, 8]
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    assert sorted(int(version.tags["step"]) for version in versions) == [2, 4, 6, 8]
    for metric in ("loss", "weights/relative_frobenius/mean", "cost/tokens_trained"):
        steps = [point.step for point in client.get_metric_history(run_id, metric)]
        assert steps == list(range(1, 9) if metric == "loss" else (0, 2, 4, 6, 8)), metric
    table = stored_table(run_id)
    norms = table[table["metric"] == "weights/relative_frobenius"]
    assert norms.groupby("step").size().nunique() == 1
    assert set(norms["step"]) == {0, 2, 4, 6, 8}
    # bit by bit what it would have been
    trained, logged = uninterrupted[algorithm]
    assert weights(run_id) == trained
    assert {name: points(run_id, name) for name in logged} == logged
    (local,) = (home / "outputs" / run_id).glob("checkpoint-*")
    assert local.name == "checkpoint-8"
