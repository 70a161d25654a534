"""Where trials are played: two stores, processes to kill, and what is counted at the end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from safetensors.numpy import save_file

from mlflow_scalpel.checkpoints.manifest import content_digest
from mlflow_scalpel.checkpoints.search import made_by, state_of, step_of
from mlflow_scalpel.checkpoints.verify import BAD, verify
from stresses.children import Child
from tests.proxy import Proxy
from tests.servers import Server

FAULTS = ("lost", "doubled", "damaged", "pending", "running", "twice", "errors")
"""Steps without a READY model or version; with several; stored otherwise than saved; models that
stay PENDING; runs that stay RUNNING; metrics that are there twice; trials that ended otherwise."""

_CHILD = """
import sys, time
import mlflow, mlflow_scalpel
from mlflow_scalpel.cli import main
"""
_COMMAND = _CHILD + "\nsys.exit(main(sys.argv[1:]))"


class NotRun(Exception):
    """The scenario cannot be played on this machine."""


class World:
    """An `mlflow server`, and an empty SQLite store to copy; both end with the block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server: Server | None = None
        self._number = 0

    def __enter__(self) -> World:
        empty = self.folder / "empty.db"
        MlflowClient(f"sqlite:///{empty}").search_experiments()
        self.server.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.stop()

    @property
    def server(self) -> Server:
        if self._server is None:
            home = self.folder / "server"
            home.mkdir()
            shutil.copy(self.folder / "empty.db", home / "mlflow.db")
            self._server = Server(home)
        return self._server

    def trial(self, name: str, seed: int) -> Trial:
        """A trial of a scenario; every other one against the server."""
        self._number += 1
        home = self.folder / f"{name}-{seed}-{self._number}"
        home.mkdir()
        return Trial(self, home, "server" if seed % 2 else "sqlite")


class Trial:
    """One play: a directory, an experiment, and what went wrong."""

    def __init__(self, world: World, home: Path, store: str) -> None:
        self.world = world
        self.home = home
        self.store = store
        self.kills = 0
        self.found: Counter[str] = Counter()
        self.out = home / "out"
        self.name = f"m-{home.name}"
        self.spent = Counter[str]()
        self._log = home / "log"
        if store == "sqlite":
            shutil.copy(world.folder / "empty.db", home / "mlflow.db")
            self.uri = f"sqlite:///{home}/mlflow.db"
        else:
            self.uri = world.server.uri
        self.artifacts: str | None = f"file://{home}/artifacts" if store == "sqlite" else None

    def begin(self, uri: str | None = None) -> str:
        """Make an experiment and a run in it; the run's ID."""
        self.uri = uri or self.uri
        mlflow.set_tracking_uri(self.uri)
        client = MlflowClient()
        self.experiment = client.create_experiment(self.name, artifact_location=self.artifacts)
        return str(client.create_run(self.experiment).info.run_id)

    def save(self, steps: Sequence[int], random: Random, out: Path | None = None) -> Path:
        """Save a base, and checkpoints of these steps; the base's directory."""
        out = out or self.out
        base = self.home / "base"
        if not base.is_dir():
            save_model(base, random)
        for step in steps:
            save_model(out / f"checkpoint-{step}", random)
        return base

    def start(
        self, *arguments: str, code: str = _COMMAND, env: dict[str, str] | None = None
    ) -> Child:
        """Start a child, with everything imported already."""
        if code is not _COMMAND:
            code = _CHILD + code
        environment = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("MLFLOW_RUN", "MLFLOW_EXPERIMENT"))
        }
        environment |= {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_EXPERIMENT_NAME": self.name,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "SCALPEL_CACHE": str(self.home / "cache"),
            "SCALPEL_PATIENCE": "60",
            "OMP_NUM_THREADS": "1",
            **(env or {}),
        }
        return Child(code, list(arguments), self.home, self._log, environment)

    def finish(self, child: Child, *, codes: Sequence[int] = (0,)) -> str:
        """Wait until a child ends; its output. Another exit status is an error."""
        output = child.wait(150)
        if child.returncode not in codes:
            raise AssertionError(
                f"exit status {child.returncode}:\n{output}\n{self._log.read_text()[-3000:]}"
            )
        return output

    def run(self, *arguments: str, codes: Sequence[int] = (0,), **options: Any) -> str:
        return self.finish(self.start(*arguments, **options), codes=codes)

    def kill(self, child: Child, after: float) -> bool:
        """Kill a child so many seconds after it has begun; whether it was still there."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(after)
            return False
        child.kill()
        self.kills += 1
        return True

    def torment(
        self, random: Random, *arguments: str, longest: float, times: int = 3, **options: Any
    ) -> None:
        """Run a child again and again, killed at random moments; then once to its end."""
        for _ in range(times):
            if not self.kill(self.start(*arguments, **options), random.uniform(0, longest)):
                break
        self.run(*arguments, **options)

    def count(self, run_id: str, steps: Sequence[int], *, ended: bool = False) -> None:
        """Compare what MLflow has of a run with what was saved."""
        mlflow.set_tracking_uri(self.uri)
        client = MlflowClient()
        run = client.get_run(run_id)
        models = made_by(client, run)
        versions = client.search_model_versions(f"name = '{self.name}'")
        registered = Counter(str(version.source) for version in versions)
        for step in steps:
            ready = [m for m in models if step_of(m) == step and state_of(m) == "READY"]
            told = sum(registered[f"models:/{model.model_id}"] for model in ready)
            self.found["lost"] += not ready or not told
            self.found["doubled"] += max(len(ready), told) > 1
            directory = self.out / f"checkpoint-{step}"
            if ready and directory.is_dir():
                saved = content_digest(directory)
                self.found["damaged"] += all(m.params.get("digest") != saved for m in ready)
        bases = [m for m in models if step_of(m) == 0 and state_of(m) == "READY"]
        self.found["doubled"] += len(bases) > 1
        outputs = Counter(output.model_id for output in run.outputs.model_outputs)
        self.found["doubled"] += sum(count > 1 for count in outputs.values())
        self.found["pending"] += sum(state_of(model) == "PENDING" for model in models)
        self.found["running"] += ended and run.info.status == "RUNNING"
        if models:
            results = verify(*(m.model_id for m in models if state_of(m) == "READY"))["result"]
            self.found["damaged"] += int(results.isin(BAD).sum())
        for key in run.data.metrics:
            points = Counter(point.step for point in client.get_metric_history(run_id, key))
            self.found["twice"] += sum(count > 1 for count in points.values())
        if (self.out / ".scalpel").exists():
            self.found["lost"] += 1  # something waits that nobody will send
            print(*(str(path) for path in self.out.rglob("*.json")), sep="\n")

    def keep(self) -> Path:
        """A copy of what the trial left, to look at."""
        kept = Path(tempfile.mkdtemp(prefix="stress-kept-"))
        shutil.copytree(self.home, kept, dirs_exist_ok=True)
        return kept

    def forget(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)

    def proxy(self) -> Proxy:
        """A proxy before the server, which does what it is told."""
        return Proxy(self.world.server.uri)


def save_model(directory: Path, random: Random, kilobytes: int = 300) -> None:
    """Save what Transformers would: a configuration, and weights of random numbers."""
    directory.mkdir(parents=True)
    numbers = np.random.default_rng(random.randrange(2**32))
    tensors = {
        f"model.layers.{layer}.mlp.up_proj.weight": numbers.normal(size=(64, kilobytes * 2)).astype(
            np.float32
        )
        for layer in range(2)
    }
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def wait_until(done: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.05)
