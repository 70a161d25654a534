"""Gold answers of MATH-500 and GSM8K against themselves and each other."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mlflow_scalpel.evaluation.grading import Verdict, golds_are_readable, grade_many
from mlflow_scalpel.evaluation.grading.answers import last_boxed

DATA = Path(__file__).parents[3] / "shared" / "data"

# Equal mathematics among the pairs that the shuffles below make, by eye: none but equal texts.
SHUFFLES = 3


def rows(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_solutions_of_math_are_right_against_their_own_box() -> None:
    solutions = [row["solution"] for row in rows("math500.jsonl")]
    golds = [last_boxed(solution) or "" for solution in solutions]
    assert grade_many(solutions, golds) == [Verdict.RIGHT] * len(golds)
    assert grade_many(solutions, solutions) == [Verdict.RIGHT] * len(golds)
    assert all(golds_are_readable(golds))


def test_answers_of_other_problems_are_wrong() -> None:
    golds = [last_boxed(row["solution"]) or "" for row in rows("math500.jsonl")]
    for seed in range(SHUFFLES):
        others = random.Random(seed).sample(golds, len(golds))
        verdicts = grade_many([rf"\boxed{{{other}}}" for other in others], golds)
        assert Verdict.NOT_GRADED not in verdicts
        for gold, other, verdict in zip(golds, others, verdicts, strict=True):
            assert (verdict is Verdict.RIGHT) == (gold == other), (gold, other)


def test_gsm8k_is_read_with_its_marks_and_not_without_a_pattern() -> None:
    answers = [row["answer"] for row in rows("gsm8k_test.jsonl")]
    golds = [answer.split("####")[1].strip() for answer in answers]
    assert grade_many(answers, golds) == [Verdict.RIGHT] * len(golds)
    assert not any(golds_are_readable(answers))
