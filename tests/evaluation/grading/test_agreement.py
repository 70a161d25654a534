"""How often grading disagrees with people: counts that may only fall.

`graded_pairs.tsv` holds kind, verdict, gold answer and completion (⏎ is a line break). Its verdicts
are by mathematical truth, as a teacher who knows the gold answer and the usual conventions would
give them, and were not made by running anything; the kinds follow public reports on graders (the
issues of Math-Verify, open-r1, lm-evaluation-harness, Qwen2.5-Math) and the answers of MATH.
"""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mlflow_scalpel.evaluation.grading import (
    Verdict,
    gold_is_readable,
    golds_are_readable,
    grade_many,
)
from mlflow_scalpel.evaluation.grading.answers import last_boxed

FALSE_POSITIVES = 0
FALSE_NEGATIVES = 1
ONLY_MATH_VERIFY_RIGHT = 0


class Pair(NamedTuple):
    kind: str
    right: bool
    gold: str
    completion: str


def read_pairs() -> list[Pair]:
    lines = (Path(__file__).parent / "graded_pairs.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    return [Pair(k, v == "right", g, c.replace("⏎", "\n")) for k, v, g, c in rows]


def by_math_verify(pair: Pair) -> bool:
    """With its own defaults, and its documentation's way with LaTeX gold answers."""
    from math_verify import parse, verify

    return bool(verify(parse(f"${pair.gold}$"), parse(pair.completion)))


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return read_pairs()


def test_disagreements_may_only_fall(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("math_verify"), "disabled", True)
    assert len(pairs) > 300
    assert len(set(pairs)) == len(pairs)
    verdicts = grade_many([p.completion for p in pairs], [p.gold for p in pairs])
    found = list(zip(pairs, verdicts, strict=True))
    too_much = [pair for pair, verdict in found if verdict is Verdict.RIGHT and not pair.right]
    missed = [pair for pair, verdict in found if verdict is not Verdict.RIGHT and pair.right]
    assert len(too_much) <= FALSE_POSITIVES, too_much
    assert len(missed) <= FALSE_NEGATIVES, missed
    theirs = [pair for pair in too_much + missed if by_math_verify(pair) is pair.right]
    assert len(theirs) <= ONLY_MATH_VERIFY_RIGHT, theirs


def test_every_gold_answer_is_readable_and_right_against_itself(pairs: list[Pair]) -> None:
    golds = sorted({pair.gold for pair in pairs})
    assert [gold for gold in golds if not gold_is_readable(gold)] == []
    verdicts = grade_many([rf"\boxed{{{gold}}}" for gold in golds], golds)
    found = list(zip(golds, verdicts, strict=True))
    assert [gold for gold, verdict in found if verdict is not Verdict.RIGHT] == []


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
