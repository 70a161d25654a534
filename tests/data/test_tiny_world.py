"""The generated world: right answers, a split by content, solutions that agree with the answer."""

from __future__ import annotations

import math
import random

import pytest

from mlflow_scalpel.data import tiny_world


@pytest.mark.parametrize(("skill", "count"), [("add", 200), ("gcd", 400), ("facts", 100)])
def test_finite_skills_are_whole(skill, count):
    assert len(tiny_world.pool(skill)) == count


def test_arithmetic_is_right():
    for problem in tiny_world.pool("add"):
        assert eval(problem.problem.removesuffix("=?")) == int(problem.answer)
    for problem in tiny_world.pool("gcd"):
        a, b = problem.problem.removeprefix("gcd(").removesuffix(")=?").split(",")
        assert math.gcd(int(a), int(b)) == int(problem.answer)
    for problem in tiny_world.pool("rev"):
        listed = problem.problem.removeprefix("reverse:").split(",")
        assert problem.answer.split(",") == listed[::-1]


def test_training_and_held_out_share_no_problem_and_make_up_all():
    texts = {
        split: {row["problem"] for row in tiny_world.rows(split)} for split in tiny_world.SPLITS
    }
    assert not texts["train"] & texts["heldout"]
    assert texts["train"] | texts["heldout"] == texts["all"]
    assert 0.15 < len(texts["heldout"]) / len(texts["all"]) < 0.25
    with pytest.raises(ValueError, match="no split 'test'"):
        tiny_world.rows("test")


def test_solutions_end_in_the_answer_and_the_teacher_speaks_in_domain_only():
    for row in tiny_world.rows("all"):
        boxed = f"</think>\n<answer>\n\\boxed{{{row['answer']}}}\n</answer>"
        assert row["base_solution"].endswith(boxed)
        taught = row["skill"] in tiny_world.IN_DOMAIN
        assert (row["teacher_solution"] is not None) == taught
        if taught:
            assert row["teacher_solution"].endswith(boxed)
            assert row["teacher_solution"] != row["base_solution"]


def test_wrong_answers_are_off_by_one_and_believed_by_their_working():
    rng = random.Random(0)
    for skill in tiny_world.IN_DOMAIN:
        for problem in tiny_world.pool(skill):
            wrong = tiny_world.off_by_one(problem, rng)
            assert abs(int(wrong.answer) - int(problem.answer)) == 1
            assert wrong.working.endswith(f"={wrong.answer}")
            assert skill != "gcd" or int(wrong.answer) >= 1
