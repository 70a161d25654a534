"""A small experiment by `mlflow run`: its recipes, its copy of the project, its environment."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]
MLFLOW = Path(sys.executable).with_name("mlflow")

SMALL = """
extends: tiny
base:
  recipe: tiny
  set:
    train.steps: 24
    text.sequences: 400
    train.batch_size: 32
    threads: 1
    architecture.hidden_size: 48
    architecture.num_hidden_layers: 3
    architecture.intermediate_size: 96
arms:
  - name: grpo
    stage: grpo
    recipe: tiny
    set: &small
      train.max_steps: 4
      train.per_device_train_batch_size: 16
      checkpoints.count: 2
      threads: 1
      probes.base_style.limit: 8
      probes.teacher_style.limit: 8
  - {name: sft, stage: sft, recipe: tiny, set: *small}
evaluate: {recipe: tiny, set: {checkpoints: last, threads: 1}}
"""

# One arm at a time, of which the second can be killed when all of the first is done.
KILLED = SMALL + "workers: 1\n"

# What nobody interrupts, of the base that another experiment has made.
SHORTEST = """
extends: tiny
base: null
model: models:/tiny-base/latest
arms:
  - name: sft
    stage: sft
    recipe: tiny
    set: &small
      train.max_steps: 4
      train.per_device_train_batch_size: 16
      checkpoints.count: 2
      threads: 1
      probes.base_style.limit: 8
      probes.teacher_style.limit: 8
  - {name: sft-again, stage: sft, recipe: tiny, set: *small}
evaluate: null
"""

# Arms that go on for as long as it takes to interrupt them.
LONG = SMALL.replace("train.max_steps: 4", "train.max_steps: 20000")


class Hub:
    """Listens where the model hub would be, and counts who calls."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.calls = 0
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            self.calls += 1
            connection.close()


def environment(folder: Path, hub: Hub) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MLFLOW_", "HF_", "TRANSFORMERS_"))
    }
    return kept | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{MLFLOW.parent}:{os.environ['PATH']}",
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(folder / "hub-cache"),
    }


def project(folder: Path) -> Path:
    """A copy of what `mlflow run` runs, so that outputs and artifacts stay in the test's folder."""
    copy = folder / "project"
    shutil.copytree(ROOT / "projects", copy / "projects")
    shutil.copy(ROOT / "MLproject", copy)
    shutil.copy(ROOT / "conda.yaml", copy)
    for name, recipe in (("small", KILLED), ("shortest", SHORTEST), ("long", LONG)):
        (copy / "projects" / "main" / "recipes" / f"{name}.yaml").write_text(recipe)
    return copy


def command(copy: Path, entry: str, *parameters: str) -> list[str]:
    given = [word for parameter in parameters for word in ("-P", parameter)]
    return [
        str(MLFLOW), "run", str(copy), "-e", entry, "--env-manager", "local",
        "--experiment-name", "small", *given,
    ]  # fmt: skip
