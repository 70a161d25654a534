"""The server's clock, or the trainer's, is set back between two sessions."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

from mlflow import MlflowClient

from stresses.world import Trial
from tests.servers import Server

# Read when any Python of that path starts: its clock goes wrong by what a file says.
_SITE = """
import os, time
_real, _real_ns = time.time, time.time_ns
def _off():
    try:
        return float(open(os.environ["STRESS_CLOCK"]).read())
    except (OSError, KeyError, ValueError):
        return 0.0
time.time = lambda: _real() + _off()
time.time_ns = lambda: _real_ns() + int(_off() * 1e9)
"""


def set_back(trial: Trial, random: Random) -> None:
    """An hour or a year is lost between two checkpoints, and in the middle of a kill."""
    trial.store, trial.artifacts = "server", None
    site, clock = trial.home / "site", trial.home / "clock"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_SITE)
    clock.write_text("0")
    folder = trial.home / "server"
    folder.mkdir()
    shutil.copy(trial.world.folder / "empty.db", folder / "mlflow.db")
    wrong = {"PYTHONPATH": str(site), "STRESS_CLOCK": str(clock)}
    server = Server(folder, environment=wrong)
    server.start()
    try:
        run_id = trial.begin(server.uri)
        base = trial.save((1, 2), random)
        log = ["log", str(trial.out), "--run-id", run_id, "--base", str(base)]
        log += ["--register-as", trial.name]
        trial.kill(trial.start(*log), random.uniform(0, 1.5))
        clock.write_text(str(-random.choice([3600, 86_400 * 365])))
        trial.save((3, 4), random)
        trial.kill(trial.start(*log), random.uniform(0, 1.5))
        trial.run(*log)
        trial.count(run_id, (1, 2, 3, 4))
        last = MlflowClient().get_model_version_by_alias(trial.name, f"last-{run_id}")
        trial.found["lost"] += last.tags["step"] != "4"
        pulled = Path(trial.run("pull", f"runs:/{run_id}#last", "--dst", "pulled").split()[-1])
        wanted = (trial.out / "checkpoint-4" / "model.safetensors").read_bytes()
        got = (trial.home / pulled / "model.safetensors").read_bytes()
        trial.found["damaged"] += got != wanted
    finally:
        server.stop()


SCENARIOS = {"clock": set_back}
