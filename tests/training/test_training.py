"""What goes into TRL, what its rewards do, what a run is said to cost."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import get_args

import mlflow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from trl import GRPOConfig, SFTConfig

from mlflow_scalpel.comparison.forward.probes import Probe
from mlflow_scalpel.errors import RecipeError, ScalpelError
from mlflow_scalpel.recipes import load_recipe, read_recipe
from mlflow_scalpel.recipes.training import Checkpoints, GrpoTrain, Train
from mlflow_scalpel.training.arguments import NOT_TRL, grpo_fields, sft_fields, total_steps
from mlflow_scalpel.training.cost import Cost, Multiplied, estimate_flops
from mlflow_scalpel.training.examples import grpo_examples, open_pool, sft_examples
from mlflow_scalpel.training.pilots import choose, final_mean
from mlflow_scalpel.training.rewards import Rewards
from mlflow_scalpel.training.session import log_probe
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
    assert config.reward_weights == [recipe.rewards.accuracy, recipe.rewards.format]


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


class Counted:
    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def __call__(self, name: str, value: float) -> None:
        self.values[name] = value


def judge(texts: list[str], gold: list[str]):
    rewards, counted = Rewards(), Counted()
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    ids = [[1] * len(text) for text in texts]
    batch = {
        "completions": completions,
        "answer": gold,
        "completion_ids": ids,
        "log_metric": counted,
        "prompts": [],
    }
    accuracy, form = rewards.functions(["accuracy", "format"])
    return rewards, accuracy(**batch), counted.values, form(**batch)


BLOCKS = "<think>\n1+1=2\n</think>\n<answer>\n\\boxed{2}\n</answer>"


def test_rewards_count_what_goes_wrong():
    texts = [BLOCKS, "\\boxed{3}", "", "2"]
    rewards, given, counted, form = judge(texts, ["2", "2", "2", "2"])
    assert given == [1.0, 0.0, 0.0, 0.0]
    assert form == [1.0, 0.0, 0.0, 0.0]
    assert counted["reward_checks/empty_completions"] == 0.25
    assert counted["reward_checks/boxed"] == 0.5
    assert rewards.tokens_generated == sum(map(len, texts))
    assert not any(rewards.warnings().values())


def test_the_format_is_judged_with_what_the_prompt_opens():
    """As of DeepSeek-R1's template, which ends the prompt with <think> and a line break."""
    rest = BLOCKS.removeprefix("<think>\n")
    wrong = ["1+1=2", rest.replace("</think>", ""), rest.replace("answer", "result")]
    completions = [[{"content": text}] for text in (BLOCKS, rest, *wrong)]
    assert Rewards().format(completions) == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert Rewards(opening="<think>\n").format(completions) == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_a_gold_answer_that_does_not_parse_is_counted_and_not_judged():
    _, given, counted, form = judge([BLOCKS, BLOCKS], ["", "2"])
    assert given == [None, 1.0]
    assert counted["reward_checks/gold_unparsable"] == 0.5
    assert form == [1.0, 1.0]


def test_completions_that_would_take_seconds_do_not():
    nasty = ["\\boxed{9^{9^{9^9}}}", "\\boxed{10^{10^{10}}}", "\\boxed{99999999!}"] * 4
    started = time.monotonic()
    rewards, given, counted, _ = judge(nasty, ["2"] * len(nasty))
    assert given == [None] * len(nasty)  # not graded, which is not wrong
    assert counted["reward_checks/not_graded"] == 1.0
    assert counted["reward_checks/gold_unparsable"] == 0.0
    assert rewards.not_graded == len(nasty)
    assert time.monotonic() - started < 5


@given(st.lists(st.sampled_from(["<think>\n", "\n</think>\n<answer>\n", "\n</answer>", "\n", "a"])))
def test_the_format_is_that_of_the_pattern(pieces):
    pattern = r"<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>"
    text = "".join(pieces)
    expected = float(re.fullmatch(pattern, text.strip(), re.DOTALL) is not None)
    assert Rewards().format([[{"role": "assistant", "content": text}]]) == [expected]


def test_the_format_of_a_long_text_is_judged_at_once():
    text = "<think>\n" + "\n</think>\n<answer>\n" * 100_000
    began = time.monotonic()
    assert Rewards().format([[{"role": "assistant", "content": text}]]) == [0.0]
    assert time.monotonic() - began < 1


def test_an_unboxed_answer_in_the_format_asked_for_is_right():
    texts = [
        "<think>\nx\n</think>\n<answer>\n$17$\n</answer>",
        "<think>\nx\n</think>\n<answer>\nThe final answer is \\(17\\).\n</answer>",
        "The answer is $17$. I hope this answer helps.",
    ]
    _, given, _, form = judge(texts, ["17"] * 3)
    assert given == [1.0] * 3
    assert form == [1.0, 1.0, 0.0]


def test_a_reward_that_is_always_zero_is_said():
    rewards, *_ = judge(["2", "\\boxed{3}"], ["2", "2"])
    assert "0 for all 2 completions" in str(rewards.warnings()["no_reward"])
    assert "1 of them hold a \\boxed" in str(rewards.warnings()["no_reward"])


def counted_by(names: list[str], texts: list[str], gold: str = "2") -> Rewards:
    rewards = Rewards()
    for reward in rewards.functions(names):
        reward(
            completions=[[{"role": "assistant", "content": text}] for text in texts],
            answer=[gold] * len(texts),
            completion_ids=[[1] * 7] * len(texts),
            log_metric=Counted(),
            prompts=[],
        )
    return rewards


@pytest.mark.parametrize("names", [["format"], ["accuracy"], ["accuracy", "format"]])
def test_each_batch_is_counted_once_whichever_rewards_there_are(names):
    rewards = counted_by(names, [BLOCKS, "\\boxed{2}", ""])
    assert (rewards.completions, rewards.tokens_generated, rewards.boxed) == (3, 21, 2)
    assert not any(rewards.warnings().values())
    # The names that the trainer's metrics carry.
    assert [reward.__name__ for reward in rewards.functions(names)] == names


@pytest.mark.parametrize(
    ("names", "texts", "gold", "said"),
    [
        (["format"], ["2", "\\boxed{2}"], "2", "the format reward was 0 for all 2 completions"),
        (["accuracy"], ["2", "3"], "2", "the accuracy reward was 0 for all 2 completions"),
        (["accuracy", "format"], ["2"], "2", "accuracy and format reward was 0 for all 1 compl"),
        (["accuracy", "format"], [BLOCKS], "3", "GRPO has nothing to amplify"),
        (["accuracy", "format"], [BLOCKS], "", "judged none of all 1 completions"),
        (["accuracy"], [BLOCKS], "", "for 1 the gold answer could not be read"),
    ],
)
def test_rewards_that_are_all_zero_are_said_whichever_they_are(names, texts, gold, said):
    assert said in str(counted_by(names, texts, gold).warnings()["no_reward"])


def test_completions_that_are_not_graded_are_said_once_some_are():
    nasty = "\\boxed{9^{9^{9^9}}}"
    said = counted_by(["accuracy", "format"], [nasty, "\\boxed{2}", nasty, BLOCKS]).warnings()
    assert said["no_reward"] is None
    assert "2 of 4 completions were not graded" in str(said["not_graded"])
    none = counted_by(["accuracy"], [nasty, nasty]).warnings()
    assert "2 took too long to compare" in str(none["no_reward"])
    assert none["not_graded"] is None  # said once


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
