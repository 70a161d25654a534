"""How likely the gold answer still is where a problem was lost."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlflow_scalpel.evaluation.gold import opening_of, score_gold_answers
from mlflow_scalpel.evaluation.harness import Evaluator
from mlflow_scalpel.evaluation.suite import load_suite

TASKS = Path(__file__).parents[2] / "projects" / "evaluate" / "tasks"


@pytest.mark.parametrize(
    ("completion", "gold", "opening"),
    [
        ("so \\boxed{3}, no: \\boxed{7}", "7", "so \\boxed{3}, no: \\boxed{"),
        ("<think>so 7</think>\n<answer>\n7\n</answer>", "7", "<think>so "),
        ("<think>so</think>\n<answer>\n7\n</answer>", "7", "<think>so</think>\n<answer>\n"),
        ("<answer>\n\\boxed{7}</answer>", "7", "<answer>\n\\boxed{"),
        ("7*1=7\n\\boxed{7}", "7", "7*1="),  # the first 7 repeats the problem
        ("17, x^7, 7.5, y_7: \\boxed{7}", "7", "17, x^7, 7.5, y_7: \\boxed{"),
        ("7*1 is 7.", "7", "7*1 is "),
        ("7", "7", ""),
        ("\\boxed{\\frac12}", "0.5", "\\boxed{"),  # another form of it
        ("0.5", "1/2", None),
        ("7", "", None),
    ],
)
def test_an_opening_ends_where_the_answer_begins(completion, gold, opening):
    assert opening_of(completion, gold, "7*1=?") == opening


@pytest.fixture
def evaluator(first_model: Path, tmp_path: Path) -> Evaluator:
    suite = tmp_path / "own.yaml"
    task = {
        "task": "tiny_problem",
        "label": "add",
        "domain": "in",
        "kind": "greedy",
        "metric": "exact_match",
        "generation": {"max_new_tokens": 12},
        "data": {"generated": "tiny_world", "split": "heldout", "where": {"skill": "add"}},
        "limit": 6,
    }
    suite.write_text(yaml.safe_dump({"tasks_folder": str(TASKS), "tasks": [task]}))
    return Evaluator(first_model, load_suite(str(suite), tmp_path), batch_size=4)


def direct(directory: Path, context: str, text: str) -> float:
    """log p(text | context) in float64 from one forward pass."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    before, after = (tokenizer.encode(s, add_special_tokens=False) for s in (context, text))
    with torch.inference_mode():
        logits = model(torch.tensor([before + after])).logits[0]  # (T, V)
    log_p = logits.log_softmax(-1)
    return sum(float(log_p[len(before) - 1 + i, token]) for i, token in enumerate(after))


def test_scores_are_those_of_a_direct_forward_pass(evaluator, first_model, make_model):
    rows = evaluator.run().samples
    # As if the base were right in the first four problems, each with an opening or without.
    completions = ["\\boxed{4}", "it is 12", "12", "none", "?", "?"]
    rows = rows.assign(
        score=[1.0] * 4 + [0.0] * 2,
        completion=[text.replace("\\boxed{", "box:") for text in completions],
        gold=["4", "12", "12", "5", "6", "7"],
    )
    rows.loc[0, "completion"] = "is \\boxed{4}"
    base = score_gold_answers(evaluator, rows)
    assert list(base["gold_loglik"].notna()) == [True] * 4 + [False] * 2
    assert list(base["gold_loglik_after_opening"].notna()) == [True] * 3 + [False] * 3
    other = make_model(2)
    evaluator.load_weights(other)
    lost = score_gold_answers(
        evaluator, rows.assign(score=[0.0, 0.0, 1.0, float("nan"), 0.0, 1.0]), base
    )
    assert list(lost["gold_loglik"].notna()) == [True] * 2 + [False] * 4
    for place, directory, scored in ((1, first_model, base), (1, other, lost), (0, other, lost)):
        row = scored.iloc[place]
        prompt = f"<|user|>{row['problem']}<|assistant|>"
        opening = opening_of(row["completion"], row["gold"], row["problem"])
        for column, context in (
            ("gold_loglik", prompt),
            ("gold_loglik_after_opening", prompt + opening),
        ):
            expected = direct(directory, context, row["gold"])
            assert row[column] == pytest.approx(expected, rel=1e-4), (place, column)
    # Without an opening both are the same thing.
    assert base.loc[2, "gold_loglik"] == pytest.approx(base.loc[2, "gold_loglik_after_opening"])
    pd.testing.assert_frame_equal(rows, base[rows.columns])


def test_several_samples_are_scored_once_and_a_text_too_long_not_at_all(evaluator):
    rows = evaluator.run().samples.assign(score=1.0, gold="4", completion="4")
    twice = pd.concat([rows, rows.assign(sample=1)], ignore_index=True)
    scored = score_gold_answers(evaluator, twice)
    assert scored["gold_loglik"].notna().sum() == len(rows)
    assert scored.loc[scored["sample"] == 1, "gold_loglik"].isna().all()
    long = rows.assign(gold="4" * 200)
    assert score_gold_answers(evaluator, long)["gold_loglik"].isna().all()
    nothing = score_gold_answers(evaluator, rows.assign(score=0.0))
    assert nothing["gold_loglik"].isna().all()
