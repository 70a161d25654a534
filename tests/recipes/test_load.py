"""Recipes: what is accepted, and what a mistake is told."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlflow_scalpel.cli import main
from mlflow_scalpel.errors import RecipeError
from mlflow_scalpel.recipes import load_recipe, read_recipe
from mlflow_scalpel.recipes.load import STAGES
from mlflow_scalpel.recipes.settings import parse_settings

PROJECTS = Path(__file__).parents[2] / "projects"
SHIPPED = sorted(PROJECTS.glob("*/recipes/*.yaml"))


def load(stage: str, settings: str = "", name: str = "tiny"):
    return load_recipe(name, PROJECTS / stage / "recipes", stage=stage, settings=settings)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_every_shipped_recipe_is_valid_for_the_stage_whose_folder_it_lies_in(path):
    assert read_recipe(path).stage == path.parts[-3]


def test_every_stage_has_a_default_recipe():
    assert {path.parts[-3] for path in SHIPPED if path.stem == "tiny"} == set(STAGES)


@pytest.mark.parametrize(
    ("stage", "settings", "said"),
    [
        ("grpo", "train.learning_rate=-1", "train.learning_rate = -1: .*greater than 0"),
        ("grpo", "train.learning_rate=fast", "train.learning_rate = 'fast': .*valid number"),
        ("grpo", "train.learning_rate=.nan", "train.learning_rate = nan: .*finite number"),
        ("grpo", "train.loss_type=dpo", "train.loss_type = 'dpo': .*'dr_grpo'"),
        ("grpo", "train.scale_rewards=false", "train.scale_rewards = False: .*'none'"),
        ("grpo", "train.num_generations=7", "num_generations = 7 does not divide.*4 or 6 or 8"),
        ("grpo", "train.max_steps=33", "which gives 17; train for 20 or 40 steps.*count=17"),
        ("grpo", "train.lerning_rate=1", "lerning_rate.*Did you mean learning_rate"),
        ("grpo", "train.max_length=9", "train.max_length = 9: .*not permitted"),
        ("grpo", "train.num_train_epochs=2", "exactly one of max_steps and num_train_epochs"),
        ("grpo", "rewards.accuracy=0 rewards.format=0", "all weights are 0"),
        ("sft", "data.columns.solution=null", "data.columns.solution is null"),
        ("sft", "data.file=x.jsonl", "exactly one of hub, file and generated"),
        ("sft", "data.rows=first", "data.rows = 'first': .*0:1000"),
        ("sft", "data.answer_pattern=a", "data.answer_pattern = 'a': .*group"),
        ("sft", "probes.base_style.columns.solution=null", "probes.base_style.columns.solution"),
        ("sft", "model.name=x", "model.name cannot be set"),
        ("sft", "train", "'train' is not FIELD=VALUE"),
        ("sft", "stage=grpo", "another entry point than sft"),
        ("base", "architecture.num_attention_heads=5", "= 5 does not divide hidden_size = 96"),
        ("evaluate", "model=a run=b", "both model = a and run = b"),
        ("main", "arms=[{name: a, b: c}]", "the value of arms is not YAML.*quotes"),
        ("main", "compare.recipe=tinny", "recipe = tinny: .*Did you mean tiny"),
        (
            "main",
            "base.set.train.steps=0",
            "base/recipes/tiny.yaml: train.steps = 0: .*greater than 0",
        ),
        ("sft", "metrics=[weight]", "weight is of no group; write one of weights"),
        ("sft", "metrics=[kl] rare_metrics=[kl/js]", "rare_metrics = kl/js: metrics has some"),
        ("sft", "metrics=[weights,pairs]", "pairs is not of one checkpoint"),
        ("main", "model=x", "exactly one of base and model"),
        ("main", "'arms=[{name: a, stage: sft, recipe: tiny, sets: {}}]'", "Did you mean set"),
    ],
)
def test_a_mistake_is_told_with_field_value_and_remedy(stage, settings, said):
    with pytest.raises(RecipeError, match=f"(?s){said}") as error:
        load(stage, settings)
    assert "\n" not in str(error.value)  # one paragraph


def test_the_file_is_named():
    with pytest.raises(RecipeError, match=r"grpo/recipes/tiny\.yaml: train\.seed = 'x'"):
        load("grpo", "train.seed=x")


def test_settings_replace_fields_and_read_numbers_as_numbers():
    recipe = load("grpo", "train.learning_rate=1e-5 train.max_steps=20 data.where.skill=[add]")
    assert (recipe.train.learning_rate, recipe.train.max_steps) == (1e-5, 20)
    assert recipe.data.where == {"skill": ["add"]}
    assert parse_settings("'a=x y' b=[1,2]") == {
        "a": "x y",
        "b": [1, 2],
    }


def test_a_recipe_inherits_all_but_what_it_states(tmp_path):
    matched, plain = load("sft", name="tiny-matched"), load("sft")
    assert matched.train.learning_rate == load("grpo").train.learning_rate
    assert matched.name == "tiny-matched"
    same = {"train": plain.train, "name": plain.name, "description": plain.description}
    assert matched.model_copy(update=same) == plain
    (tmp_path / "loop.yaml").write_text("extends: loop\n")
    with pytest.raises(RecipeError, match="extends itself"):
        read_recipe(tmp_path / "loop.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stage: sft\nstage: grpo\n", "'stage' is given twice"),
        ("- a\n", "holds no fields"),
        ("stage: [\n", "not readable YAML"),
        ("? [a]\n: b\n", "not readable YAML: a key is a list"),
        ("\0", "not readable YAML: unacceptable character"),
        ("stage: dpo\n", "'dpo' is not a stage"),
        ("stage: [sft]\n", r"\['sft'\] is not a stage"),
        ("stage: sft\n", "model: field required"),
    ],
)
def test_a_broken_file_is_told(tmp_path, text, said):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=said) as error:
        read_recipe(path)
    assert all(line.startswith(str(path)) for line in str(error.value).split("\n\n"))


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean tiny-matched"):
        load("sft", name="tiny-mached")


def test_a_variant_may_lie_anywhere(tmp_path, monkeypatch, capsys):
    """`extends: STAGE/NAME` is a recipe of the project that one is in."""
    monkeypatch.chdir(PROJECTS.parent)
    variant = tmp_path / "mine.yaml"
    variant.write_text("extends: sft/tiny\ntrain: {learning_rate: 0.125}\n")
    recipe = read_recipe(variant, stage="sft")
    assert (recipe.name, recipe.train.learning_rate) == ("mine", 0.125)
    assert main(["check", str(variant)]) == 0
    assert "a valid recipe of the entry point sft" in capsys.readouterr().out
    variant.write_text("extends: sft/tinny\n")
    with pytest.raises(RecipeError, match=r"recipe = tinny: .*sft/recipes\. Did you mean tiny\?"):
        read_recipe(variant)


@pytest.mark.parametrize("stage", ["main", "evaluate", "sft"])
def test_a_copy_of_a_recipe_may_be_checked_anywhere(stage, tmp_path, monkeypatch):
    monkeypatch.chdir(PROJECTS.parent)
    copy = tmp_path / "copy.yaml"
    copy.write_text((PROJECTS / stage / "recipes" / "tiny.yaml").read_text())
    assert main(["check", str(copy)]) == 0


@pytest.mark.parametrize("command", ["check", "plan"])
@pytest.mark.parametrize("text", ["train.learning_rate=-1", "model=null", "nothing"])
def test_a_command_names_its_own_option(command, text, monkeypatch, capsys):
    monkeypatch.chdir(PROJECTS.parent)
    assert main([command, "sft/tiny", "--set", text]) == 2
    said = capsys.readouterr().err
    assert '--set "' in said
    assert "-P set" not in said


def test_a_field_of_an_experiments_part_is_given_by_that_part():
    with pytest.raises(RecipeError, match=r"the experiment's base\.set: \"train\.steps="):
        load("main", "base.set.train.steps=0")
    arms = "'arms=[{name: a, stage: sft, recipe: tiny, set: {train.max_steps: 0}}]' compare=null"
    with pytest.raises(RecipeError, match=r"arms\.0\.set: \"train\.max_steps="):
        load("main", arms)


def test_check_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from mlflow_scalpel.cli import main\n"
        "status = main(['check', sys.argv[1], '--set', 'train.learning_rate=-1'])\n"
        "heavy = {'torch', 'mlflow', 'transformers', 'trl', 'lm_eval'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(status)\n"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(PROJECTS / "sft" / "recipes" / "tiny.yaml")],
        capture_output=True,
        text=True,
    )
    assert time.monotonic() - started < 3
    assert done.returncode == 2
    assert "greater than 0" in done.stderr


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1_000", "1_000"),
        ("010", "010"),
        ("-3", -3),
        ("2.", 2.0),
        (".5", 0.5),
        ("10:50", "10:50"),
        ("1000:", "1000:"),
        (":5", ":5"),
        ("{a: 1}", {"a": 1}),
        ("null", None),
        ("true", True),
        ("x", "x"),
        ("models:/tiny-base/1", "models:/tiny-base/1"),
    ],
)
def test_values_are_what_they_look_like(text, value, tmp_path):
    (read,) = parse_settings(f"'field={text}'").values()
    assert read == value
    assert type(read) is type(value)


def test_a_chat_template_is_text_or_a_file(tmp_path, monkeypatch):
    text = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (tmp_path / "own.jinja").write_text(text)
    (tmp_path / "empty.jinja").write_text("no braces")
    monkeypatch.chdir(tmp_path)
    recipe = load("sft", "chat_template=own.jinja")
    assert recipe.chat_template == text
    # As the run keeps it, it is read again without the file.
    assert type(recipe).model_validate(recipe.model_dump(mode="json")) == recipe
    for name, said in (("none.jinja", f"looked for in {tmp_path}"), ("empty.jinja", "no braces")):
        with pytest.raises(RecipeError, match=said):
            load("sft", f"chat_template={name}")


def test_the_date_of_templates_is_a_stated_one():
    recipe = load("sft")
    assert recipe.template_date.isoformat() == "2024-07-26"
    recipe = load("sft", "template_date=2026-01-02")
    assert recipe.template_date.isoformat() == "2026-01-02"


def _aliases(first: str, many: str) -> str:
    """Ten levels of nine aliases each: 9^10 values."""
    lines = [f"a: &a {first}"]
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True):
        lines.append(f"{name}: &{name} {many.format(', '.join([f'*{before}'] * 9))}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_aliases("[x]", "[{}]"), "its aliases stand for more than 100000 values"),
        (_aliases("{x: 1}", "{{<<: [{}]}}"), "its aliases stand for more than 100000 values"),
        ("name: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("name: " + "[" * 80 + "]" * 80, "nested more than 50 times"),
        ("name: &a [*a]", "a value contains itself"),
        ("train: {max_steps: " + "9" * 6000 + "}", "a number has 6000 digits"),
        ("train: {max_steps: 0x" + "f" * 6000 + "}", "a number has 6002 digits"),
        ("name: !!timestamp foo", "a value is not what its tag says"),
        ("name: !!int foo", "a value is not what its tag says"),
        ("name: " + "x" * 1_000_000, "has more than 1000000 bytes"),
    ],
)
def test_a_file_that_would_stop_whoever_reads_it(tmp_path, text, said):
    (tmp_path / "bad.yaml").write_text(f"stage: sft\n{text}\n")
    began = time.monotonic()
    with pytest.raises(RecipeError, match=said):
        read_recipe(tmp_path / "bad.yaml")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("value", ["[" * 5000, "[" * 60 + "]" * 60, "9" * 5000])
def test_a_setting_that_would_do_so(value):
    with pytest.raises(RecipeError, match="set = a="):
        parse_settings(f"a={value}")


def test_aliases_that_somebody_writes(tmp_path):
    (tmp_path / "good.yaml").write_text(
        "stage: compare\nruns: &r [a, b]\ntitle: &t text\nname: *t\n"
    )
    assert read_recipe(tmp_path / "good.yaml").name == "text"
