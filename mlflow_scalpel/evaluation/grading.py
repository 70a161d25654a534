r"""Graders: is this completion's answer the gold one?

`math_correct` compares mathematics, for rewards and for evaluation alike; `exact_answer`,
`math_answer` and `math_answer_or_number` are what lm-eval task YAMLs name as `process_results`.
"""

from __future__ import annotations

import re
import threading
from functools import lru_cache
from typing import Any, Literal

from mlflow_scalpel.errors import ScalpelError

Fallback = Literal["none", "last_number"]

SECONDS = 2  # for one parsing or comparison; the usual one takes 3 ms
LONGEST_ANSWER = 500  # characters
DEEPEST_NESTING = 40  # brackets
LARGEST_EXPONENT = 100_000
LARGEST_FACTORIAL = 10_000

_BOX = r"\boxed{"
_BRACE = re.compile(r"\\boxed\{|\\[\\{}]|[{}]")  # an escaped brace is no brace
_INTEGER = re.compile(r"[+-]?\d{1,30}")
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s+[A-Za-z]{2,}")


def math_correct(completion: str, gold: str, *, fallback: Fallback = "none") -> bool | None:
    r"""Whether the answer of `completion` is the mathematics of `gold`; None if `gold` is none.

    The answer is the content of the last \boxed{...}. Where there is none, it is LaTeX that the
    words "answer" or "final answer is" lead to; with `fallback="last_number"` it is otherwise the
    last number of the text. A bare number in a text is no answer without that. `gold` is an answer
    (`\frac{1}{2}`, `12`, `$x=3$`) or a whole solution with a boxed one.

    Answers that no one can mean and that would hang a computer algebra system, such as 9^9^9, are
    wrong without being computed; whatever else takes longer than 2 s is wrong too. The time limit
    uses a signal: raises ScalpelError off the main thread.
    """
    answer = _answer_of(completion)
    if answer is None and fallback == "last_number":
        answer = _last_number(completion)
    return _equal(answer, gold.strip())


def gold_is_readable(gold: str) -> bool:
    """Whether `gold` is mathematics that answers can be compared with."""
    return bool(_gold_values(gold.strip()))


def last_boxed(text: str) -> str | None:
    r"""The content of the last whole \boxed{...} of `text`, braces balanced; None without one."""
    best: tuple[int, int] | None = None
    open_braces: list[int | None] = []  # where a box's content starts; None for any other brace
    for found in _BRACE.finditer(text):
        if found.group() == _BOX:
            open_braces.append(found.end())
        elif found.group() == "{":
            open_braces.append(None)
        elif found.group() == "}" and open_braces:
            start = open_braces.pop()
            if start is not None and (best is None or start > best[0]):
                best = (start, found.start())
    return None if best is None else text[best[0] : best[1]].strip()


def is_explosive(text: str) -> bool:
    """Whether computing `text` may take forever: towers of powers, huge factorials, long texts."""
    if len(text) > LONGEST_ANSWER or _nesting(text) > DEEPEST_NESTING:
        return True
    bare = re.sub(r"\\(?:left|right|big|Big|,|;|!|:| )|[\s{}()\[\]]|\*(?=\*)", "", text)
    bare = bare.replace("**", "^").replace("*", "^" if "**" in text else "*")
    for tower in re.findall(r"\^[+-]?(\d+(?:\^[+-]?\d+)*)", bare):
        if _tower([int(number) for number in re.findall(r"\d+", tower)]) > LARGEST_EXPONENT:
            return True
    for number, marks in re.findall(r"(\d+)(!+)", bare):
        # math-verify reads 7!! as (7!)!
        if int(number) > (LARGEST_FACTORIAL if len(marks) == 1 else 7):
            return True
    large = str(LARGEST_FACTORIAL * 10)
    return "binom" in bare and re.search(rf"\d{{{len(large)},}}", bare) is not None


def exact_answer(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    r"""lm-eval `process_results`: the row's `answer` as a string, boxed or the whole completion.

    Without a \boxed{...}, "The answer is" and a full stop around the answer do not count.
    """
    boxed = last_boxed(results[0])
    if boxed is None:
        boxed = results[0].strip().removeprefix("The answer is").strip().removesuffix(".").strip()
    return {"exact_match": float(boxed == str(doc["answer"]).strip())}


def math_answer(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """lm-eval `process_results`: `math_correct` with the row's `answer`; NaN if that is none."""
    return {"math_verify": math_score(results[0], str(doc["answer"]), "math_verify")}


def math_answer_or_number(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """lm-eval `process_results`: as `math_answer`, or else the completion's last number."""
    name = "math_verify_or_number"
    return {name: math_score(results[0], str(doc["answer"]), name)}


def math_score(completion: str, gold: str, grader: str) -> float:
    """`math_correct` as 1 or 0, and NaN where `gold` is no mathematics.

    `grader` is `math_verify`, or `math_verify_or_number` for the last number as a fallback.
    """
    fallback: Fallback = "last_number" if grader == "math_verify_or_number" else "none"
    correct = math_correct(completion, gold, fallback=fallback)
    return float("nan") if correct is None else float(correct)


def _answer_of(completion: str) -> str | None:
    boxed = last_boxed(completion)
    if boxed is not None:
        return boxed
    # LaTeX between dollars or brackets, within 50 characters of the last "answer"
    place = completion.lower().rfind("answer")
    if place < 0:
        return None
    tail = completion[place : place + LONGEST_ANSWER]
    found = re.match(
        r"(?is)answer.{0,50}?(?:\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\])", tail
    )
    if found is None:
        return None
    return next(group for group in found.groups() if group is not None).strip()


def _last_number(text: str) -> str | None:
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "").replace("$", "") if found else None


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest


def _tower(numbers: list[int]) -> float:
    """numbers[0] ** numbers[1] ** ..., or infinity beyond what may be computed."""
    value: float = 1
    for number in reversed(numbers):
        if number > 1 and value > 30:
            return float("inf")
        value = number**value
    return value


@lru_cache(maxsize=50_000)
def _equal(answer: str | None, gold: str) -> bool | None:
    gold_values = _gold_values(gold)
    if not gold_values:
        return None
    if not answer:
        return False
    boxed_gold = _gold_text(gold)
    if _squeeze(answer) == _squeeze(boxed_gold):
        return True
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(boxed_gold):
        return int(answer) == int(boxed_gold)
    if is_explosive(answer):
        return False
    from math_verify import verify

    values = _parse(answer)
    return bool(values) and verify(list(gold_values), values, timeout_seconds=SECONDS)


@lru_cache(maxsize=50_000)
def _gold_values(gold: str) -> tuple[Any, ...]:
    text = _gold_text(gold)
    if not text or is_explosive(text) or _PROSE.search(text):
        return ()
    return tuple(_parse(text))


def _gold_text(gold: str) -> str:
    boxed = last_boxed(gold)
    return boxed if boxed is not None else gold.strip().strip("$").strip()


def _parse(text: str) -> list[Any]:
    """The mathematics of LaTeX without delimiters; empty if it is none."""
    if threading.current_thread() is not threading.main_thread():
        raise ScalpelError(
            "mathematics can be graded only in the main thread, because the time limit uses a "
            "signal; call the grader from there, or from a process of its own"
        )
    from math_verify import LatexExtractionConfig, parse

    return parse(
        f"{_BOX}{text}}}",
        [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)],
        parsing_timeout=SECONDS,
    )


def _squeeze(text: str) -> str:
    return re.sub(r"\s", "", text)
