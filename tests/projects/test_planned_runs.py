"""A plan beside what the run then measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from transformers import AutoConfig

from mlflow_scalpel.checkpoints.reading.pull import resolve
from mlflow_scalpel.checkpoints.search import checkpoints_of_run
from mlflow_scalpel.recipes import load_recipe
from mlflow_scalpel.training.planning import model_size, plan_run
from tests.projects.test_resume import SHORT, home, stage  # noqa: F401

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def wide_base(home, training_python):  # noqa: F811
    """A base beside which the headers of its files are next to nothing."""
    small = "train.steps=1 text.sequences=200 train.batch_size=32 threads=1"
    stage(training_python, home, "base", small)


@pytest.mark.parametrize("algorithm", ["sft", "grpo"])
def test_a_run_takes_what_its_plan_says(home, training_python, algorithm):  # noqa: F811
    bounds = "data.max_prompt_tokens=40" + (
        " train.max_length=128" if algorithm == "sft" else " data.columns.solution=null"
    )
    settings = f"model=models:/tiny-base/latest {SHORT} {bounds}"
    run_id = stage(training_python, home, algorithm, settings)
    measured = MlflowClient().get_run(run_id).data.metrics
    recipe = load_recipe(
        "tiny", home / "projects" / algorithm / "recipes", stage=algorithm, settings=settings
    )
    _, checkpoints = checkpoints_of_run(run_id)
    directory = resolve(checkpoints[-1].uri)
    size = model_size(AutoConfig.from_pretrained(directory), recipe)

    plan = plan_run(recipe, size)
    assert plan.steps == checkpoints[-1].step
    assert plan.sequences == measured["cost/sequences"]
    assert plan.problems == measured["cost/unique_problems"]
    assert measured["cost/tokens_trained"] <= plan.tokens_trained
    assert measured["cost/tokens_generated"] <= plan.tokens_generated
    assert measured["cost/flops"] <= plan.flops

    mean = measured["cost/tokens_trained"] / measured["cost/sequences"]
    # GRPO makes logits of completions alone, so their length counts too.
    completion = measured["cost/tokens_generated"] / measured["cost/sequences"]
    known = plan_run(recipe, size, sequence_tokens=mean, completion_tokens=completion or None)
    assert known.tokens_trained == measured["cost/tokens_trained"]
    assert known.flops == pytest.approx(measured["cost/flops"], rel=1e-9)

    weights = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    assert plan.checkpoint_bytes == pytest.approx(weights, rel=0.01)
    # The newest checkpoint with its optimizer state, half of what there is room for.
    (local,) = Path(home / "outputs" / run_id).glob("checkpoint-*")
    kept = [local / name for name in ("model.safetensors", "optimizer.pt")]
    assert 2 * sum(f.stat().st_size for f in kept) == pytest.approx(plan.disk_working, rel=0.02)
