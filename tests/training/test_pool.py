"""What a run draws from: repetitions, conversations, what max_length leaves, and the account."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trl import SFTConfig, SFTTrainer

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.recipes import load_recipe
from mlflow_scalpel.training.arguments import sft_fields
from mlflow_scalpel.training.examples import grpo_examples, sft_examples
from mlflow_scalpel.training.pool import open_pool
from tests.conftest import make_tokenizer

PROJECTS = Path(__file__).parents[2] / "projects"


def recipe_of(folder: Path, rows: list[dict], settings: str = "", stage: str = "sft"):
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = (
        f"data.generated=null data.file={folder}/a.jsonl data.where={{}} probes={{}} "
        f"data.columns={{}} {settings}"
    )
    return load_recipe("tiny", PROJECTS / stage / "recipes", stage=stage, settings=settings)


def turn(role: str, content: str) -> dict:
    return {"role": role, "content": content}


ALPACA = [
    {"instruction": "Add", "input": f"{n}+4=", "output": str(n + 4), "other": "x"} for n in range(4)
]


def test_rows_of_one_instruction_are_told_and_can_be_joined(tmp_path, capsys):
    columns = "'data.columns={problem: instruction, answer: null, solution: output}'"
    pool = open_pool(recipe_of(tmp_path, ALPACA, columns))
    assert len(pool.rows) == 1
    line = (
        "1 of 4 rows kept; 3 repeat an earlier problem (3 of them with another solution or answer)"
    )
    assert line in capsys.readouterr().out
    assert "only 1 of the 4 rows" in pool.warnings["data"]
    assert r'problem: "{instruction}\n{input}"' in pool.warnings["data"]
    golds = [{"problem": "3+4=", "answer": answer} for answer in ("7", "7", "8")]
    open_pool(recipe_of(tmp_path, golds, "data.columns.solution=null", "grpo"))
    line = "2 repeat an earlier problem (1 of them with another solution or answer)"
    assert line in capsys.readouterr().out
    joined = (
        r"""'data.columns={problem: "{instruction}\n{input}", answer: null, solution: output}'"""
    )
    pool = open_pool(recipe_of(tmp_path, ALPACA, joined))
    assert [row["problem"] for row in pool.rows] == [f"Add\n{n}+4=" for n in range(4)]
    assert pool.warnings == {}
    assert capsys.readouterr().out == ""


def test_conversations_of_one_system_turn_are_distinct(tmp_path):
    rows = [
        {"messages": [turn("system", "calc"), turn("user", f"{n}+4="), turn("assistant", "7")]}
        for n in range(4)
    ]
    recipe = recipe_of(tmp_path, rows, "'data.columns={messages: messages, answer: null}'")
    pool = open_pool(recipe)
    assert [row["problem"] for row in pool.rows] == ["0+4=", "1+4=", "2+4=", "3+4="]
    assert pool.system_prompt == "calc"
    first = sft_examples(recipe, pool)[0]
    assert first["prompt"] == [turn("system", "calc"), turn("user", "0+4=")]
    assert first["completion"] == [turn("assistant", "7")]


def test_one_question_after_other_turns_is_not_repeated(tmp_path, capsys):
    def row(asked: str) -> dict:
        turns = [turn("user", asked), turn("assistant", "yes"), turn("user", "more")]
        return {"messages": [*turns, turn("assistant", "ok")]}

    recipe = recipe_of(
        tmp_path,
        [row("a"), row("b"), row("a")],
        "'data.columns={messages: messages, answer: null}' rewards.accuracy=0",
        stage="grpo",
    )
    pool = open_pool(recipe)
    assert [one["content"] for one in grpo_examples(recipe, pool)[1]["prompt"]] == [
        "b",
        "yes",
        "more",
    ]
    said = capsys.readouterr().out
    assert "2 of 3 rows kept; 1 repeat an earlier problem" in said
    assert "2 have earlier turns, which are context and not learned" in said


def test_two_system_prompts_are_refused_or_told(tmp_path):
    own = [turn("system", "calc"), turn("user", "1"), turn("assistant", "1")]
    rows = [{"messages": own}, {"messages": [turn("user", "2"), turn("assistant", "2")]}]
    columns = "'data.columns={messages: messages, answer: null}'"
    with pytest.raises(
        ScalpelError, match=r"line 1 has the system turn 'calc', and system_prompt = 'x'"
    ):
        open_pool(recipe_of(tmp_path, rows, f"{columns} system_prompt=x"))
    pool = open_pool(recipe_of(tmp_path, rows, columns))
    assert pool.system_prompt is None
    assert "2 different system prompts" in pool.warnings["system_prompts"]
    recipe = recipe_of(tmp_path, rows, f"{columns} system_prompt=calc")
    pool = open_pool(recipe)
    assert pool.system_prompt == "calc"
    assert [len(row["prompt"]) for row in sft_examples(recipe, pool)] == [2, 2]


# One token a character, <|user|> and <|assistant|>; the test's template writes no end of turn.
LENGTHS = [("ab", "c"), ("a" * 8, "c"), ("b" * 8, "cdef"), ("a" * 9, "c"), ("a" * 20, "c")]
ROWS = [{"problem": problem, "answer": "1", "solution": solution} for problem, solution in LENGTHS]
COLUMNS = "'data.columns={answer: null}' 'train.max_length=11'"


def by_trl(recipe, pool, first_model, folder) -> list[list[int]]:
    """What TRL itself learns from: each example's learned tokens, at its own `max_length`."""
    fields = sft_fields(recipe, folder, rows=100) | {"max_steps": 1, "save_steps": 1}
    trainer = SFTTrainer(
        model=str(first_model),
        args=SFTConfig(**fields),
        train_dataset=sft_examples(recipe, pool),
        processing_class=make_tokenizer(),
    )
    return [[label for label in row["labels"] if label != -100] for row in trainer.train_dataset]


def test_what_max_length_leaves_is_what_trl_learns(tmp_path, first_model, capsys):
    whole = open_pool(recipe_of(tmp_path, ROWS, "'data.columns={answer: null}'"), make_tokenizer())
    recipe = recipe_of(tmp_path, ROWS, f"{COLUMNS} train.per_device_train_batch_size=1")
    # TRL drops the two whose prompt has 11 tokens or more, and cuts one of four tokens after one.
    learned = by_trl(recipe, whole, first_model, tmp_path)
    assert [len(tokens) for tokens in learned] == [1, 1, 1]
    pool = open_pool(recipe, make_tokenizer())
    assert [(row["problem"], row["solution"]) for row in pool.rows] == LENGTHS[:3]
    assert by_trl(recipe, pool, first_model, tmp_path) == learned
    assert pool.params()["data_dropped"] == "max_length 2, cut at max_length 1"
    assert "1 of 3 solutions are cut there" in pool.warnings["cut"]
    said = capsys.readouterr().out
    assert "3 of 5 rows kept; 2 have a prompt that fills train.max_length = 11" in said
    assert "1 are cut at train.max_length = 11" in said


def test_nothing_left_by_max_length_is_refused(tmp_path):
    for rows, said in (
        (ROWS[3:], "2 have a prompt that fills it, 0"),
        (ROWS[2:], "2 have .* 1 lose"),
    ):
        with pytest.raises(ScalpelError, match=f"none of . examples fits .*{said}"):
            open_pool(recipe_of(tmp_path, rows, COLUMNS), make_tokenizer())


def test_with_all_tokens_learned_no_prompt_fills(tmp_path):
    recipe = recipe_of(tmp_path, ROWS, f"{COLUMNS} train.loss_on=all")
    pool = open_pool(recipe, make_tokenizer())
    assert (len(pool.rows), pool.cut) == (5, 3)


def test_all_that_leaves_rows_out_is_counted_in_order(tmp_path, capsys):
    def row(n: int, **fields) -> dict:
        return {"problem": f"{n}+1=", "answer": str(n), "solution": "s", "k": "a", **fields}

    rows = [
        row(0, k="b"),
        row(1, answer="the words of prose"),
        row(2, answer=None),
        row(3),
        row(3, solution="other"),
        row(4, problem="a long problem"),
        row(5, solution="a long solution"),
        row(6),
        row(7),
        row(8),
    ]
    recipe = recipe_of(
        tmp_path,
        rows,
        "'data.where={k: a}' data.rows=0:8 data.drop_unreadable=true data.max_prompt_tokens=8 "
        "data.max_solution_tokens=6",
        stage="grpo",
    )
    pool = open_pool(recipe, make_tokenizer())
    assert [one["problem"] for one in pool.rows] == ["3+1=", "6+1=", "7+1="]
    assert {key: value for key, value in pool.params().items() if value} == {
        "data_rows": 10,
        "data_problems": 3,
        "data_dropped": "where 1, rows 1, unreadable 1, unreadable_golds 1, repeated 1, "
        "long_prompts 1, long_solutions 1",
    }
    said = capsys.readouterr().out
    order = [
        "by where.k",
        "outside of `rows`",
        "cannot be read",
        "gold answer",
        "repeat",
        "prompts",
        "solutions",
    ]
    places = [said.index(words) for words in order]
    assert places == sorted(places)
    assert "only 3 of the 8 rows" in pool.warnings["data"]
