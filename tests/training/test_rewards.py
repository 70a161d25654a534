"""Rewards: what the two that come with the package give, what is counted, and those of others."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_scalpel.errors import RecipeError, ScalpelError
from mlflow_scalpel.recipes.load import load_recipe, read_recipe
from mlflow_scalpel.recipes.training import GrpoRecipe
from mlflow_scalpel.training.examples import grpo_examples
from mlflow_scalpel.training.pool import open_pool
from mlflow_scalpel.training.rewards import check_rewards, choose_rewards, registry, reward
from mlflow_scalpel.training.rewards.builtin import format_of_answer
from mlflow_scalpel.training.rewards.monitor import RewardMonitor

RECIPES = Path(__file__).parents[2] / "projects" / "grpo" / "recipes"


def recipe_with(rewards: dict) -> GrpoRecipe:
    recipe = read_recipe(RECIPES / "tiny.yaml", settings={"rewards": rewards})
    assert isinstance(recipe, GrpoRecipe)
    return recipe


def monitor(names: list[str], **how) -> RewardMonitor:
    return RewardMonitor(choose_rewards(recipe_with(dict.fromkeys(names, 1.0))), **how)


class Counted:
    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def __call__(self, name: str, value: float) -> None:
        self.values[name] = value


def judge(texts: list[str], gold: list[str]):
    rewards, counted = monitor(["accuracy", "format"]), Counted()
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    ids = [[1] * len(text) for text in texts]
    batch = {
        "completions": completions,
        "answer": gold,
        "completion_ids": ids,
        "log_metric": counted,
        "prompts": [],
    }
    accuracy, form = rewards.functions
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
    assert format_of_answer(completions) == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert format_of_answer(completions, prompt_opening="<think>\n") == [1.0, 1.0, 0.0, 0.0, 0.0]


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
    assert format_of_answer([[{"role": "assistant", "content": text}]]) == [expected]


def test_the_format_of_a_long_text_is_judged_at_once():
    text = "<think>\n" + "\n</think>\n<answer>\n" * 100_000
    began = time.monotonic()
    assert format_of_answer([[{"role": "assistant", "content": text}]]) == [0.0]
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


def counted_by(names: list[str], texts: list[str], gold: str = "2") -> RewardMonitor:
    rewards = monitor(names)
    for function in rewards.functions:
        function(
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
    assert [reward.__name__ for reward in rewards.functions] == names


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


SHORT = """
def short(completion_ids, *, limit: int = 3, **_):
    return [float(len(ids) <= limit) for ids in completion_ids]

def strict(completions, answer, solution=None, *, above: float):
    return [above for _ in completions]

def pay(question, money): return 1

class Reward:
    pass

async def later(completions, **_): return []

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The tiny recipe with rewards of a module that lies beside it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_rewards.py").write_text(SHORT)
    (tmp_path / "broken_rewards.py").write_text("import nothing_such")

    def own(rewards: str, settings: str = "") -> GrpoRecipe:
        (tmp_path / "mine.yaml").write_text(
            f"extends: {RECIPES / 'tiny.yaml'}\nrewards: {rewards}\n"
        )
        return load_recipe(str(tmp_path / "mine.yaml"), RECIPES, stage="grpo", settings=settings)

    yield own
    for name in ("own_rewards", "broken_rewards"):
        sys.modules.pop(name, None)


def called(recipe: GrpoRecipe, ids: list[list[int]]):
    """The monitor of a recipe's rewards, and what each of these gives completions of these IDs."""
    rewards = RewardMonitor(choose_rewards(recipe))
    completions = [[{"role": "assistant", "content": "a" * len(one)}] for one in ids]
    batch = {
        "completions": completions,
        "completion_ids": ids,
        "prompts": completions,
        "answer": ["1"] * len(ids),
        "log_metric": Counted(),
        "trainer_state": None,
    }
    return rewards, [function(**batch) for function in rewards.functions]


def test_a_reward_is_a_function_beside_the_recipe(own):
    recipe = own("{accuracy: 0, format: 0, own_rewards:short: {weight: 0.5, limit: 2}}")
    check_rewards(recipe)
    rewards, values = called(recipe, [[1], [1, 2], [1, 2, 3]])
    assert values == [[1.0, 1.0, 0.0]]
    assert rewards.weights == [0.5]
    assert [one.__name__ for one in rewards.functions] == ["own_rewards:short"]
    assert (rewards.completions, rewards.tokens_generated) == (3, 6)  # whatever rewards there are
    (unlimited,) = called(own("{own_rewards:short: 1, accuracy: 0, format: 0}"), [[1, 2, 3]])[1]
    assert unlimited == [1.0]


def test_arguments_of_a_reward_are_set_like_any_other_field(own):
    settings = "rewards.own_rewards:short.limit=1 rewards.accuracy=0"
    recipe = own("{own_rewards:short: {weight: 0.5, limit: 2}}", settings)
    assert recipe.rewards["own_rewards:short"] == {"weight": 0.5, "limit": 1}
    assert recipe.reward_weights == {"accuracy": 0.0, "format": 0.2, "own_rewards:short": 0.5}
    # As a run keeps it, and reads it again.
    kept = GrpoRecipe.model_validate(recipe.model_dump(mode="json"))
    assert kept.rewards == recipe.rewards


def test_a_reward_is_given_the_columns_that_it_names(own):
    recipe = own("{own_rewards:strict: {weight: 1, above: 2}, accuracy: 0, format: 0}")
    examples = grpo_examples(recipe, open_pool(recipe))
    assert set(examples.column_names) == {"prompt", "answer", "solution"}
    assert called(recipe, [[1]])[1] == [[2.0]]
    tiny = read_recipe(RECIPES / "tiny.yaml")
    assert set(grpo_examples(tiny, open_pool(tiny)).column_names) == {"prompt", "answer"}


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ("{acuracy: 1}", "rewards.acuracy: there is no reward of that name; did you mean accuracy"),
        ("{accuracy: 1, frmat: 0}", "rewards.frmat: there is no .* did you mean format"),
        ("{own_rewards:shrt: 1}", "own_rewards.py has no function shrt; did you mean short"),
        ("{own_rewrds:short: 1}", "own_rewrds cannot be imported .*beside the recipe"),
        ("{broken_rewards:short: 1}", "broken_rewards cannot be imported .*nothing_such"),
        ("{own_rewards:number: 1}", "is a int and not a function"),
        ("{own_rewards:Reward: 1}", "is a type and not a function"),
        ("{own_rewards:later: 1}", "is an async function"),
        ("{own_rewards:pay: 1}", "takes neither completions nor completion_ids"),
        ("{own_rewards:short: {weight: 1, limt: 2}}", "limt: .* did you mean limit.*: limit"),
        ("{own_rewards:short: {weight: 1, limit: many}}", "limit = 'many': .* valid integer"),
        ("{own_rewards:strict: 1}", "needs above; write .*{weight: 1, above: ...}"),
        ("{format: {weight: 1, tag: 2}}", "format.tag: the reward does not take tag; .*: none"),
    ],
)  # fmt: skip
def test_a_reward_that_cannot_be_called_is_refused(own, rewards, said):
    with pytest.raises(RecipeError, match=f"recipe mine: .*{said}"):
        check_rewards(own(rewards))


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ("{accuracy: much}", "rewards.accuracy = 'much': is not a weight; write a number"),
        ("{accuracy: -1}", "rewards.accuracy = -1: is not a weight of 0 or more"),
        ("{accuracy: {limit: 1}}", "rewards.accuracy: is missing a weight"),
        ("{accuracy: 0, format: {weight: 0}}", "all weights are 0"),
    ],
)
def test_what_is_not_a_weight_is_refused(own, rewards, said):
    with pytest.raises(RecipeError, match=re.escape(said)):
        own(rewards)


def test_accuracy_needs_answers():
    recipe = read_recipe(RECIPES / "tiny.yaml", settings={"data.columns.answer": None})
    with pytest.raises(
        RecipeError, match=r"data\.columns\.answer is null.*set rewards\.accuracy=0"
    ):
        check_rewards(recipe)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0], "the reward given gave 1 values for 2 completions"),
        ([1.0, float("nan")], "the reward given gave nan for the completion 'aa'"),
        ([1.0, "good"], "gave 'good' for the completion 'aa', which is not a finite number"),
        (1.0, "the reward given gave a float; return a list"),
    ],
)
def test_values_that_are_not_one_number_each_are_refused(registered, values, said):
    registered("given", lambda completions: values)
    with pytest.raises(ScalpelError, match=re.escape(said)):
        called(recipe_with({"given": 1.0, "accuracy": 0, "format": 0}), [[1], [1, 2]])


def test_completions_without_a_value_are_counted_in_words(registered):
    registered("given", lambda completions, **_: [None, 0.5])
    recipe = recipe_with({"given": 1.0, "format": 0.1})
    rewards, values = called(recipe, [[1], [1, 2]])
    assert values == [[None, 0.5], [0.0, 0.0]]
    assert rewards.warnings() == {
        "no_reward": None,
        "not_graded": None,
        "no_reward_value": (
            "no value (None) was given by the given reward for 1 of 2 completions: only the other "
            "rewards count for them, and where there is none, nothing"
        ),
    }


def test_a_penalty_is_a_reward(registered):
    registered("given", lambda completions: [-0.5, 0.0])
    rewards, values = called(recipe_with({"given": 1.0}), [[1], [1, 2]])
    assert values == [[-0.5, 0.0]]
    assert not any(rewards.warnings().values())


def test_a_reward_that_raises_is_named(registered):
    def given(completions):
        raise KeyError("x")

    registered("given", given)
    with pytest.raises(KeyError) as caught:
        called(recipe_with({"given": 1.0}), [[1]])
    assert caught.value.__notes__ == ["raised by the reward given"]


def test_two_rewards_of_one_name_are_refused():
    with pytest.raises(ValueError, match="'format' is registered twice"):
        reward("format")(lambda completions: [])


def test_a_package_brings_rewards_by_an_entry_point(tmp_path, monkeypatch):
    (tmp_path / "packaged_rewards.py").write_text(
        "from mlflow_scalpel.training.rewards import reward\n"
        "@reward('packaged')\ndef packaged(completions): return [1.0 for _ in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    point = importlib.metadata.EntryPoint("x", "packaged_rewards", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    monkeypatch.setattr(registry, "_REWARDS", dict(registry._REWARDS))
    registry._discover.cache_clear()
    assert called(recipe_with({"packaged": 1.0}), [[1]])[1] == [[1.0]]


@pytest.fixture
def registered(monkeypatch):
    registry._discover()
    monkeypatch.setattr(registry, "_REWARDS", dict(registry._REWARDS))
    return lambda name, function: reward(name)(function)
