"""What counts as a right answer, and that no answer can hang or stall the grader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest

from mlflow_scalpel.evaluation.grading import (
    Verdict,
    exact_answer,
    gold_is_readable,
    golds_are_readable,
    grade,
    grade_many,
    math_answer,
    math_answer_or_number,
    math_correct,
    processes,
)
from mlflow_scalpel.evaluation.grading.processes import Graders, Task, graders

SLOW = r"\prod_{k=1}^{3000} (k^3 + \sqrt{k+\sqrt{k}})"  # nobody waits for its simplification


@pytest.mark.parametrize(
    ("completion", "gold", "expected"),
    [
        (r"\boxed{4}", "4", True),
        (r"\boxed{ 4 }", "4", True),
        (r"\boxed{5}", "4", False),
        (r"First \boxed{4}, but no: \boxed{5}", "4", False),
        (r"\boxed{0.5}", r"\frac{1}{2}", True),
        (r"\boxed{\frac{2}{4}}", r"$\frac{1}{2}$", True),
        (r"\boxed{1,000}", "1000", True),
        (r"\boxed{-q+p}", "p-q", True),
        (r"\boxed{B}", "A", False),
        (r"\boxed{(3,\frac{\pi}{2})}", r"so $\boxed{\left(3, \frac{\pi}{2}\right)}.$", True),
        ("The answer is 4.", "4", False),
        ("", "4", False),
        (r"\boxed{}", "4", False),
        (r"\boxed{\frac{1}{}", "4", False),
        (r"\boxed{\frac{1}{0}}", "4", False),
        (r"\boxed{4}", "", None),
        (r"\boxed{4}", "there is no answer", None),
        (r"\boxed{4}", "She has 2+2 = <<2+2=4>>4 eggs.\n#### 4", None),
        (r"\boxed{4}", r"(2,\iny)", None),
        (r"\boxed{4}", "9^9^9^9", None),
        ("", "", None),
    ],
)
def test_mathematics(completion: str, gold: str, expected: bool | None) -> None:
    assert math_correct(completion, gold) is expected


def test_what_is_too_large_is_not_graded_but_equal_texts_are_right() -> None:
    tower = r"9^{9^{9^{9}}}"
    started = time.process_time()
    assert grade(rf"\boxed{{{tower}}}", "4") is Verdict.NOT_GRADED
    assert grade(r"\boxed{4}", tower) is Verdict.NOT_GRADED
    assert grade(r"\boxed{9^{9^{9^9}} }.", tower) is Verdict.NOT_GRADED
    assert grade(rf"\boxed{{ {tower}. }}", f"${tower}$") is Verdict.RIGHT
    assert grade(r"\boxed{99999999!}", "99999999!") is Verdict.RIGHT
    assert grade(rf"\boxed{{{'1' * 5000}}}", "1" * 5000) is Verdict.RIGHT
    assert grade("I give up", tower) is Verdict.WRONG
    assert time.process_time() - started < 0.5
    assert gold_is_readable(tower)


@pytest.mark.parametrize("answer", ["2^{2023}-1", "2023!", "10^{99999}", "5!!", "2^{2^{10}}"])
def test_large_numbers_that_people_mean_are_computed(answer: str) -> None:
    assert grade(rf"\boxed{{{answer}+0}}", answer) is Verdict.RIGHT
    assert grade(rf"\boxed{{{answer}+1}}", answer) is Verdict.WRONG


@pytest.mark.parametrize(
    ("gold", "readable"),
    [
        ("12", True),
        (r"\frac{1}{2}", True),
        ("so it is \\boxed{12}.", True),
        ("$x=3$", True),
        ("A", True),
        ("18 dollars", True),
        (r"\text{no solution}", True),
        ("no solution", True),
        ("Evelyn", True),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True),
        ("x=1 or x=2", True),
        ("", False),
        ("   ", False),
        ("?", False),
        ("see above", False),
        ("Natalia sold 48/2 = 24 clips.\n#### 72", False),
        (r"\le(3,\frac{\pi}{2}\right)", False),
    ],
)
def test_gold_answers_that_can_be_read(gold: str, readable: bool) -> None:
    assert gold_is_readable(gold) is readable


def test_unreadable_gold_answers_are_found_in_one_go() -> None:
    golds = ["x+1", "see above", "12", "x+1", r"(2,\iny)"]
    assert golds_are_readable(golds) == [True, False, True, True, False]


def test_a_gold_answer_that_cannot_be_read_is_so_for_every_completion() -> None:
    gold = r"\le(5,\frac{\pi}{2}\right)"
    found = grade_many([rf"\boxed{{{gold}}}", r"\boxed{7}", "nothing"], [gold] * 3)
    assert found == [Verdict.GOLD_UNREADABLE] * 3


def test_the_last_number_counts_only_if_asked_for() -> None:
    text = "She sells 9 eggs for $2 and makes $1,018 a day."
    assert grade(text, "1018") is Verdict.WRONG
    assert grade(text, "1018", fallback="last_number") is Verdict.RIGHT
    assert grade("a half, so 1/2", "0.5", fallback="last_number") is Verdict.RIGHT
    assert grade("it is −4", "4", fallback="last_number") is Verdict.WRONG
    assert grade("no number", "1018", fallback="last_number") is Verdict.WRONG


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
    score = math_answer({"answer": "see above"}, ["it is \\boxed{7}"])["math_verify"]
    assert score != score  # NaN: there is nothing to compare with


@pytest.fixture
def own() -> Iterator[Graders]:
    made = Graders(2)
    yield made
    made.close()


def test_what_can_be_seen_at_once_starts_no_process(own: Graders, monkeypatch) -> None:
    monkeypatch.setattr(processes, "_shared", own)
    texts = ["\\boxed{4}", "<answer>1/2</answer>", "\\boxed{(B)}", "\\boxed{18 dollars}", "no"]
    grade_many(texts * 25, ["4", "0.5", "B", "18", "5"] * 25)
    assert own._processes == []


def test_a_budget_ends_a_batch_and_the_rest_is_not_graded(own: Graders, monkeypatch) -> None:
    monkeypatch.setattr(processes, "_shared", own)
    grade(r"\boxed{x+1}", "1+x")  # the imports
    slow = [rf"\boxed{{{SLOW} + {n}}}" for n in range(64)]
    started = time.monotonic()
    found = grade_many([*slow, r"\boxed{a+b}"], [*["4"] * 64, "b+a"], seconds=2)
    assert time.monotonic() - started < 4
    assert set(found[:64]) == {Verdict.NOT_GRADED}
    # The processes that were killed are replaced.
    assert grade(r"\boxed{a+b+c}", "b+a+c") is Verdict.RIGHT


def test_what_takes_long_alone_is_not_graded_and_not_tried_again(own: Graders, monkeypatch) -> None:
    monkeypatch.setattr(processes, "_shared", own)
    monkeypatch.setattr(processes, "TASK_SECONDS", 1.0)
    text = rf"\boxed{{{SLOW} - 1}}"
    started = time.monotonic()
    assert grade_many([text] * 50, ["4"] * 50) == [Verdict.NOT_GRADED] * 50
    assert time.monotonic() - started < 10
    started = time.monotonic()
    assert grade(text, "4") is Verdict.NOT_GRADED
    assert time.monotonic() - started < 0.1


def test_a_process_that_dies_is_replaced(own: Graders) -> None:
    own.run([Task("x+1", "1+x")], 30)
    (process,) = own._processes
    process.child.kill()
    process.child.wait()
    tasks = [Task("x+2", "2+x"), Task("x+3", "3+y")]
    own.run(tasks, 30)
    assert [task.found for task in tasks] == ["right", "wrong"]


def test_threads_may_grade() -> None:
    found: list[Verdict] = []

    def work(number: int) -> None:
        found.append(grade(rf"\boxed{{x+{number}}}", f"{number}+x"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(700, 706)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Verdict.RIGHT] * 6


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_processes_end_with_their_parent(how: signal.Signals) -> None:
    script = textwrap.dedent(
        rf"""
        from mlflow_scalpel.evaluation.grading import grade
        from mlflow_scalpel.evaluation.grading.processes import graders
        grade(r"\boxed{{x+1}}", "1+x")
        print(graders()._processes[0].child.pid, flush=True)
        grade(r"\boxed{{{SLOW}}}", "4")
        """
    )  # without a guard of its main module, as people's scripts are
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.3)  # it is computing
    parent.send_signal(how)
    parent.wait(20)
    limit = time.monotonic() + processes.TASK_SECONDS + 6
    while _alive(child) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_forked_process_starts_its_own() -> None:
    grade(r"\boxed{u+1}", "1+u")
    parents = {process.child.pid for process in graders()._processes}
    pid = os.fork()
    if pid == 0:
        right = grade(r"\boxed{u+2}", "2+u") is Verdict.RIGHT
        others = {process.child.pid for process in graders()._processes}
        graders().close()
        os._exit(0 if right and not others & parents else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert grade(r"\boxed{u+3}", "3+u") is Verdict.RIGHT
