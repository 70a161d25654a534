"""Weights of a checkpoint put into a model in memory, and a stored checkpoint as a generator."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mlflow_scalpel.checkpoints.logging.log import log_checkpoint
from mlflow_scalpel.checkpoints.models.swapping import load_weights
from mlflow_scalpel.errors import ScalpelError


@pytest.fixture
def checkpoint(first_model: Path, tmp_path: Path) -> Path:
    """A directory as a trainer leaves it, optimizer state and pickles among its files."""
    directory = tmp_path / "checkpoint-7"
    shutil.copytree(first_model, directory)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (directory / name).write_bytes(b"pickled")
    (directory / "trainer_state.json").write_text("{}")
    return directory


def test_mlflow_loads_it_as_a_text_generator(tracking, checkpoint):
    with mlflow.start_run():
        model = log_checkpoint(checkpoint, step=7).wait()
    loaded = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
    answers = loaded.predict(pd.DataFrame({"prompt": ["1+1=?", "2+2=?"]}))
    assert list(answers.columns) == ["completion"]
    assert len(answers) == 2


def test_weights_are_swapped_in_place_or_not_at_all(make_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(1))
    other = make_model(2, tied=False)
    load_weights(model, other)
    expected = AutoModelForCausalLM.from_pretrained(other).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())

    broken = tmp_path / "broken"
    shutil.copytree(make_model(3), broken)
    tensors = load_file(broken / "model.safetensors")
    lost = sorted(tensors)[-1]
    save_file({k: v for k, v in tensors.items() if k != lost}, broken / "model.safetensors")
    with pytest.raises(ScalpelError, match=f"is missing the tensor {lost}"):
        load_weights(model, broken)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
