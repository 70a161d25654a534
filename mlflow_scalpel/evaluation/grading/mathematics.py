r"""Whether two answers are the same mathematics, by math-verify and by checks of its verdicts.

This runs in processes that can be killed (`graders`): what it computes may take long. Limits of
math-verify 0.9 that are mended here: numbers are compared exactly where both are exact (it takes
1/2^99 for 1/2^98), expressions are also compared at random points, an answer that contradicts
itself (`6 = 7`) is not its last side, and a set in braces is not an ordered pair.
"""

from __future__ import annotations

import random
import re
from fractions import Fraction
from typing import Any

import sympy
from latex2sympy2_extended.sets import FiniteSet
from math_verify import LatexExtractionConfig, parse, verify
from sympy.core.relational import Relational

from mlflow_scalpel.evaluation.grading.normal_form import choice, normal, squeezed
from mlflow_scalpel.evaluation.grading.quick import close, same

DIGITS = 60  # decimal digits of a numerical comparison
POINTS = 6  # random points at which expressions are compared
_BOXED = [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]
_SOLVED = re.compile(
    r"^[A-Za-z]\s*(?:<|>|\\leq|\\geq|\\neq)\s*[^A-Za-z<>=]*(?:\\[a-z]+[^A-Za-z<>=]*)*$"
    r"|^[^A-Za-z<>=]+(?:<|\\leq)\s*[A-Za-z]\s*(?:<|\\leq)\s*[^A-Za-z<>=]+(?:\\infty)?$"
)


def readable(gold: str) -> bool:
    """Whether math-verify reads mathematics in `gold`."""
    return bool(_readings(gold))


def equal(answer: str, gold: str) -> bool | None:
    """Whether `answer` is the mathematics of `gold`; None where `gold` cannot be read."""
    answer, gold = _in_radians(answer, gold), _in_radians(gold, answer)
    golds = _readings(_as_tuple(gold, answer))
    if not golds:
        return None
    answers = _readings(_as_tuple(answer, gold))
    if not answers:
        return False
    exact = _decided(answers[0], golds[0])
    if exact is not None:
        return exact
    if _contradicts(answers[0]) or _braces_differ(answer, gold):
        return False
    for left in answers:
        for right in golds:
            if _verified(left, right, answer):
                return not _apart(left, right)
    return any(_agree(left, right) for left in answers for right in golds) or _parts(answer, gold)


def _readings(text: str) -> list[Any]:
    """The expressions that math-verify reads in the text as it stands and in its normal form."""
    spelled = _prepared(text)
    found = _read(spelled)
    raw = _read(text) if squeezed(spelled) != squeezed(text) else None
    return [value for value in (found, raw) if value is not None]


def _prepared(text: str) -> str:
    spelled = normal(text)
    letter = choice(spelled)
    if letter is not None and letter[1]:
        spelled = letter[1]
    spelled = re.sub(r"^[A-Za-z]\s*\\in(?![a-z])\s*", "", spelled)
    foreign = re.fullmatch(r"([\[\]])([^\[\],]+),([^\[\],]+)([\[\]])", spelled)
    if foreign is not None and (foreign[1], foreign[4]) != ("[", "]"):
        opening, closing = "(" if foreign[1] == "]" else "[", ")" if foreign[4] == "[" else "]"
        spelled = f"{opening}{foreign[2]},{foreign[3]}{closing}"
    spelled = re.sub(r"\\text\{\s*(,?\s*(?:and|or))\s*\}", r" \1 ", spelled)
    spelled = re.sub(
        r"(?<![\\A-Za-z])(sqrt|sin|cos|tan|log|ln|exp|pi)(?![A-Za-z])", r"\\\1 ", spelled
    )
    # the real root of a negative number, where there is one
    spelled = re.sub(r"\\sqrt\s*\[([3579])\]\s*\{\s*-\s*(\w+)\s*\}", r"(-\\sqrt[\1]{\2})", spelled)
    spelled = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", spelled)
    spelled = re.sub(r"\\text\{\s*([A-Za-z0-9])\s*\}", r"\1", spelled)
    return re.sub(r"\\mathrm\{([a-z])\}", r"\1", spelled)


def _read(text: str) -> Any | None:
    values = parse(rf"\boxed{{{text}}}", _BOXED, parsing_timeout=None)
    return next((value for value in values if not isinstance(value, str)), None)


def _verified(left: Any, right: Any, answer: str) -> bool:
    if verify([right], [left], timeout_seconds=None):
        return True
    # An inequality that is solved is the interval; one that is not would repeat the problem.
    solved = isinstance(right, sympy.Set) and _SOLVED.match(normal(answer))
    return bool(
        solved and verify([right], [left], allow_set_relation_comp=True, timeout_seconds=None)
    )


def _decided(left: Any, right: Any) -> bool | None:
    """Equality of two exact numbers or expressions; None where they are something else."""
    if _is_exact(left) and _is_exact(right):
        return _numbers_equal(left, right)
    if not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)):
        return None
    values = [_imaginary(value) for value in (left, right)]
    if all(_is_exact(value) for value in values):
        return _numbers_equal(*values)
    if _has_i(left) != _has_i(right) and sympy.expand(_plain(values[0]) - _plain(values[1])) == 0:
        return True
    return _compared_at_points(left, right)  # much faster than simplifying their difference


def _is_exact(value: Any) -> bool:
    return (
        isinstance(value, sympy.Expr)
        and not isinstance(value, sympy.MatrixBase)
        and not value.free_symbols
        and not value.has(sympy.Float, sympy.UnevaluatedExpr, sympy.nan, sympy.zoo, sympy.oo)
        and not value.atoms(sympy.core.function.AppliedUndef)
        and value.is_number is True
    )


def _numbers_equal(left: Any, right: Any) -> bool | None:
    exact = [value.doit() for value in (left, right)]
    if all(isinstance(value, sympy.Rational) for value in exact):
        return bool(exact[0] == exact[1])
    values = [sympy.N(value, DIGITS) for value in exact]
    if not all((value.is_number and value.is_comparable) or value.is_complex for value in values):
        return None
    gap, size = abs(values[0] - values[1]), max(abs(values[0]), abs(values[1]))
    try:
        return bool(gap <= size * sympy.Float(10) ** (10 - DIGITS) or gap < sympy.Float(10) ** -50)
    except TypeError:
        return None


def _apart(left: Any, right: Any) -> bool:
    """Whether two values that math-verify takes for equal are surely not."""
    left, right = _unwrapped(left), _unwrapped(right)
    if _is_exact(left) and _is_exact(right):
        return _numbers_equal(left, right) is False
    kinds = (sympy.Tuple, sympy.FiniteSet, FiniteSet)
    if isinstance(left, kinds) and isinstance(right, kinds) and len(left.args) == len(right.args):
        ones, others = list(left.args), list(right.args)
        if all(_is_exact(value) for value in ones + others):
            return any(all(_numbers_equal(a, b) is False for b in others) for a in ones)
    if isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr):
        return _compared_at_points(left, right) is False
    return False


def _agree(left: Any, right: Any) -> bool:
    """Whether two expressions that math-verify takes for different are surely equal."""
    if isinstance(left, sympy.Eq) and isinstance(right, sympy.Eq):
        return _proportional(left, right)
    left, right = _unwrapped(left), _unwrapped(right)
    if not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)):
        return False
    if _close_complex(_imaginary(left), _imaginary(right)):
        return True
    return bool(left.free_symbols) and _compared_at_points(left, right) is True


def _proportional(left: sympy.Eq, right: sympy.Eq) -> bool:
    """Whether two equations are one multiplied by a number, and `right` is not a solution."""
    if isinstance(right.lhs, sympy.Symbol) and right.lhs not in right.rhs.free_symbols:
        return False
    sides = [side for equation in (left, right) for side in equation.args]
    if not all(isinstance(side, sympy.Expr) for side in sides):
        return False
    one, other = (equation.lhs - equation.rhs for equation in (left, right))
    symbols = sorted(one.free_symbols, key=str)
    if not symbols or set(symbols) != other.free_symbols:
        return False
    at = {symbol: sympy.Rational(331 + 17 * place, 113) for place, symbol in enumerate(symbols)}
    there = [value.subs(at) for value in (one, other)]
    if not all(_is_exact(value) and value.is_zero is False for value in there):
        return False
    return _compared_at_points(one * there[1], other * there[0]) is True


def _close_complex(left: Any, right: Any) -> bool:
    """Whether two complex numbers, decimals among them, agree as decimals do (`quick.close`)."""
    if not (left.has(sympy.Float) or right.has(sympy.Float)) or not left.has(sympy.I):
        return False
    if left.free_symbols or right.free_symbols:
        return False
    parts = [sympy.N(value, 30).as_real_imag() for value in (left, right)]
    if not all(part.is_Float or part.is_Rational for pair in parts for part in pair):
        return False
    return all(close(Fraction(str(a)), Fraction(str(b)), True) for a, b in zip(*parts, strict=True))


def _plain(value: Any) -> Any:
    """An expression whose symbols are known by their names only; beside an i they are complex."""
    return value.subs({symbol: sympy.Symbol(symbol.name) for symbol in value.free_symbols})


def _has_i(value: Any) -> bool:
    return any(symbol.name == "i" for symbol in value.free_symbols)


def _imaginary(value: Any) -> Any:
    """An expression with its symbol i as the imaginary unit."""
    return value.subs({s: sympy.I for s in value.free_symbols if s.name == "i"})


def _unwrapped(value: Any) -> Any:
    """The right side of an assignment to a name."""
    if isinstance(value, sympy.Eq) and isinstance(value.lhs, sympy.Symbol):
        return value.rhs
    return value


def _compared_at_points(left: Any, right: Any) -> bool | None:
    """Equality at random points, negative ones too; None where too few can be computed."""
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    if not 0 < len(symbols) <= 6:
        return None
    alone = left.free_symbols != right.free_symbols
    if alone and any(_is_word(value) for value in (left, right)):
        return None
    if any(e.has(sympy.Float, sympy.Integral, sympy.Derivative, sympy.Sum, sympy.Limit,
                 sympy.UnevaluatedExpr) or e.atoms(sympy.core.function.AppliedUndef)
           for e in (left, right)):  # fmt: skip
        return None
    draw = random.Random(0)
    alike = 0
    for attempt in range(POINTS):
        span = 3 if attempt % 2 else -3  # all of one sign: roots of ratios keep their branch
        at = {
            symbol: sympy.Rational(draw.randint(1, 997), 331) * (1 if span > 0 else -1)
            for symbol in symbols
        }
        values = [sympy.N(e.subs(at).doit(), 40) for e in (left, right)]
        if not all(value.is_number and value.is_finite and value.is_real for value in values):
            continue
        gap, size = abs(values[0] - values[1]), max(abs(values[0]), abs(values[1]))
        if gap > size * sympy.Float(10) ** -25 and gap > sympy.Float(10) ** -35:
            return False
        alike += 1
    return True if alike >= POINTS // 2 and not alone else None


def _is_word(value: Any) -> bool:
    """Whether an expression may be a word or a unit, which math-verify compares by its letters."""
    factors = value.args if isinstance(value, sympy.Mul) else (value,)
    symbols = [f for f in factors if isinstance(f, sympy.Symbol) or f == sympy.E]
    return bool(symbols) and all(f in symbols or f.is_number for f in factors)


def _contradicts(value: Any) -> bool:
    """Whether an answer is an equation between numbers that is false."""
    sides = [value] if isinstance(value, sympy.Eq) else list(getattr(value, "args", ()))
    if not sides or not all(isinstance(side, sympy.Eq) for side in sides):
        return False
    return any(
        _is_exact(side.lhs) and _is_exact(side.rhs) and _numbers_equal(side.lhs, side.rhs) is False
        for side in sides
        if not (isinstance(value, Relational) is False and _has_symbols(value))
    )


def _has_symbols(value: Any) -> bool:
    return bool(getattr(value, "free_symbols", ()))


def _braces_differ(answer: str, gold: str) -> bool:
    r"""Whether one is a set in braces and the other an ordered tuple."""
    opening = {squeezed(normal(text))[:2] for text in (answer, gold)}
    return r"\{" in opening and any(text[:1] == "(" for text in opening)


def _as_tuple(text: str, other: str) -> str:
    """A bare list as the ordered tuple that the other one is."""
    spelled = normal(text)
    bare = "," in spelled and not re.search(r"[()\[\]]|\\[{}]", spelled)
    return f"({spelled})" if bare and normal(other)[:1] == "(" else text


def _in_radians(text: str, other: str) -> str:
    """Degrees as radians where the other one is a multiple of pi, without degrees."""
    degrees = normal(text).removesuffix(r"^\circ")
    if degrees == normal(text) or r"^\circ" in normal(other) or r"\pi" not in normal(other):
        return text
    return rf"\frac{{{degrees}\pi}}{{180}}"


def _parts(answer: str, gold: str) -> bool:
    """Whether lists agree part by part by the quick rules, as with units or words in them."""
    lists = [
        [part for part in re.split(r"\s*(?:,|;|\band\b|\bor\b)\s*", _prepared(text)) if part]
        for text in (answer, gold)
    ]
    if len(lists[0]) != len(lists[1]) or len(lists[0]) < 2:
        return False
    if any(bracket in part for parts in lists for part in parts for bracket in "()[]"):
        return False
    left = list(lists[1])
    for part in lists[0]:
        match = next((other for other in left if same(part, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True
