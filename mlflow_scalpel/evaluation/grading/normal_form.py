r"""Answers in one spelling, and what can be read of them without a computer algebra system.

`normal` respells LaTeX without changing what it means; `quantity` reads numbers with a unit, and
`choice` the letter of a multiple choice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from mlflow_scalpel.evaluation.grading.units import Unit, read_unit

_FULLWIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_SPELLED = {
    **dict.fromkeys("−‐‑‒–﹣", "-"),
    **dict.fromkeys("\xa0\u2000\u2001\u2002\u2003\u2009\u200a\u202f\u3000", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    "。": ".", "、": ",", "｡": ".", "′": "'",
}  # fmt: skip
_SYMBOLS = {
    "×": r"\times ", "÷": "/", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "±": r"\pm ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "º": r"^\circ ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℚ": r"\mathbb{Q}", "ℕ": r"\mathbb{N}",
    "π": r"\pi ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ",
    "ε": r"\epsilon ", "θ": r"\theta ", "λ": r"\lambda ", "μ": r"\mu ", "φ": r"\phi ",
    "ω": r"\omega ", "σ": r"\sigma ", "ρ": r"\rho ", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
}  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_CHARACTERS = str.maketrans({**{chr(k): v for k, v in _FULLWIDTH.items()}, **_SPELLED})

_DELIMITED = re.compile(r"(?s)^\s*(?:\$\$(.*)\$\$|\$(.*)\$|\\\((.*)\\\)|\\\[(.*)\\\])\s*$")
_SPACES = re.compile(r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])|\\hspace\{[^{}]*\}")
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\.?|\\displaystyle|\\limits")
_COLOUR = re.compile(
    r"\\(?:text)?color\s*(?:\[\w+\])?\{\s*[\w!]+\s*\}|\\(?:bf|rm|it|sf|tt|boldmath|bfseries)(?![A-Za-z])"
)
_DECORATION = re.compile(r"\\(?:underline|boldsymbol|bm|mathbf|pmb)\s*\{([^{}]*)\}")
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|tt|up|sc)?|mbox|hbox|math(?:rm|bf|it|sf)|operatorname)\s*(?=\{)"
)
_THOUSANDS = re.compile(r"(?<![\d.,\w])([1-9]\d{0,2}(?:(?:,|\{,\})\d{3})+)(?![\d,])")
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,4})(?![\w.])")
_REPEATING = re.compile(r"(\d{0,20})\.(\d{0,20})\\overline\s*\{(\d{1,20})\}")
_ENGLISH_SPACES = re.compile(r"-?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_TEXT_CONTENT = re.compile(r"\\text\{([^{}]*)\}")


def plain_characters(text: str) -> str:
    """Fullwidth characters, unusual dashes and spaces as ASCII; other text as it is."""
    return text.translate(_CHARACTERS)


def normal(text: str) -> str:
    r"""`text` (LaTeX of an answer, with or without delimiters) in one spelling.

    Unicode as LaTeX, no delimiters, spacing, sizes and styles (`\dfrac` is `\frac`, `\textbf` is
    `\text`), no full stop at the end, no currency sign before a number, no thousands separators;
    1e-7 is a power of ten.
    """
    text = plain_characters(text)
    text = re.sub(r"([⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+)", lambda m: f"^{{{m[1].translate(_RAISED)}}}", text)
    text = re.sub(r"√\s*(?:\(([^()]*)\)|(\w+))", lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text)
    for symbol, latex in _SYMBOLS.items():
        text = text.replace(symbol, latex)
    text = text.strip().strip("*").strip()
    text = _ended(text)
    inner = _DELIMITED.match(text)
    if inner is not None:
        found = next(group for group in inner.groups() if group is not None)
        if "$" not in found.replace(r"\$", ""):
            text = found
    if "matrix" not in text and "array" not in text and "cases" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z,%$])", r"\\", text)
    text = re.sub(r"(\d)(?:\\!|\{,\}|,\\!|\\,)+\s*(?=\d{3}(?!\d))", r"\1,", text)
    text = _SIZES.sub("", _SPACES.sub(" ", text)).replace("**", "^")
    text = re.sub(r"\\[dtc]frac(?![a-z])", r"\\frac", text)
    text = _DECORATION.sub(r"\1", _COLOUR.sub("", text))
    text = _TEXT.sub(r"\\text", text)
    text = re.sub(r"\\text\s*\{\s*\}", " ", text)
    text = re.sub(r"\\(?:leqslant|leq|le)(?![a-z])", r"\\leq", text)
    text = re.sub(r"\\(?:geqslant|geq|ge)(?![a-z])", r"\\geq", text)
    text = re.sub(r"\\neq?(?![a-z])", r"\\neq", text)
    text = re.sub(r"\\text\{\s*infinity\s*\}|(?<![\\A-Za-z])infinity\b", r"\\infty", text)
    text = text.replace(r"\varnothing", r"\emptyset").replace(r"\degree", r"^\circ")
    text = _REPEATING.sub(_as_fraction, text)
    # math-verify takes the e of 1e-7 for Euler's number
    text = _SCIENTIFIC.sub(lambda m: rf"{m[1]}\times 10^{{{int(m[2])}}}", text)
    text = re.sub(r"\\dots(?![a-z])|\.\.\.+|…", r"\\ldots", text)
    text = re.sub(r"\\log_\{?e\}?(?![a-z])", r"\\ln", text)
    text = text.replace("{:}", ":")
    text = re.sub(r"\^\s*\{\s*\\circ\s*\}", r"^\\circ", text)
    text = re.sub(r"\+\s*-(?=\s*[\d\\A-Za-z])", "- ", text)
    text = re.sub(r"\s+", " ", text).strip()
    text = _ended(text)
    if _ENGLISH_SPACES.fullmatch(text):
        text = text.replace(" ", "")
    return _without_thousands(text)


def squeezed(text: str) -> str:
    """Text to compare character by character: without blanks, quotes, dollars and outer braces."""
    text = _TEXT_CONTENT.sub(r" \1 ", text).strip()
    text = re.sub(r"(?<=\d)\s+(?=\d)", "_", text)  # 1 2 is not 12
    text = re.sub(r"[\s\"`$]|(?<![A-Za-z])'|\\$", "", text)
    while text.startswith("{") and text.endswith("}") and _closes_at_end(text):
        text = text[1:-1]
    return text


def words(text: str) -> str | None:
    r"""The words of an answer in words (`\text{east}`, `no solution`), in lower case; else None."""
    bare = _TEXT_CONTENT.sub(r" \1 ", text)
    bare = re.sub(r"[\s.,;:!]+", " ", bare).strip().lower()
    bare = re.sub(r"^(?:the|an?) (?=[a-z])", "", bare)
    if re.fullmatch(r"[a-z][a-z'\- ]*[a-z]", bare) and (len(bare) > 2 or "\\text" in text):
        return bare
    return None


def _as_fraction(found: re.Match[str]) -> str:
    r"""`0.1\overline{6}` as `\frac{15}{90}`."""
    before, fixed, repeated = found.groups()
    whole = int((before or "0") + fixed + repeated) - int((before or "0") + fixed)
    return rf"\frac{{{whole}}}{{{'9' * len(repeated)}{'0' * len(fixed)}}}"


def _ended(text: str) -> str:
    if re.search(r"\.\.\s*$|[…]\s*$", text):
        return text  # a sequence that goes on
    return re.sub(r"(?:[.,;:\s]|\\\\|\\(?=$))+$", "", text)


def _without_thousands(text: str) -> str:
    """Joins 1,234,567 where it stands outside of all brackets."""
    parts, start = [], 0
    for found in _THOUSANDS.finditer(text):
        before = text[: found.start()]
        depth = sum(before.count(c) for c in "([") - sum(before.count(c) for c in ")]")
        depth += before.count(r"\{") - before.count(r"\}")
        if depth <= 0:
            parts += [text[start : found.start()], re.sub(r"[,{}]", "", found.group())]
            start = found.end()
    return "".join(parts) + text[start:]


def _closes_at_end(text: str) -> bool:
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return place == len(text) - 1
    return False


@dataclass(frozen=True)
class Quantity:
    """A rational number with what stands around it."""

    value: Fraction
    decimal: bool
    """Written with a decimal point, so perhaps rounded."""
    percent: bool
    unit: Unit | None


_INTEGER = r"[1-9]\d{0,2}(?:,\d{3})+|\d+(?!,\d)"
_PLAIN = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:"
    rf"(?P<whole>\d+)?\s*\\frac\s*(?:\{{\s*(?P<a>-?\d+)\s*\}}\s*\{{\s*(?P<b>-?\d+)\s*\}}"
    rf"|(?P<c>\d)\s*(?P<d>\d)(?!\d)|(?P<e>\d)\s*\{{\s*(?P<f>\d+)\s*\}}"
    rf"|\{{\s*(?P<g>\d+)\s*\}}\s*(?P<h>\d)(?!\d))"
    rf"|(?:(?P<mixed>\d+) +)?(?P<num>\d+)\s*/\s*(?P<den>\d+)"
    rf"|(?P<int>{_INTEGER})?(?P<dec>\.\d*)?"
    rf"(?:[eE](?P<e10>[+-]?\d{{1,3}})(?!\d)|\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{{\s*(?P<exp>[+-]?\d{{1,3}})\s*\}}|(?P<exq>\d)))?"
    rf")(?![\d/])"
)
_CURRENCY = re.compile(
    r"^(-?)\s*(\\\$|\$|€|£|¥|₹|Rs\.?|USD|US\$|\\text\{\s*(?:\\?\$|Rs\.?|USD)\s*\})\s*"
)
_MAGNITUDES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MAGNITUDE = re.compile(rf"(?:\\text\{{\s*)?({'|'.join(_MAGNITUDES)})(?![A-Za-z])(?:\s*\}})?")
_ABOUT = re.compile(r"^(?:\\approx|\\sim|about|approximately|roughly|~)\s*")


def quantity(text: str) -> Quantity | None:
    """The number that `text` (of `normal`) is, with its unit; None if it is not just that."""
    text = _ABOUT.sub("", text)
    currency = _CURRENCY.match(text)
    if currency is not None:
        text = currency.group(1) + text[currency.end() :]
    found = _PLAIN.match(text)
    if found is None or (value := _value(found)) is None:
        return None
    rest = text[found.end() :].strip()
    magnitude = _MAGNITUDE.match(rest)
    if magnitude is not None:
        value *= _MAGNITUDES[magnitude[1]]
        rest = rest[magnitude.end() :].strip()
    percent = re.match(r"\\?%|(?:\\text\{\s*)?(?:percent(?:age)?|pct)(?![A-Za-z])(?:\s*\})?", rest)
    if percent is not None:
        rest = rest[percent.end() :].strip()
    unit = read_unit(rest) if rest else None
    if rest and unit is None:
        return None
    if currency is not None and unit is None:
        unit = read_unit(re.sub(r"\\text\{\s*|\s*\}", "", currency.group(2)))
    return Quantity(value, found["dec"] is not None, percent is not None, unit)


def _value(found: re.Match[str]) -> Fraction | None:
    sign = -1 if found["sign"] == "-" else 1
    for top, bottom in ("ab", "cd", "ef", "gh", ("num", "den")):
        if found[top] is None:
            continue
        if int(found[bottom]) == 0:
            return None
        fraction = Fraction(int(found[top]), int(found[bottom]))
        whole = found["whole"] if top != "num" else found["mixed"]
        if whole is not None and not 0 <= fraction < 1:
            return None  # 2 3/2 is not a mixed number
        return sign * (int(whole or 0) + fraction)
    digits = (found["int"] or "").replace(",", "")
    decimals = (found["dec"] or "")[1:]
    if (not digits and not decimals) or len(digits) + len(decimals) > 1000:
        return None
    value = Fraction(int(digits or 0)) + Fraction(int(decimals or 0), 10 ** len(decimals))
    power = int(found["exp"] or found["exq"] or found["e10"] or 0)
    return sign * value * Fraction(10) ** power


_LETTER = r"(?:\(\s*(?P<p>[A-Ja-j])\s*\)|(?P<q>[A-J])\s*(?=[).:]|$)\s*[).:]?|(?P<r>[A-J])(?=\s*$))"
_CHOICE = re.compile(
    rf"^(?:\\text\s*\{{\s*{_LETTER}\s*:?\s*(?:\}}\s*[.:]?|(?=[^{{}}]*\}}$)(?P<inside>[^{{}}]*)\}}$)"
    rf"|{_LETTER.replace('<p>', '<s>').replace('<q>', '<t>').replace('<r>', '<u>')})"
    r"\s*(?P<rest>.*)$"
)
_CALLED = re.compile(r"(?:\\text\s*\{\s*)?(?:option|choice)\s+(\(?[A-J]\)?)\s*\}?", re.IGNORECASE)


def choice(text: str) -> tuple[str, str] | None:
    r"""(letter, the rest) of a multiple choice such as `\text{(A)} 15`, `(A)`, `A` or `A) 15`."""
    called = _CALLED.fullmatch(text)
    found = _CHOICE.match(called[1] if called is not None else text)
    if found is None:
        return None
    letter = next(found[name] for name in "pqrstu" if found[name] is not None)
    return letter.upper(), (found["inside"] or found["rest"] or "").strip()


_BASE = re.compile(
    r"^\s*(?:\\text\s*\{)?\s*([0-9A-Za-z]+)\s*\}?\s*_\s*(?:\{\s*(?:\\text\{)?\s*(\w+)\s*\}?\s*\}|(\d))\s*$"
)
_BASE_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
               "nine": 9, "ten": 10, "twelve": 12, "sixteen": 16}  # fmt: skip


def based(text: str) -> tuple[str, int] | None:
    """(digits, base) of a number such as `2516_8`, if its digits are digits of that base."""
    found = _BASE.match(text)
    if found is None:
        return None
    name = (found[2] or found[3]).lower()
    base = _BASE_WORDS.get(name) or (int(name) if name.isdigit() else 0)
    if not 2 <= base <= 36 or (not found[1][0].isdigit() and base <= 10):
        return None
    try:
        int(found[1], base)
    except ValueError:
        return None
    return found[1], base
