r"""Units of answers: which of them are the same, and which cannot be.

A unit that is left out, or that is only a noun (`apples`, `ways`), settles nothing. Two known ones
are compared: `km/h` is not `miles/h`, and 100 cm is 1 m.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Unit:
    """The unit of a number."""

    name: str
    dimension: tuple[tuple[str, int], ...] | None
    """Powers of the kinds of unit, sorted; None where the name is not known as a unit."""
    size: Fraction
    """In the units that this module calls 1."""


# kind: {name: size}; names are singular, and lower case unless the case tells them apart
_KINDS: dict[str, dict[str, str]] = {
    "length": {"mm": "1/1000", "cm": "1/100", "dm": "1/10", "m": "1", "km": "1000",
               "millimeter": "1/1000", "centimeter": "1/100", "meter": "1", "metre": "1",
               "kilometer": "1000", "kilometre": "1000", "centimetre": "1/100",
               "in": "0.0254", "inch": "0.0254", "ft": "0.3048", "foot": "0.3048",
               "feet": "0.3048", "yd": "0.9144", "yard": "0.9144", "mi": "1609.344",
               "mile": "1609.344"},
    "time": {"s": "1", "sec": "1", "second": "1", "min": "60", "minute": "60", "h": "3600",
             "hr": "3600", "hour": "3600", "day": "86400", "week": "604800",
             "ms": "1/1000", "millisecond": "1/1000"},
    "months": {"month": "1", "year": "12", "yr": "12", "decade": "120", "century": "1200"},
    "mass": {"mg": "1/1000", "g": "1", "gram": "1", "kg": "1000", "kilogram": "1000",
             "milligram": "1/1000", "lb": "453.59237", "pound": "453.59237",
             "oz": "28.349523125", "ounce": "28.349523125", "ton": "1000000", "tonne": "1000000"},
    "volume": {"ml": "1/1000", "mL": "1/1000", "milliliter": "1/1000", "l": "1", "L": "1",
               "liter": "1", "litre": "1", "gallon": "3.785411784", "quart": "0.946352946",
               "pint": "0.473176473", "cup": "0.2365882365"},
    "dollars": {"dollar": "1", "usd": "1", "cent": "1/100", "buck": "1"},
    "euros": {"euro": "1"}, "pounds": {"pounds sterling": "1"}, "yen": {"yen": "1"},
    "rupees": {"rupee": "1", "rs": "1"},
    "angle": {"degree": "1", "deg": "1", r"^\circ": "1"},
    "temperature": {r"^\circ c": "1", "celsius": "1"},
    "fahrenheit": {r"^\circ f": "1", "fahrenheit": "1"},
    "force": {"newton": "1"}, "energy": {"joule": "1", "kj": "1000", "kilojoule": "1000"},
    "power": {"watt": "1", "kw": "1000", "kilowatt": "1000"},
}  # fmt: skip
_KNOWN = {
    name: (kind, Fraction(size)) for kind, names in _KINDS.items() for name, size in names.items()
}
_WHOLE = {
    "mph": "mile/hour", "kmph": "km/hour", "kph": "km/hour", "kmh": "km/hour", "mps": "m/s",
    "fps": "foot/second", "sqft": "foot^2", "sqm": "m^2", "sqcm": "cm^2", "cc": "cm^3",
}  # fmt: skip
_LETTERS = {"m", "g", "s", "h", "l", "L"}  # units in \text{} only: elsewhere they are variables
_NOT_UNITS = frozenset(
    "and or if for where with sin cos tan cot sec csc log ln exp pi sqrt mod infty frac times cdot "
    "cup cap pm le ge leq geq ne in to choose is are not union all except either percent inf "
    "infinity than plus minus equals over".split()
)
_CURRENCIES = {
    "$": "dollars", r"\$": "dollars", "US$": "dollars", "USD": "dollars", "€": "euros",
    "£": "pounds sterling", "¥": "yen", "₹": "rupees", "Rs": "rupees", "Rs.": "rupees",
}  # fmt: skip
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}


def read_unit(text: str) -> Unit | None:
    r"""The unit that `text` is, such as `\text{ cm}^2`, `km/h`, `miles per hour` or `apples`.

    None where it may be mathematics: a letter outside of \text{} is a variable.
    """
    if text in _CURRENCIES:
        return read_unit(_CURRENCIES[text])
    in_text = bool(re.match(r"\\text\s*\{", text))
    bare = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    bare = bare.replace(r"^\circ", " degree ").replace("\\ ", " ").replace("\\/", "/")
    warm = re.fullmatch(r"\s*degrees?\s*(?:(c|celsius)|f|fahrenheit)\.?\s*", bare, re.IGNORECASE)
    if warm is not None:
        name = r"^\circ c" if warm[1] else r"^\circ f"
        kind, size = _KNOWN[name]
        return Unit(name, ((kind, 1),), size)
    bare = re.sub(r"\s*\^\s*\{?\s*([23])\s*\}?", r"^\1", bare)
    bare = re.sub(r"[^\W\d_]+\.", lambda m: m.group()[:-1], bare).strip(" .,;")
    bare = re.sub(r"\s+", " ", re.sub(r"\([^()]*\)", "", bare)).strip()
    if re.search(r"[\u4e00-\u9fff]", bare) and not re.search(r"[\d\\=<>]", bare):
        return Unit(bare, None, Fraction(1))
    if not bare or not re.fullmatch(
        r"[A-Za-z][A-Za-z'\-]*(?:\^[23])?(?:[ /]+[A-Za-z][A-Za-z'\-]*(?:\^[23])?)*", bare
    ):
        return None
    tokens = re.findall(r"/|[A-Za-z][A-Za-z'\-]*(?:\^[23])?", bare)
    if any(
        token.lower().split("^")[0] in _NOT_UNITS - ({"in"} if in_text else set())
        for token in tokens
    ):
        return None
    known = _product(tokens)
    if known is not None:
        single = len(tokens) == 1 and len(tokens[0].split("^")[0]) == 1
        return known if in_text or not single else None
    if not in_text and len(tokens[0].split("^")[0]) < 3:
        return None  # xy is a product
    return Unit(bare.lower(), None, Fraction(1))


def _product(tokens: list[str]) -> Unit | None:
    """Tokens such as [km, /, h] or [square, meter] as one unit; None where one is not known."""
    powers: dict[str, int] = {}
    size, sign, pending = Fraction(1), 1, 1
    expanded: list[str] = []
    for token in tokens:
        expanded += re.findall(r"/|[^/]+", _WHOLE.get(token.lower(), token))
    for token in expanded:
        if token in ("/", "per"):
            sign = -1
            continue
        if token.lower() in ("an", "a", "each"):
            continue
        if token.lower() in _POWERS:
            if token.lower() in ("squared", "cubed") and powers:
                return None
            pending = _POWERS[token.lower()]
            continue
        name, _, power = token.partition("^")
        found = _find(name)
        if found is None:
            return None
        exponent = sign * int(power or 1) * pending
        pending = 1
        powers[found[0]] = powers.get(found[0], 0) + exponent
        size *= found[1] ** exponent
    dimension = tuple(sorted((kind, power) for kind, power in powers.items() if power))
    return Unit(" ".join(tokens), dimension, size) if powers else None


def _find(name: str) -> tuple[str, Fraction] | None:
    lower = name.lower()
    for spelled in (name, lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if spelled in _KNOWN:
            return _KNOWN[spelled]
    return None


def conflict(one: Unit | None, other: Unit | None) -> bool:
    """Whether two units are known and are not of the same kind."""
    if one is None or other is None or one.dimension is None or other.dimension is None:
        return False
    return one.dimension != other.dimension
