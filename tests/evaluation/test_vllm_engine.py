"""What can be said of the vLLM engine without vLLM; tests/projects/test_vllm.py runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mlflow_scalpel.checkpoints.models.swapping import check_same_tensors
from mlflow_scalpel.errors import MissingPackage, RecipeError, ScalpelError
from mlflow_scalpel.evaluation.suite import check_installed
from mlflow_scalpel.evaluation.vllm_engine import sampling
from mlflow_scalpel.recipes import load_recipe

RECIPES = Path(__file__).parents[2] / "projects" / "evaluate" / "recipes"


def recipe(settings: str):
    return load_recipe("tiny", RECIPES, stage="evaluate", settings=settings)


def test_settings_of_a_task_in_vllms_words():
    told = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 0, "max_gen_toks": 72}
    made = sampling(told, ends=[0, 7], strings=["\n\n"], room=50, seed=3)
    assert (made["temperature"], made["top_p"], made["top_k"], made["seed"]) == (0.6, 0.9, 0, 3)
    assert made["max_tokens"] == 50  # the context ends before the limit
    assert (made["stop_token_ids"], made["stop"], made["detokenize"]) == ([0, 7], ["\n\n"], True)
    likeliest = sampling(
        {"do_sample": False, "max_gen_toks": 72}, ends=[0], strings=[], room=90, seed=3
    )
    assert (likeliest["temperature"], likeliest["max_tokens"]) == (0.0, 72)
    assert not likeliest["detokenize"]


def test_weights_that_vllm_would_pass_over_are_refused(make_model):
    base = make_model(1)
    check_same_tensors(make_model(2, shard="10KB"), base)
    with pytest.raises(ScalpelError, match=r"tensor \S+ has shape"):
        check_same_tensors(make_model(1, hidden=16), base)
    tied = make_model(1, tied=True)
    with pytest.raises(ScalpelError, match=r"is missing the tensor lm_head\.weight"):
        check_same_tensors(tied, base)
    with pytest.raises(ScalpelError, match=r"tensor lm_head\.weight is none of the base"):
        check_same_tensors(base, tied)


@pytest.mark.parametrize(
    "setting", [{"rms_norm_eps": 0.5}, {"rope_parameters": {"rope_theta": 2.0}}], ids=str
)
def test_settings_that_vllm_would_keep_are_refused(make_model, tmp_path, setting):
    base, other = make_model(1), tmp_path / "other"
    shutil.copytree(base, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))
    check_same_tensors(other, base)
    (other / "config.json").write_text(json.dumps(config | setting))
    with pytest.raises(ScalpelError, match=f"config.json has {next(iter(setting))} = .*engine=hf"):
        check_same_tensors(other, base)


def test_without_vllm_a_recipe_that_wants_it_stops_at_once(monkeypatch):
    monkeypatch.setattr("mlflow_scalpel.extras.find_spec", lambda name: None)
    check_installed(recipe("engine=hf"))
    with pytest.raises(
        MissingPackage, match=r"vllm, which is not installed: .*\[vllm\].*engine=hf"
    ):
        check_installed(recipe("engine=vllm"))
    with pytest.raises(RecipeError, match="CUDA_VISIBLE_DEVICES"):
        recipe("engine=vllm device=cuda:1")
