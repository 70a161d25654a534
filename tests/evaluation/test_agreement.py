"""How often grading disagrees with people: counts that may only fall.

`graded_pairs.tsv` holds kind, verdict, gold answer and completion (⏎ is a line break). Its verdicts
are by mathematical truth, as a teacher who knows the gold answer and the usual conventions would
give them, and were not made by running anything; the kinds follow public reports on graders (the
issues of Math-Verify, open-r1, lm-evaluation-harness, Qwen2.5-Math) and the answers of MATH.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import pytest

from mlflow_scalpel.evaluation.grading import Verdict, gold_is_readable, grade_many

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
