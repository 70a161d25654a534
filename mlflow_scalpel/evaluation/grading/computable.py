r"""A guard for a computer algebra system: it is asked to compute nothing that explodes.

`9^{9^9}` would fill memory from inside a single big-number operation, which no signal and no time
limit of the same process can interrupt. The size of every number is therefore bounded from the
structure of the text before anything is computed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

LONGEST = 500  # characters
DEEPEST = 40  # brackets within brackets
LARGEST_DIGITS = 200_000  # decimal digits of any number on the way
LARGEST_FACTORIAL = 10_000

_TOKEN = re.compile(
    r"\\[dtc]?frac(?![a-z])|\\[dt]?binom(?![a-z])|\\choose(?![a-z])|\\sqrt(?![a-z])"
    r"|\\(?:cdot|times|div)(?![a-z])|\\[{}]|\\[A-Za-z]+|\d+(?:\.\d+)?|\.\d+|\*\*|[A-Za-z]|\S"
)
_SKIPPED = {r"\left", r"\right", r"\displaystyle", r"\big", r"\Big", "\\", "~", "$", "&"}
_OPEN = {"(": ")", "[": "]", "{": "}", r"\{": r"\}", "|": "|"}
_CLOSE = {")", "]", "}", r"\}"}
_NUMBER = re.compile(r"\d|\.")


@dataclass(frozen=True)
class _Size:
    """Bounds of a subexpression: |value| <= 10^log, written with at most `digits` digits."""

    log: float
    digits: float
    number: bool = True


class _Explosive(Exception):
    pass


def is_explosive(text: str) -> bool:
    r"""Whether `text` (LaTeX, or with `**`) is too large to be computed.

    That is: longer than 500 characters, brackets nested deeper than 40, a number of more than
    200,000 digits anywhere on the way, or a factorial above 10,000 (`7!!` is (7!)!, as math-verify
    reads it). Powers, factorials and binomials are read with their braces: `\frac{5^{10}}{6^{10}}`
    is a fraction of two small powers. A power of a variable, and an exponent that has one, are not
    computed and have no limit.
    """
    if len(text) > LONGEST or _nesting(text) > DEEPEST:
        return True
    tokens = [token for token in _TOKEN.findall(text) if token not in _SKIPPED]
    try:
        reader = _Reader(tokens)
        while reader.place < len(tokens):
            reader.sum()
            reader.place += 1  # a bracket that nothing opened, a comma, a relation
    except _Explosive:
        return True
    return False


class _Reader:
    """A recursive descent over tokens that knows sizes only, and takes malformed text as it is."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.place = 0

    def sum(self) -> _Size:
        total = self.product()
        while self._next() in ("+", "-", r"\pm", r"\mp"):
            self.place += 1
            total = _added(total, self.product())
        return total

    def product(self) -> _Size:
        total: _Size | None = None
        while (token := self._next()) is not None:
            if token in ("*", "/", r"\cdot", r"\times", r"\div"):
                self.place += 1
            elif token == r"\choose":
                self.place += 1
                total = _binomial(total or _Size(0, 1), self.product())
            elif (
                token in _CLOSE
                or token in ("+", r"\pm", r"\mp", ",", ";", "=", "<", ">")
                or (token == "-" and total is not None)
            ):
                break
            else:
                total = self.factor() if total is None else _multiplied(total, self.factor())
        return total or _Size(0, 1)

    def factor(self) -> _Size:
        signed = self._next() in ("-", "+")
        if signed:
            self.place += 1
        value = self.atom()
        while (token := self._next()) in ("^", "**", "!", "_"):
            self.place += 1
            if token == "!":
                value = _factorial(value)
            elif token == "_":
                self.atom()
            else:
                value = _power(value, self.factor())
        return value

    def atom(self) -> _Size:
        token = self._next()
        if token is None:
            return _Size(0, 1)
        if token in _CLOSE:
            return _Size(0, 1)
        self.place += 1
        if _NUMBER.match(token):
            value = token.replace(".", "").lstrip("0") or "0"
            log = len(token.split(".")[0].lstrip("0")) and math.log10(float(token[:300]) or 1)
            log += max(0, len(token) - 300)
            return _Size(max(log, 0.0), len(value))
        if token in (r"\frac", r"\dfrac", r"\tfrac", r"\cfrac"):
            return _divided(self.argument(), self.argument())
        if token.endswith("binom"):
            return _binomial(self.argument(), self.argument())
        if token == r"\sqrt":
            if self._next() == "[":
                self.atom()
            inside = self.argument()
            return _Size(inside.log, inside.digits, inside.number)
        if token in _OPEN:
            return self.group(_OPEN[token])
        return _Size(0, 1, number=False)

    def argument(self) -> _Size:
        r"""The argument of a command: a group, or a single digit (`\frac12`)."""
        token = self._next()
        if token is not None and token[0].isdigit() and len(token) > 1:
            self.tokens[self.place : self.place + 1] = [token[0], token[1:]]
        return self.atom()

    def group(self, closing: str) -> _Size:
        total: _Size | None = None
        while (token := self._next()) is not None and token != closing:
            before = self.place
            found = self.sum()
            total = found if total is None else _added(total, found)
            if self.place == before or self._next() not in (closing, None):
                if self._next() in _CLOSE and self._next() != closing:
                    return total  # it belongs to a bracket further out
                self.place += 1
        self.place += 1
        return total or _Size(0, 1)

    def _next(self) -> str | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None


def _checked(size: _Size) -> _Size:
    if size.number and size.digits > LARGEST_DIGITS:
        raise _Explosive
    return size


def _added(one: _Size, other: _Size) -> _Size:
    log = max(one.log, other.log) + 0.302
    return _checked(_Size(log, one.digits + other.digits, one.number and other.number))


def _multiplied(one: _Size, other: _Size) -> _Size:
    digits = one.digits + other.digits
    return _checked(_Size(one.log + other.log, digits, one.number and other.number))


def _divided(one: _Size, other: _Size) -> _Size:
    # a fraction may be as small as it likes: its value is bounded by its numerator
    return _checked(_Size(one.log, one.digits + other.digits, one.number and other.number))


def _power(base: _Size, exponent: _Size) -> _Size:
    if not (base.number and exponent.number):
        return _Size(0, max(base.digits, exponent.digits), number=False)
    if base.log == 0 and base.digits <= 1:
        return base  # powers of 0 and 1
    if exponent.log > 12:
        raise _Explosive
    times = 10**exponent.log
    return _checked(_Size(base.log * times, max(base.log, base.digits - 1, 0.31) * times + 1))


def _factorial(of: _Size) -> _Size:
    if not of.number:
        return of
    if of.log > math.log10(LARGEST_FACTORIAL) + 1e-9:
        raise _Explosive
    log = math.lgamma(10**of.log + 1.001) / math.log(10)
    return _Size(max(log, 0), max(log, 0) + 1)


def _binomial(above: _Size, below: _Size) -> _Size:
    if not (above.number and below.number):
        return _Size(0, 1, number=False)
    steps = 10 ** min(above.log, below.log, 12)  # factors of the product
    if steps > LARGEST_DIGITS:
        raise _Explosive
    log = min(steps * max(above.log, 0.31), 10 ** min(above.log, 12) * 0.302)
    return _checked(_Size(log, log + 1))


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest
