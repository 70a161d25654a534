"""Where training goes on: the newest checkpoint that was written to its end."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
import torch
from mlflow import MlflowClient

from mlflow_scalpel.checkpoints.logging.log import log_checkpoint
from mlflow_scalpel.checkpoints.logging.uploads import close_uploaders
from mlflow_scalpel.runs.resume import RESUMED_TAG
from mlflow_scalpel.training import session
from mlflow_scalpel.training.resume_point import (
    find_resume_point,
    is_complete,
    newest_complete,
    remove_incomplete,
)

WRITTEN = ("model.safetensors", "rng_state.pth", "trainer_state.json")


def save(output: Path, model: Path, step: int, processes: int = 1) -> Path:
    """What Transformers' trainer leaves in the directory of a step."""
    directory = output / f"checkpoint-{step}"
    shutil.copytree(model, directory)
    ranks = [""] if processes == 1 else [f"_{rank}" for rank in range(processes)]
    for name in ["optimizer.pt", "scheduler.pt", *(f"rng_state{rank}.pth" for rank in ranks)]:
        torch.save({"step": step}, directory / name)
    (directory / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return directory


def cut(directory: Path, name: str) -> None:
    os.truncate(directory / name, (directory / name).stat().st_size // 2)


def remove(directory: Path, name: str) -> None:
    (directory / name).unlink()


# The trainer writes the optimizer's state before the random states, which are asked for.
@pytest.mark.parametrize(
    ("harm", "name"),
    [(cut, name) for name in (*WRITTEN, "optimizer.pt")] + [(remove, name) for name in WRITTEN],
)
def test_a_checkpoint_that_was_cut_off_is_not_gone_on_from(first_model, tmp_path, harm, name):
    older, newer = (save(tmp_path, first_model, step) for step in (8, 10))
    assert newest_complete(tmp_path, 1) == newer
    harm(newer, name)
    assert newest_complete(tmp_path, 1) == older
    assert remove_incomplete(tmp_path, 1) == [newer]
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint-8"]


def test_every_process_must_have_written_its_random_state(first_model, tmp_path):
    directory = save(tmp_path, first_model, 4, processes=2)
    assert is_complete(directory, 2)
    (directory / "rng_state_1.pth").unlink()
    assert not is_complete(directory, 2)
    assert newest_complete(tmp_path / "nowhere", 1) is None


def test_a_resumed_run_goes_on_from_its_newest_checkpoint(tracking, first_model, tmp_path):
    """And knows which steps MLflow has: those are logged once."""
    output = tmp_path / "outputs"
    with mlflow.start_run() as run:
        for step in range(1, 6):
            mlflow.log_metric("loss", 1.0 / step, step=step)
        for step in (2, 4):
            log_checkpoint(save(output, first_model, step), step=step).wait()
        close_uploaders()
        cut(save(output, first_model, 6), "model.safetensors")
        recipe = SimpleNamespace(processes=1)
        stage = SimpleNamespace(run_id=run.info.run_id, output=output, recipe=recipe)
        checkpoint, point = session._resume(stage)
    assert checkpoint == output / "checkpoint-4"
    assert (point.step, point.logged_until, sorted(point.stored)) == (4, 5, [2, 4])
    tags = MlflowClient().get_run(run.info.run_id).data.tags
    assert tags[RESUMED_TAG].startswith("from step 4; steps 5 to 5 were trained twice")
    assert not (output / "checkpoint-6").exists()
    assert find_resume_point(run.info.run_id, None).step == 0


class Trainer:
    """Notes what it is asked to do."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.args = SimpleNamespace(max_steps=8)
        self.control = None
        self.callback_handler = SimpleNamespace(
            on_train_begin=lambda *_: self.asked.append("begin"),
            on_train_end=lambda *_: self.asked.append("end"),
        )

    def is_world_process_zero(self) -> bool:
        return True

    is_local_process_zero = is_world_process_zero

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        self.asked.append(f"train from {resume_from_checkpoint}")


@pytest.mark.parametrize(("step", "asked"), [(None, "anew"), (6, "on"), (8, "nothing")])
def test_training_goes_on_from_the_checkpoint(first_model, tmp_path, step, asked):
    checkpoint = None if step is None else save(tmp_path, first_model, step)
    trainer = Trainer()
    session.train(trainer, checkpoint)
    wanted = {"anew": ["train from None"], "on": [f"train from {checkpoint}"]}
    assert trainer.asked == wanted.get(asked, ["begin", "end"])
