"""Steps in the names of directories, as trainers write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_scalpel.tensors.steps import step_of_name, step_of_path


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-400", 400), ("checkpoint_400", 400), ("global_step_400", 400),
        ("global_step400_hf", 400), ("step_400", 400), ("step-00000400", 400), ("epoch_2", 2),
        ("iter_0000400", 400), ("400", 400), ("checkpoint-step-400", 400), ("ba400", 400),
        ("checkpoint", None), ("step_1_2", None), ("model-7b", None), ("critic_400", None),
        ("checkpoint-\u0664", None), ("tmp_step_400", None),
    ],
)  # fmt: skip
def test_a_name_says_its_step(name, step):
    assert step_of_name(name) == step


def test_a_model_within_a_step_is_of_that_step(tmp_path):
    inner = tmp_path / "global_step_20" / "actor" / "huggingface"
    assert step_of_path(inner) == 20
    assert step_of_path(Path("runs/step_3/policy")) == 3
    assert step_of_path(tmp_path / "global_step_20" / "elsewhere") is None


def test_epochs_that_count_from_zero_are_no_base(tmp_path):
    (tmp_path / "epoch_0").mkdir()
    assert [step_of_path(tmp_path / f"epoch_{n}") for n in (0, 1)] == [1, 2]
    assert step_of_path(tmp_path / "other" / "epoch_1") == 1
