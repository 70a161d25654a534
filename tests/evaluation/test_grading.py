"""What counts as a right answer, and that no answer can hang the grader."""

from __future__ import annotations

import threading
import time

import pytest

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.evaluation.grading import (
    exact_answer,
    is_explosive,
    last_boxed,
    math_answer,
    math_answer_or_number,
    math_correct,
)


@pytest.mark.parametrize(
    ("completion", "gold", "expected"),
    [
        (r"\boxed{4}", "4", True),
        (r"\boxed{ 4 }", "4", True),
        (r"\boxed{5}", "4", False),
        (r"First \boxed{5}, but no: \boxed{4}", "4", True),
        (r"First \boxed{4}, but no: \boxed{5}", "4", False),
        (r"\boxed{4} and \boxed{5", "4", True),
        (r"\boxed{\boxed{4}}", "4", True),
        (r"\boxed{0.5}", r"\frac{1}{2}", True),
        (r"\boxed{\frac{2}{4}}", r"$\frac{1}{2}$", True),
        (r"\boxed{\frac12}", r"\frac{1}{2}", True),
        (r"\boxed{1,000}", "1000", True),
        (r"\boxed{x=5}", "5", True),
        (r"\boxed{-q+p}", "p-q", True),
        (r"\boxed{\{1,2\}}", r"\{2,1\}", True),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", True),
        (r"\boxed{A}", "A", True),
        (r"\boxed{B}", "A", False),
        (r"\boxed{2\cdot 2^{2022}}", "2^{2023}", True),
        (r"\boxed{(3,\frac{\pi}{2})}", r"so $\boxed{\left(3, \frac{\pi}{2}\right)}.$", True),
        (r"The final answer is $4$.", "4", True),
        (r"The answer: \(\frac{1}{2}\)", "0.5", True),
        ("4", "4", False),
        ("it is $4$", "4", False),
        ("The answer is 4.", "4", False),
        ("", "4", False),
        (r"\boxed{}", "4", False),
        (r"\boxed{\frac{1}{}", "4", False),
        (r"\boxed{\frac{1}{0}}", "4", False),
        (r"\boxed{4}", "", None),
        (r"\boxed{4}", "there is no answer", None),
        (r"\boxed{4}", "9^9^9^9", None),
        ("", "", None),
    ],
)
def test_mathematics(completion: str, gold: str, expected: bool | None) -> None:
    assert math_correct(completion, gold) is expected


@pytest.mark.parametrize(
    "answer",
    [
        "9^9^9",
        "9^{9^{9}}",
        "10^{10^{10}}",
        "9**9**9",
        r"\left(9^9\right)^{9^9}",
        "9^{-9^{9}}",
        "10^{99999999}",
        "99999999!",
        "((9!)!)!",
        r"\binom{99999999}{4999999}",
        "1" * 5000,
        "(" * 900,
        "{" * 900 + "}" * 900,
        "1+" * 3000 + "1",
    ],
)
def test_answers_that_explode_are_wrong_at_once(answer: str) -> None:
    math_correct(r"\boxed{1}", "2+x")  # the imports
    start = time.process_time()
    assert math_correct(rf"\boxed{{{answer}}}", "4") is False
    assert time.process_time() - start < 0.5


def test_what_the_check_does_not_foresee_ends_in_time() -> None:
    start = time.monotonic()
    assert math_correct(r"\boxed{9^{9\cdot 99999999}}", "4") is False
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("answer", ["2^{2023}-1", "2023!", "10^{99999}", "5!!", "2^{2^{10}}"])
def test_large_numbers_that_people_mean_are_computed(answer: str) -> None:
    assert not is_explosive(answer)
    assert math_correct(rf"\boxed{{{answer}+0}}", answer) is True


def test_the_last_number_counts_only_if_asked_for() -> None:
    text = "She sells 9 eggs for $2 and makes $1,018 a day."
    assert math_correct(text, "1018") is False
    assert math_correct(text, "1018", fallback="last_number") is True
    assert math_correct(r"\boxed{3}, not 1018", "1018", fallback="last_number") is False
    assert math_correct("no number", "1018", fallback="last_number") is False


def test_a_text_full_of_open_boxes_is_read_in_time() -> None:
    start = time.process_time()
    assert last_boxed(r"\boxed{" * 50_000) is None
    assert time.process_time() - start < 0.5


def test_escaped_braces_are_no_braces() -> None:
    assert last_boxed(r"\boxed{\{1\}} and \boxed{\{2}") == r"\{2"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>\n3+4=7\n</think>\n<answer>\n\\boxed{7}\n</answer>", 1.0),
        ("The answer is \\boxed{7}.", 1.0),
        ("The answer is 7.", 1.0),
        (" 7 ", 1.0),
        ("7.0", 0.0),
        ("\\boxed{8} 7", 0.0),
        ("<think>\n3+4=7", 0.0),
        ("", 0.0),
    ],
)
def test_exact_answer(completion: str, expected: float) -> None:
    assert exact_answer({"answer": "7"}, [completion]) == {"exact_match": expected}


def test_lm_eval_scores_of_mathematics() -> None:
    assert math_answer({"answer": "7"}, ["it is 7"]) == {"math_verify": 0.0}
    assert math_answer_or_number({"answer": "7"}, ["it is 7"]) == {"math_verify_or_number": 1.0}
    score = math_answer({"answer": "see above"}, ["it is 7"])["math_verify"]
    assert score != score  # NaN: there is nothing to compare with


def test_off_the_main_thread_the_error_says_so() -> None:
    caught: list[Exception] = []

    def grade() -> None:
        try:
            math_correct(r"\boxed{x+17}", "17+x+0")
        except ScalpelError as error:
            caught.append(error)

    thread = threading.Thread(target=grade)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])
