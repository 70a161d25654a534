r"""Graders: is this completion's answer the gold one?

`grade` and `grade_many` compare mathematics, for rewards and for evaluation alike; `exact_answer`,
`math_answer` and `math_answer_or_number` are what lm-eval task YAMLs name as `process_results`.
What is read as a completion's answer is said in `answers`, what is not computed in `computable`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from enum import Enum
from typing import Any

from mlflow_scalpel.evaluation.grading.answers import Fallback, answer_of, last_boxed, restored
from mlflow_scalpel.evaluation.grading.computable import is_explosive
from mlflow_scalpel.evaluation.grading.normal_form import normal
from mlflow_scalpel.evaluation.grading.processes import Task, graders
from mlflow_scalpel.evaluation.grading.quick import may_be_read, same

SECONDS_PER_BATCH = 20.0
SECONDS_PER_PAIR = 0.05  # added for each pair of the batch that has to be computed
MOST_REMEMBERED = 50_000  # verdicts on pairs


class Verdict(Enum):
    """The result of grading a completion."""

    RIGHT = "right"
    WRONG = "wrong"
    """Also where the completion states no answer."""
    GOLD_UNREADABLE = "gold unreadable"
    """The gold answer is not mathematics, a number, a choice or a word, so nothing equals it."""
    NOT_GRADED = "not graded"
    """Comparing would take too long, or what is compared is too large to be computed."""

    @property
    def score(self) -> float | None:
        """1 or 0; None where nothing was found out."""
        return {Verdict.RIGHT: 1.0, Verdict.WRONG: 0.0}.get(self)


def grade(completion: str, gold: str, *, fallback: Fallback = "none") -> Verdict:
    """The verdict on one completion; see `grade_many`."""
    return grade_many([completion], [gold], fallback=fallback)[0]


def grade_many(
    completions: Sequence[str],
    golds: Sequence[str],
    *,
    fallback: Fallback = "none",
    seconds: float | None = None,
) -> list[Verdict]:
    r"""The verdict on each completion, against the gold answer at the same place.

    `golds` are answers (`\frac{1}{2}`, `12`, `$x=3$`) or whole solutions with a boxed one. Numbers,
    choices and equal texts are compared here at once; equal pairs are compared once. All else is
    computed in other processes (`graders`) for at most `seconds` together, by default 20 s and
    0.05 s for each such pair; what is not done by then, or takes more than 3 s alone, is NOT_GRADED
    and never WRONG for that, as is what is too large (`computable`). Works in any thread.
    """
    pairs = [
        (answer_of(completion, fallback=fallback), _gold_text(gold))
        for completion, gold in zip(completions, golds, strict=True)
    ]
    found = {pair: _at_once(*pair) for pair in dict.fromkeys(pairs)}
    tasks = {pair: Task(*pair) for pair, verdict in found.items() if verdict is None}
    if seconds is None:
        seconds = SECONDS_PER_BATCH + SECONDS_PER_PAIR * len(tasks)
    graders().run(list(tasks.values()), seconds)
    for pair, task in tasks.items():
        found[pair] = verdict = _VERDICTS[task.found]
        if verdict is Verdict.GOLD_UNREADABLE:
            _remember((None, pair[1]), verdict)
        elif verdict is not Verdict.NOT_GRADED or task.timed_out:
            _remember(pair, verdict)
    return [
        # for every completion: else only the right ones of such a problem would count
        Verdict.GOLD_UNREADABLE if _is_unreadable(pair[1]) else found[pair] or Verdict.NOT_GRADED
        for pair in pairs
    ]


def math_correct(completion: str, gold: str, *, fallback: Fallback = "none") -> bool | None:
    """`grade` as True or False; None where the gold answer is unreadable or nothing was graded."""
    return {Verdict.RIGHT: True, Verdict.WRONG: False}.get(
        grade(completion, gold, fallback=fallback)
    )


def gold_is_readable(gold: str) -> bool:
    """Whether answers can be compared with `gold`; see `golds_are_readable`."""
    return golds_are_readable([gold])[0]


def golds_are_readable(golds: Sequence[str]) -> list[bool]:
    """Whether answers can be compared with each of `golds`.

    Prose and empty texts cannot be read, and neither can LaTeX that math-verify makes nothing of.
    """
    texts = [_gold_text(gold) for gold in golds]
    found = {text: may_be_read(text) for text in dict.fromkeys(texts)}
    tasks = []
    for text, readable in found.items():
        if readable is None:
            before = _remembered((None, text))
            if before is not None:
                found[text] = before is Verdict.RIGHT
            elif is_explosive(text):
                found[text] = True  # equal texts are right
            else:
                tasks.append(Task(None, text))
    graders().run(tasks, SECONDS_PER_BATCH + SECONDS_PER_PAIR * len(tasks))
    for task in tasks:
        found[task.gold] = task.found != "unreadable"
        if task.found != "not graded":
            _remember((None, task.gold), _VERDICTS[task.found])
    return [found[text] is True for text in texts]


def exact_answer(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    r"""lm-eval `process_results`: the row's `answer` as a string, boxed or the whole completion.

    Without a \boxed{...}, "The answer is" and a full stop around the answer do not count.
    """
    boxed = last_boxed(results[0])
    if boxed is None:
        boxed = results[0].strip().removeprefix("The answer is").strip().removesuffix(".").strip()
    return {"exact_match": float(boxed == str(doc["answer"]).strip())}


def math_answer(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """lm-eval `process_results`: `grade` with the row's `answer`; NaN where it has no score."""
    return {"math_verify": math_score(results[0], str(doc["answer"]), "math_verify")}


def math_answer_or_number(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """lm-eval `process_results`: as `math_answer`, or else the completion's last number."""
    name = "math_verify_or_number"
    return {name: math_score(results[0], str(doc["answer"]), name)}


def fallback_of(grader: str) -> Fallback:
    """The fallback of the graders `math_verify` and `math_verify_or_number`."""
    return "last_number" if grader == "math_verify_or_number" else "none"


def math_score(completion: str, gold: str, grader: str) -> float:
    """`grade` as 1 or 0, and NaN where it has no score; `grader` as in `fallback_of`."""
    score = grade(completion, gold, fallback=fallback_of(grader)).score
    return float("nan") if score is None else score


_VERDICTS = {
    "right": Verdict.RIGHT,
    "wrong": Verdict.WRONG,
    "unreadable": Verdict.GOLD_UNREADABLE,
    "not graded": Verdict.NOT_GRADED,
}
_memory: OrderedDict[tuple[str | None, str], Verdict] = OrderedDict()


def _at_once(answer: str | None, gold: str) -> Verdict | None:
    """The verdict that needs no computation; None where there is none."""
    if may_be_read(gold) is False or _is_unreadable(gold):
        return Verdict.GOLD_UNREADABLE
    if answer is None or not answer.strip():
        return Verdict.WRONG
    equal = same(answer, gold)
    if equal is not None:
        return Verdict.RIGHT if equal else Verdict.WRONG
    before = _remembered((answer, gold))
    if before is not None:
        return before
    if is_explosive(normal(answer)) or is_explosive(normal(gold)):
        return Verdict.NOT_GRADED
    return None


def _is_unreadable(gold: str) -> bool:
    return _remembered((None, gold)) is Verdict.GOLD_UNREADABLE


def _gold_text(gold: str) -> str:
    gold = restored(gold)
    boxed = last_boxed(gold)
    return boxed if boxed is not None else gold.strip()


def _remembered(pair: tuple[str | None, str]) -> Verdict | None:
    return _memory.get(pair)


def _remember(pair: tuple[str | None, str], verdict: Verdict) -> None:
    _memory[pair] = verdict
    while len(_memory) > MOST_REMEMBERED:
        _memory.popitem(last=False)
