r"""Verdicts that need no computer algebra: equal texts, numbers with units, choices, words, bases.

All texts here are answers without delimiters, as `answers.answer_of` gives them.
"""

from __future__ import annotations

import re
from fractions import Fraction

from mlflow_scalpel.evaluation.grading.computable import LONGEST
from mlflow_scalpel.evaluation.grading.normal_form import (
    Quantity,
    based,
    choice,
    normal,
    quantity,
    squeezed,
    words,
)
from mlflow_scalpel.evaluation.grading.units import Unit, conflict

ROUNDING = Fraction(1, 2_000_000)  # math-verify's: a decimal is right to 6 places
RELATIVE = Fraction(1, 500)  # and no further off than this share, or 1e-7 were 2e-7

_NOTHING = {
    "no solution", "no solutions", "no real solution", "no real solutions", "none", "empty set",
    "the empty set", "no such number exists", "no real roots", "no roots", "null set",
}  # fmt: skip
_UNDEFINED = {"dne", "does not exist", "undefined", "not defined", "doesn't exist"}
_ALL_REALS = {"all real numbers", "all reals", "real numbers", "all real x"}
_PHRASES = _NOTHING | _UNDEFINED | _ALL_REALS | {
    "infinitely many", "infinitely many solutions", "infinite solutions", "not possible",
    "none of the above", "all of the above", "cannot be determined", "no limit",
}  # fmt: skip
_NUMBERS = dict(zip(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty".split(), range(21), strict=True))  # fmt: skip

_NAME = (
    r"(?:[A-Za-z](?:_\{?\w+\}?)?'*(?:\([a-z](?:,\s*[a-z])*\))?"
    r"|\\text\{[^{}=]*\}|\\[a-z]+(?:\([a-z]\))?)"
)
_ASSIGNED = re.compile(rf"^({_NAME})\s*(?:=|\\approx)\s*([^=<>]+)$")
_TURNED = re.compile(rf"^([^=<>A-Za-z]+)\s*=\s*({_NAME})$")
_MEMBER = re.compile(r"^[A-Za-z]\s*\\in(?![a-z])\s*")
_TIME = re.compile(r"(\d{1,2}):(\d{2})\s*(?:\\text\{\s*)?([ap]\.?m\.?)?(?:\s*\})?$", re.IGNORECASE)
_RATIO = re.compile(r"(\d+(?:\.\d+)?)\s*:\s*(\d+(?:\.\d+)?)$")
_AND = re.compile(r"\\text\s*\{\s*(?:,?\s*and)\s*\}|\band\b|,|;")
_PART = re.compile(
    r"\s*([\d.]+(?:\s*\\frac\{\d+\}\{\d+\})?)\s*((?:\\text\s*\{[^{}\d]*\}|[A-Za-z]+)(?:\^\\circ)?)\s*"
)
_LETTER_UNIT = re.compile(r"([\d.,]+)\s*([A-Za-z])((?:\s*\^\s*\{?\d\}?)?)$")
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s+[A-Za-z]{2,}")
_CONNECTED = re.compile(r"\b(?:and|or)\b")


def same(answer: str, gold: str) -> bool | None:
    """Whether two answers are the same; None where that has to be computed."""
    one, other = _core(normal(answer)), _core(normal(gold))
    one, other = _sides(one, other)
    if squeezed(one) == squeezed(other) and squeezed(one):
        return True
    if max(len(one), len(other)) > LONGEST:
        return None
    if r"\ldots" in one + other:
        return False  # sequences that go on are compared as texts
    for compare in (_bases, _clock, _choices, _wordings, _amounts):
        verdict = compare(one, other)
        if verdict is not None:
            return verdict
    return None


def may_be_read(gold: str) -> bool | None:
    """Whether `gold` is an answer that can be compared with; None where parsing has to say."""
    text = normal(gold)
    if not re.search(r"[A-Za-z\d]", text):
        return False
    if len(text) > LONGEST:
        return False if _PROSE.search(text) else None
    if (
        r"\ldots" in text
        or _value(text) is not None
        or based(text)
        or choice(text)
        or _compound(text)
    ):
        return True
    spoken = words(text)
    if spoken is not None and ("\\text" in text or " " not in spoken or spoken in _PHRASES):
        return True
    outside = re.sub(r"\\text\s*\{[^{}]*\}|\\(?:begin|end)\{[a-z]*\}", " ", text)
    if _PROSE.search(_CONNECTED.sub(",", outside)):
        return False
    return None


def _core(text: str) -> str:
    turned = _TURNED.match(text)
    if turned is not None:
        text = f"{turned[2]} = {turned[1]}"
    return _MEMBER.sub("", text)


def _sides(one: str, other: str) -> tuple[str, str]:
    """Without "x =" where only one has it, or both have the same."""
    left, right = _ASSIGNED.match(one), _ASSIGNED.match(other)
    if left is None and right is None:
        return one, other
    if left is not None and right is not None and squeezed(left[1]) != squeezed(right[1]):
        return one, other
    if (left is None and ("=" in one or words(one))) or (right is None and "=" in other):
        return one, other
    return (left[2] if left else one).strip(), (right[2] if right else other).strip()


def _bases(one: str, other: str) -> bool | None:
    left, right = based(one), based(other)
    if left is not None and right is not None:
        return int(*left) == int(*right)
    if left is None and right is None:
        return None
    digits = (left or right or ("", 0))[0]
    plain = squeezed(other if left is not None else one)
    return digits.lstrip("0") == plain.lstrip("0") if re.fullmatch(r"\w+", plain) else None


def _clock(one: str, other: str) -> bool | None:
    left, right = _TIME.match(one), _TIME.match(other)
    if left is not None and right is not None:
        halves = [(m[3] or "").lower().replace(".", "") for m in (left, right)]
        if all(halves) and halves[0] != halves[1]:
            return False
        return (int(left[1]), left[2]) == (int(right[1]), right[2])
    left, right = _RATIO.match(one), _RATIO.match(other)
    if left is None or right is None:
        return None
    return Fraction(left[1]) * Fraction(right[2]) == Fraction(left[2]) * Fraction(right[1])


def _choices(one: str, other: str) -> bool | None:
    """`(A) 15` against `A`, `15` or `(A) 15`."""
    left, right = choice(one), choice(other)
    if left is None and right is None:
        return None
    if left is not None and right is not None:
        return left[0] == right[0]
    letter = left or right
    assert letter is not None
    plain = other if left is not None else one
    return same(letter[1], plain) if letter[1] else None


def _wordings(one: str, other: str) -> bool | None:
    left, right = words(one), words(other)
    for group in (_NOTHING | {""}, _UNDEFINED, _ALL_REALS):
        inside = [_empty(text, spoken, group) for text, spoken in ((one, left), (other, right))]
        if all(inside):
            return True
    if left is not None and right is not None:
        plain = [re.sub(r"[^a-z]", "", text) for text in (left, right)]
        if plain[0] == plain[1]:
            return True
        # letters without \text may be a product of variables, in any order
        return False if "\\text" in one + other or " " in left + right else None
    if left is None and right is None:
        return None
    if left in _NUMBERS or right in _NUMBERS:
        amount = _value(other if left in _NUMBERS else one)
        number = _NUMBERS[str(left if left in _NUMBERS else right)]
        return None if amount is None else amount.value == number
    return None


def _empty(text: str, spoken: str | None, group: set[str]) -> bool:
    if "" in group and squeezed(text) in (r"\emptyset", r"\{\}"):
        return True
    if group is _ALL_REALS and squeezed(text) in (r"\mathbb{R}", r"(-\infty,\infty)"):
        return True
    return spoken in group


def _amounts(one: str, other: str) -> bool | None:
    left, right = _compound(one), _compound(other)
    if left is not None or right is not None:
        left, right = left or _value(one), right or _value(other)
        if left is None or right is None:
            return None
        if left.unit is None or right.unit is None:
            return False  # 3 hours and 20 minutes are not 3
        return _equal(left, right)
    left, right = _value(one), _value(other)
    if left is not None and right is not None:
        return _equal(left, right)
    if left is not None:
        return _read_like(left, other)
    return None if right is None else _read_like(right, one)


def _read_like(amount: Quantity, text: str) -> bool | None:
    """Whether `text` is `amount` if its letter is a unit (5000 g and 5 kg), or its comma a decimal
    sign (0,25 and 0.25); such a text may also be a product, or a list of two."""
    letter = _LETTER_UNIT.match(text)
    if letter is not None and amount.unit is not None and amount.unit.dimension is not None:
        other = _value(rf"{letter[1]} \text{{{letter[2]}}}{letter[3]}")
        if other is None or other.unit is None or other.unit.dimension != amount.unit.dimension:
            return None
        return _equal(amount, other)
    if not _DECIMAL_COMMA.fullmatch(text) or amount.unit is not None:
        return None
    other = _value(text.replace(",", "."))
    return True if other is not None and _equal(amount, other) else None


def _value(text: str) -> Quantity | None:
    """`quantity`, also of a number in braces or in \\text{}."""
    inner = re.fullmatch(r"\\text\{\s*([^{}]*\d[^{}]*)\}|\(([^(),]*)\)|\{([^{}]*)\}", text)
    if inner is not None:
        text = next(group for group in inner.groups() if group is not None)
    return quantity(text.strip())


def _compound(text: str) -> Quantity | None:
    """A sum of amounts of one kind, such as 3 hours and 20 minutes, in the kind's own unit."""
    listed = _AND.sub(" ", text)
    pieces = list(_PART.finditer(listed))
    if len(pieces) < 2 or "".join(m.group() for m in pieces).strip() != listed.strip():
        return None
    amounts = [quantity(f"{m[1].strip()} {m[2]}") for m in pieces]
    units = [amount.unit for amount in amounts if amount is not None]
    if len(units) != len(amounts) or any(u is None or u.dimension is None for u in units):
        return None
    known = [unit for unit in units if unit is not None]
    if len({unit.dimension for unit in known}) != 1 or len({unit.size for unit in known}) == 1:
        return None  # a list, and not a sum
    total = sum((a.value * a.unit.size for a in amounts if a and a.unit), Fraction(0))
    whole = Unit("", known[0].dimension, Fraction(1))
    return Quantity(total, any(a.decimal for a in amounts if a), False, whole)


def _equal(one: Quantity, other: Quantity) -> bool:
    if conflict(one.unit, other.unit):
        return False
    left, right = one.value, other.value
    converted = (
        one.unit is not None
        and other.unit is not None
        and one.unit.dimension is not None
        and other.unit.dimension is not None
        and one.unit.size != other.unit.size
    )
    if converted and one.unit is not None and other.unit is not None:
        left, right = left * one.unit.size, right * other.unit.size
    decimal = one.decimal or other.decimal or converted
    if one.percent != other.percent:
        share, whole = (left, right) if one.percent else (right, left)
        # 50% is 50 where the problem asks for a percentage, and 1/2 where it asks for a share
        return close(share, whole, decimal) or close(share / 100, whole, decimal)
    return close(left, right, decimal)


def close(one: Fraction, other: Fraction, decimal: bool) -> bool:
    """Equal; where one is a decimal, to 6 places and to 0.2 % of their value."""
    if one == other:
        return True
    if not decimal:
        return False
    gap = abs(one - other)
    return gap <= ROUNDING and gap <= RELATIVE * max(abs(one), abs(other))
