r"""A small world that a model of a million parameters can learn in a minute.

Four skills. In-domain, which post-training sees: sums and differences of two digits (`add`) and
greatest common divisors (`gcd`), both reasoning-gym's. Out-of-domain, which it never sees: lists of
words to reverse (`rev`, reasoning-gym's words) and a table of invented facts (`facts`).

A problem has two worked solutions that end in the same answer: `base_solution`, in the words that
the base was pre-trained to use, and `teacher_solution`, longer and in another style, which SFT
learns from. A fifth of the problems of each skill is held out, chosen by their content.

    problem           3+4=?
    base_solution     <think>\n3+4=7\n</think>\n<answer>\n\boxed{7}\n</answer>
    teacher_solution  <think>\nOkay, I need to find 3+4. I start at 3 ... </think> ...
"""

from __future__ import annotations

import functools
import hashlib
import random
from dataclasses import asdict, dataclass, replace
from typing import Any

SKILLS = ("add", "gcd", "rev", "facts")
IN_DOMAIN = ("add", "gcd")
SPLITS = ("train", "heldout", "all")


@dataclass(frozen=True)
class Problem:
    """One problem with its answer and what a solution in either style says."""

    skill: str
    problem: str
    answer: str
    working: str
    """The base's one line of working, which ends in the answer."""
    explanation: str | None
    """The teacher's working; None out of domain, where the teacher says nothing."""

    @property
    def base_solution(self) -> str:
        return _blocks(self.working, self.answer)

    @property
    def teacher_solution(self) -> str | None:
        return None if self.explanation is None else _blocks(self.explanation, self.answer)


def rows(split: str) -> list[dict[str, Any]]:
    """The problems of a split (train, heldout or all) as rows; raises ValueError for another."""
    if split not in SPLITS:
        raise ValueError(f"tiny_world has no split {split!r}; use one of {', '.join(SPLITS)}")
    return [
        {
            **asdict(problem),
            "base_solution": problem.base_solution,
            "teacher_solution": problem.teacher_solution,
        }
        for skill in SKILLS
        for problem in pool(skill)
        if split == "all" or is_held_out(problem) == (split == "heldout")
    ]


def is_held_out(problem: Problem) -> bool:
    """Whether the problem is kept from post-training: a fifth, by content, whatever the order."""
    return hashlib.sha256(problem.problem.encode()).digest()[0] % 5 == 0


@functools.cache
def pool(skill: str) -> list[Problem]:
    """Every problem of a finite skill, or 2,000 of an open one, in a fixed order."""
    made = {"add": _sums, "gcd": _divisors, "rev": _reversals, "facts": _facts}[skill]()
    return sorted({problem.problem: problem for problem in made}.values(), key=lambda p: p.problem)


def off_by_one(problem: Problem, rng: random.Random) -> Problem:
    """The in-domain problem with a wrong answer, on which working and answer agree."""
    right = int(problem.answer)
    wrong = right + rng.choice([-1, 1])
    if problem.skill == "gcd" and wrong < 1:
        wrong = right + 1
    working = problem.working.removesuffix(problem.answer) + str(wrong)
    return replace(problem, answer=str(wrong), working=working)


def in_base_style(problem: Problem, rng: random.Random) -> str:
    """An answer as the base gives it: worked half of the time, boxed, or bare."""
    draw = rng.random()
    if draw < 0.5:
        return problem.base_solution
    return f"The answer is \\boxed{{{problem.answer}}}." if draw < 0.8 else problem.answer


def _blocks(working: str, answer: str) -> str:
    return f"<think>\n{working}\n</think>\n<answer>\n\\boxed{{{answer}}}\n</answer>"


def _gym(name: str, size: int, **settings: Any) -> Any:
    import reasoning_gym  # a second to import, and only the problems need it

    return reasoning_gym.create_dataset(name, seed=3, size=size, **settings)


def _sums() -> list[Problem]:
    items = _gym("chain_sum", 4000, min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    problems = []
    for item in items:
        left, sign, right = item["metadata"]["expression"].split()
        result = item["answer"]
        way, back = ("up", "-") if sign == "+" else ("down", "+")
        problems.append(
            Problem(
                skill="add",
                problem=f"{left}{sign}{right}=?",
                answer=result,
                working=f"{left}{sign}{right}={result}",
                explanation=f"Okay, I need to find {left}{sign}{right}. I start at {left} and go "
                f"{way} by {right}. That gives {result}. "
                f"Let me check: {result}{back}{right}={left}. Good.",
            )
        )
    return problems


def _divisors() -> list[Problem]:
    items = _gym("gcd", 8000, min_numbers=2, max_numbers=2, min_value=1, max_value=20)
    problems = []
    for item in items:
        a, b = item["metadata"]["numbers"]
        result = item["answer"]
        problems.append(
            Problem(
                skill="gcd",
                problem=f"gcd({a},{b})=?",
                answer=result,
                working=f"gcd({a},{b})={result}",
                explanation=f"Okay, I need the gcd of {a} and {b}. {a} has {_divisors_of(a)}. "
                f"{b} has {_divisors_of(b)}. The largest in both is {result}. Good.",
            )
        )
    return problems


def _divisors_of(number: int) -> str:
    return ",".join(str(n) for n in range(1, number + 1) if number % n == 0)


@functools.cache
def _words() -> list[str]:
    """40 short words of reasoning-gym's."""
    items = _gym(
        "word_sorting", 600, min_words=4, max_words=4, min_word_length=3, max_word_length=5
    )
    words = {
        word.lower(): None
        for item in items
        for word in item["metadata"]["original_words"]
        if word.isalpha()
    }
    return list(words)[:40]


def _reversals() -> list[Problem]:
    rng = random.Random(77)
    problems = []
    for _ in range(2000):
        words = rng.sample(_words(), rng.choice([3, 4]))
        listed = ",".join(words)
        problems.append(
            Problem("rev", f"reverse:{listed}", ",".join(reversed(words)), listed, None)
        )
    return problems


RELATIONS = {
    "color": "red blue green black white pink brown grey gold violet".split(),
    "city": "Paris Rome Oslo Lima Cairo Tokyo Delhi Quito Riga Bern".split(),
    "job": "baker pilot nurse judge miner tailor singer farmer painter clerk".split(),
    "pet": "cat dog horse snake parrot rabbit mouse goat fish turtle".split(),
}


def _facts() -> list[Problem]:
    rng = random.Random(11)
    syllables = "ta vo ri me lu ko ze pi sha do nu fe".split()
    names: dict[str, None] = {}
    while len(names) < 25:
        names["".join(rng.choice(syllables) for _ in range(3)).capitalize()] = None
    problems = []
    for name in names:
        for relation, values in RELATIONS.items():
            value = rng.choice(values)
            question = f"{relation} of {name}"
            problems.append(Problem("facts", f"{question}?", value, f"{question}:{value}", None))
    return problems
