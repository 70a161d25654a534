"""What goes into TRL, and what a run costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from trl import GRPOConfig, SFTConfig

from mlflow_scalpel.comparison.forward.probes import Probe
from mlflow_scalpel.errors import RecipeError, ScalpelError
from mlflow_scalpel.recipes import load_recipe, read_recipe
from mlflow_scalpel.recipes.trainers import GrpoTrain, Train
from mlflow_scalpel.recipes.training import Checkpoints
from mlflow_scalpel.training.arguments import NOT_TRL, grpo_fields, sft_fields, total_steps
from mlflow_scalpel.training.base import log_probe
from mlflow_scalpel.training.cost import Cost
from mlflow_scalpel.training.examples import grpo_examples, sft_examples
from mlflow_scalpel.training.flops import Multiplied, estimate_flops
from mlflow_scalpel.training.pilots import choose, final_mean
from mlflow_scalpel.training.pool import open_pool
from tests.conftest import make_tokenizer

PROJECTS = Path(__file__).parents[2] / "projects"


def recipe_of(stage: str, settings: str = "", name: str = "tiny"):
    return load_recipe(name, PROJECTS / stage / "recipes", stage=stage, settings=settings)


@pytest.mark.parametrize("path", sorted(PROJECTS.glob("grpo/recipes/*.yaml")), ids=lambda p: p.stem)
def test_every_grpo_recipe_is_what_trl_takes(path, tmp_path, monkeypatch):
    recipe = read_recipe(path)
    # What `accelerate launch` would say; the batch is counted over all processes.
    monkeypatch.setattr(GRPOConfig, "world_size", recipe.processes)
    config = GRPOConfig(**grpo_fields(recipe, tmp_path, rows=100_000))
    for field in set(GrpoTrain.model_fields) - NOT_TRL:
        assert getattr(config, field) == getattr(recipe.train, field), field
    assert config.model_init_kwargs["dtype"] == recipe.train.dtype
    assert config.reward_weights == list(recipe.rewards.values())


@pytest.mark.parametrize("path", sorted(PROJECTS.glob("sft/recipes/*.yaml")), ids=lambda p: p.stem)
def test_every_sft_recipe_is_what_trl_takes(path, tmp_path):
    recipe = read_recipe(path)
    config = SFTConfig(**sft_fields(recipe, tmp_path, rows=100_000))
    assert config.max_length == recipe.train.max_length
    assert config.completion_only_loss == (recipe.train.loss_on == "completion")
    assert config.learning_rate == recipe.train.learning_rate


@pytest.mark.parametrize(
    ("model", "field"),
    [(GrpoTrain, "loss_type"), (GrpoTrain, "scale_rewards"), (Train, "lr_scheduler_type")],
)
def test_every_choice_that_a_recipe_may_make_exists_in_trl(model, field, tmp_path):
    for choice in get_args(model.model_fields[field].annotation):
        kwargs = "'train.lr_scheduler_kwargs={min_lr_rate: 0.1}'" if "min_lr" in choice else ""
        recipe = recipe_of("grpo", f"train.{field}={choice} {kwargs}")
        assert GRPOConfig(**grpo_fields(recipe, tmp_path, rows=1000))


@pytest.mark.parametrize("steps", [20, 60, 100, 571])
def test_the_save_interval_gives_the_asked_checkpoints(steps):
    interval = Checkpoints(count=20).save_steps(steps)
    saved = {step for step in range(1, steps + 1) if step % interval == 0} | {steps}
    assert len(saved) == 20


def test_lengths_in_epochs_are_known_once_the_data_is():
    recipe = recipe_of("sft", "train.max_steps=null train.num_train_epochs=2 checkpoints.count=10")
    assert total_steps(recipe, rows=480) == 10
    with pytest.raises(RecipeError, match="which gives"):
        total_steps(recipe, rows=700)
    with pytest.raises(RecipeError, match="has 50 rows, and one step takes 96"):
        total_steps(recipe, rows=50)


def test_both_algorithms_draw_from_the_same_problems():
    sft = sft_examples(recipe_of("sft"), open_pool(recipe_of("sft")))
    grpo = grpo_examples(recipe_of("grpo"), open_pool(recipe_of("grpo")))
    assert sft["prompt"] == grpo["prompt"]
    assert len({row[0]["content"] for row in sft["prompt"]}) == len(sft)
    prompted = recipe_of("grpo", "'system_prompt=think first'")
    with_system = grpo_examples(prompted, open_pool(prompted))
    assert with_system[0]["prompt"][0] == {"role": "system", "content": "think first"}


def lengths_recipe(stage: str, folder: Path, settings: str = ""):
    rows = [
        {"problem": "1+1", "answer": "2", "solution": "2"},
        {"problem": "1+1", "answer": "2", "solution": "again"},
        {"problem": "a long problem", "answer": "2", "solution": "2"},
        {"problem": "2+2", "answer": "4", "solution": "a long solution"},
    ]
    (folder / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return recipe_of(
        stage,
        f"data.generated=null data.file={folder}/data.jsonl data.where={{}} "
        f"data.columns.solution=solution {settings}",
    )


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_what_is_too_long_is_left_out_and_counted(stage, tmp_path, capsys):
    # Tokens are characters here, and the template adds <|user|> and <|assistant|>.
    limits = "data.max_prompt_tokens=5 data.max_solution_tokens=5"
    pool = open_pool(lengths_recipe(stage, tmp_path, limits), make_tokenizer())
    assert [row["problem"] for row in pool.rows] == ["1+1"]
    assert pool.rows[0]["solution"] == "2"
    assert {key: value for key, value in pool.params().items() if value} == {
        "data_rows": 4,
        "data_problems": 1,
        "data_dropped": "repeated 1, long_prompts 1, long_solutions 1",
    }
    assert (
        "data: 1 of 4 rows kept; "
        "1 repeat an earlier problem (1 of them with another solution or answer); "
        "1 prompts are over 5 tokens; 1 solutions are over 5 tokens\n"
    ) in capsys.readouterr().out
    assert "only 1 of the 4 rows" in pool.warnings["data"]


def test_the_system_prompt_counts_as_prompt(tmp_path):
    limits = "data.max_prompt_tokens=5 system_prompt=think"
    with pytest.raises(ScalpelError, match=r"all 3 problems are too long .3 prompts over"):
        open_pool(lengths_recipe("grpo", tmp_path, limits), make_tokenizer())


def test_a_limit_on_solutions_needs_a_column_of_them():
    with pytest.raises(
        RecipeError, match=r"max_solution_tokens = 9, but columns\.solution is null"
    ):
        recipe_of("grpo", "data.max_solution_tokens=9")


def test_flops_and_cost():
    size = Multiplied(parameters=10, head=0)
    assert estimate_flops(size, 100) == 6 * 10 * 100
    assert estimate_flops(size, 100, tokens_sampled=100) == 8 * 10 * 100
    assert estimate_flops(size, 100, tokens_sampled=100, tokens_scored=50) == 9 * 10 * 100
    assert estimate_flops(size, 100, checkpointing=True) == 8 * 10 * 100
    assert estimate_flops(Multiplied(10, head=4), 100, checkpointing=True) == (8 * 6 + 6 * 4) * 100
    cost = Cost(1, 2, 3, 4, 5.0, 6.0, 7.0)
    assert cost.metrics()["cost/tokens_generated"] == 4.0


def test_the_rule_for_learning_rates():
    rose = [0.1 * step for step in range(1, 21)]
    fell = [*rose[:15], *([0.5] * 5)]
    broke = [*rose[:-1], float("nan")]
    assert final_mean(rose) == pytest.approx(1.95)
    tried = {1e-4: rose, 5e-4: fell, 1e-3: broke}
    assert choose(tried, more_is_better=True) == 1e-4
    assert choose(tried, more_is_better=False) == 5e-4
    with pytest.raises(ScalpelError, match="broke down at every learning rate tried"):
        choose({1e-3: broke}, more_is_better=True)


def test_a_probe_that_another_run_logs_at_the_same_moment_is_logged_all_the_same(
    tracking, monkeypatch
):
    """Two arms of an experiment begin together; the store then refuses the later dataset."""
    probe = Probe("p", "p sha256:0", "0123456789abcdef", (("3+4=", "7"),), ())
    real, refused = mlflow.log_input, []

    def refusing_once(*arguments, **options):
        if not refused:
            refused.append(1)
            raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: datasets")
        return real(*arguments, **options)

    monkeypatch.setattr(mlflow, "log_input", refusing_once)
    with mlflow.start_run() as run:
        log_probe(probe)
    (found,) = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest, refused) == ("p", "0123456789abcdef", [1])

    def away(*arguments, **options):
        raise MlflowException("the server is away")

    monkeypatch.setattr(mlflow, "log_input", away)
    with mlflow.start_run(), pytest.raises(MlflowException, match="away"):
        log_probe(probe)
