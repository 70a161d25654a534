"""Processes that are killed at random moments, and run again: log, watch, loops, upload, pull."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

from mlflow import MlflowClient

from mlflow_scalpel.checkpoints.manifest import content_digest
from mlflow_scalpel.checkpoints.search import made_by, state_of, step_of
from stresses.world import Trial

_STEPS = (1, 2, 3, 4)


def by_command(trial: Trial, random: Random) -> None:
    """`mlflow-scalpel log`, with base and registered model."""
    run_id = trial.begin()
    base = trial.save(_STEPS, random)
    trial.torment(random, *_log(trial, run_id, base), longest=1.5)
    trial.count(run_id, _STEPS)


_FROM_PYTHON = """
from pathlib import Path
from mlflow_scalpel.checkpoints.external.external_run import ExternalRun, log_directory
from mlflow_scalpel.checkpoints.logging.uploads import close_uploaders
directory, base, name = sys.argv[1:]
run_id, uploads = log_directory(Path(directory), ExternalRun(base=base, register_as=name))
for upload in uploads.values():
    upload.wait()
close_uploaders()
mlflow.MlflowClient().set_terminated(run_id, "FINISHED")
"""


def from_python(trial: Trial, random: Random) -> None:
    """`log_directory`, which makes the run itself, and logs what the trainer noted."""
    trial.begin()
    base = trial.save(_STEPS, random)
    history = [{"step": step, "loss": 1 / step, "learning_rate": 1e-5} for step in range(1, 50)]
    (trial.out / "checkpoint-4" / "trainer_state.json").write_text(
        str({"log_history": history}).replace("'", '"')
    )
    arguments = (str(trial.out), str(base), trial.name)
    trial.torment(random, *arguments, longest=1.5, code=_FROM_PYTHON)
    _count_directory(trial)


def watching(trial: Trial, random: Random) -> None:
    """`mlflow-scalpel watch`, on checkpoints that come while it looks."""
    trial.begin()
    base = trial.save(_STEPS[:2], random)
    watch = ["watch", str(trial.out), "--base", str(base), "--register-as", trial.name]
    watch += ["--interval", "0.1", "--until-idle", "1"]
    for step in _STEPS[2:]:
        trial.kill(trial.start(*watch), random.uniform(0, 2))
        trial.save([step], random)
    trial.run(*watch)
    _count_directory(trial, ended=False)


_LOOP = """
import random, shutil
from pathlib import Path
from stresses.world import save_model
from mlflow_scalpel.training.journal import Journal
out, base, name, run_id, seed = sys.argv[1:]
done = [int(path.name[11:]) for path in Path(out).glob("checkpoint-*")]
for step in range(max(done, default=0) + 1, 7):
    save_model(Path(out) / f"saving-{step}", random.Random(f"{seed} {step}"))
    directory = (Path(out) / f"saving-{step}").rename(Path(out) / f"checkpoint-{step}")
    upload = mlflow_scalpel.log_checkpoint(
        directory, step=step, base=base, run_id=run_id, register_as=name
    )
    Journal(upload.uploader).metrics({"loss": 1.0 / step}, step, upload)
    time.sleep(0.1)
"""


def own_loop(trial: Trial, random: Random) -> None:
    """A loop with a line for each checkpoint, which goes on where it was killed."""
    run_id = trial.begin()
    base = trial.save((), random)
    trial.out.mkdir()
    arguments = (str(trial.out), str(base), trial.name, run_id, str(random.random()))

    def tidy() -> None:
        for path in trial.out.glob("saving-*"):
            shutil.rmtree(path)

    for _ in range(3):
        trial.kill(trial.start(*arguments, code=_LOOP), random.uniform(0, 1.2))
        tidy()
    trial.run(*arguments, code=_LOOP)
    # What was saved and not yet accepted when a kill came is found by who logs the directory.
    trial.run(*_log(trial, run_id, base))
    trial.count(run_id, range(1, 7))


_LEAVE = """
from mlflow_scalpel.checkpoints.logging.uploader import UploadPending
from mlflow_scalpel.checkpoints.logging.uploads import close_uploaders
from mlflow_scalpel.checkpoints.logging.spool import Spool
from mlflow_scalpel.checkpoints.logging import uploader
uploader.threading.Thread.start = lambda thread: None  # nothing is sent
out, base, name, run_id = sys.argv[1:]
for step in (1, 2, 3, 4):
    mlflow_scalpel.log_checkpoint(
        f"{out}/checkpoint-{step}", step=step, base=base, run_id=run_id, register_as=name
    )
import os
os._exit(0)
"""


def uploading(trial: Trial, random: Random) -> None:
    """`mlflow-scalpel upload` of what a process left, whose checkpoints are gone."""
    run_id = trial.begin()
    base = trial.save(_STEPS, random)
    trial.run(str(trial.out), str(base), trial.name, run_id, code=_LEAVE)
    digests = {step: content_digest(trial.out / f"checkpoint-{step}") for step in _STEPS}
    for step in _STEPS:
        shutil.rmtree(trial.out / f"checkpoint-{step}")
    for _ in range(3):
        if not trial.kill(trial.start("upload", str(trial.out)), random.uniform(0, 1.2)):
            break
    if (trial.out / ".scalpel").exists():
        trial.run("upload", str(trial.out))
    trial.count(run_id, _STEPS)
    client = MlflowClient()
    for model in made_by(client, client.get_run(run_id)):
        if step_of(model) and state_of(model) == "READY":
            trial.found["damaged"] += model.params["digest"] != digests[step_of(model)]


def pulling(trial: Trial, random: Random) -> None:
    """`mlflow-scalpel pull`, into a directory and into the cache."""
    run_id = trial.begin()
    base = trial.save((1, 2), random)
    trial.run(*_log(trial, run_id, base))
    for step in (1, 2):
        where = [] if step == 1 else ["--dst", str(trial.home / "pulled")]
        pull = ["pull", f"runs:/{run_id}#step={step}", *where]
        for _ in range(2):
            trial.kill(trial.start(*pull), random.uniform(0, 0.5))
        there = Path(trial.run(*pull).split()[-1])
        saved = content_digest(trial.out / f"checkpoint-{step}")
        trial.found["damaged"] += content_digest(there) != saved
    trial.count(run_id, (1, 2))


def pruning(trial: Trial, random: Random) -> None:
    """`mlflow-scalpel prune`: what stays is whole, what goes is said to be gone."""
    run_id = trial.begin()
    base = trial.save(_STEPS, random)
    trial.run(*_log(trial, run_id, base))
    trial.torment(random, "prune", run_id, "--keep", "1", "--yes", longest=0.6)
    client = MlflowClient()
    states = {step_of(m): state_of(m) for m in made_by(client, client.get_run(run_id))}
    trial.found["lost"] += states[4] != "READY" or states[0] != "READY"
    trial.found["damaged"] += sum(states[step] != "PRUNED" for step in (1, 2, 3))
    trial.run("verify", run_id)


def _log(trial: Trial, run_id: str, base: Path) -> list[str]:
    log = ["log", str(trial.out), "--run-id", run_id, "--base", str(base)]
    return [*log, "--register-as", trial.name]


def _count_directory(trial: Trial, *, ended: bool = True) -> None:
    """Count where the run was made by what logs the directory; two of them are one too many."""
    client = MlflowClient()
    runs = client.search_runs([trial.experiment], "tags.`scalpel.directory` != ''")
    trial.found["doubled"] += len(runs) - 1
    trial.count(runs[0].info.run_id, _STEPS, ended=ended)


SCENARIOS = {
    "log": by_command,
    "python": from_python,
    "watch": watching,
    "loop": own_loop,
    "upload": uploading,
    "pull": pulling,
    "prune": pruning,
}
