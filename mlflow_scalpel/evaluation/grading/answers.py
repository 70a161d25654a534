r"""The answer that a completion states: tags, boxes, and LaTeX that the word "answer" leads to.

`answer_of` finds the text of the answer; whether it is the right one is for `grading` to say.
"""

from __future__ import annotations

import re
from typing import Literal

from mlflow_scalpel.evaluation.grading.normal_form import plain_characters

Fallback = Literal["none", "last_number"]

LONGEST_BARE = 100  # characters of an answer that stands in no box and in no LaTeX
LONGEST_BOXED = 10_000
ANCHORS = 100  # of the word "answer", the last ones
NEAR = 50  # characters between the word "answer" and the LaTeX that it leads to
SENTENCE = 80  # characters around the only LaTeX of a completion that is one sentence

_BOX = re.compile(r"(\\{1,3})(boxed|fbox|framebox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\\\|\\[{}]|[{}]")  # an escaped brace is not a brace
_UNBRACED = re.compile(r"\\[A-Za-z]+(?:\{[^{}]*\})*|[+-]?[\d.,]*\d|[A-Za-z]")
_SHUT = re.compile(r"\$|\n|\\\)|\\\]")  # what ends a box whose brace is missing
# Between two boxes that are one answer: "\boxed{1} or $x = \boxed{2}$"
_DELIMITER = r"(?:\s|\$|\\[()\[\]]|\\quad|\\qquad|\\[,;: ])*"
_JOINT = re.compile(
    rf"{_DELIMITER}(?:,|;|\\?&|,?\s*(?:and|or)\b|,?\s*\\text\s*\{{\s*,?\s*(?:and|or)\s*\}})"
    rf"{_DELIMITER}(?:[A-Za-z](?:_\{{?\w+\}}?)?\s*=)?{_DELIMITER}"
)
_PERCENT_AFTER = re.compile(r"\s*(?:\$|\\\))?\s*(?:\\?%|percent\b|pct\b)")
_MATH = (
    r"(?:\$\$(.{1,1000}?)\$\$|\$([^$\n]{1,1000})\$"
    r"|\\\\?\((.{1,1000}?)\\\\?\)|\\\\?\[(.{1,1000}?)\\\\?\])"  # one backslash, or two
)
_SPAN = re.compile(_MATH, re.DOTALL)
_NEXT_SPAN = re.compile(rf"\s*(?:,|;|,?\s*(?:and|or)\b)\s*(?=\$|\\\(|\\\[){_MATH}", re.DOTALL)
_ANCHOR = re.compile(
    r"answers?|答案|réponse|respuesta|risposta|resposta|antwort|ответ", re.IGNORECASE
)
_LED_TO = re.compile(rf"(?s).{{0,{NEAR}}}?(?={_MATH})")
_TAG = re.compile(r"</?answer>", re.IGNORECASE)
_PREFACE = re.compile(r"(?i)^(?:so|thus|hence|therefore)?,?\s*(?:the|my)?\s*(?:final|correct)?\s*"
                      r"answers?\s*(?:is|are|=|:)?\s*:?\s*")  # fmt: skip
_HOPE = re.compile(r"(?i)\.?\s*I hope (?:it|this) is correct\.?$")
_LABEL = re.compile(r"[ \t]*(?:\*\*|__)?[ \t]*[:：][ \t]*(?:\*\*|__)?[ \t]*([^\n]+)")
_BOLD = re.compile(
    r"(?:\*\*|__)?[ \t]*(?:is|are)?[ \t]*[:：]?[ \t\n]*(?:\*\*|__)([^*\n]+?)(?:\*\*|__)"
)
# "### Final Answer" or "**Answer:**" on a line of its own, and the line below
_HEADING = re.compile(r"[ \t]*[:：]?[ \t]*(?:\*\*|__)?[ \t]*[:：]?[ \t]*\n\s*([^\n]+)")
_JSON = re.compile(r'"[ \t]*:[ \t]*("(?:[^"\\\n]|\\.)*"|-?[\d.]+)[ \t]*[,}\n]')
_HASHES = re.compile(r"(?m)^####[ \t]*(\S[^\n]*)$")
_SENTENCE_END = re.compile(r"\n|[.!?。:：]\s")
_NEXT_TURN = re.compile(r"(?:<\|[\w ]{1,40}\|>\s*(?:user|assistant|system)?\s*)+$")
_ESCAPED = (("\x08", "b", "oxed"), ("\x0c", "f", "rac|box"), ("\t", "t", r"ext\{|imes|heta|frac"))
_LABELS = ("", "final", "the", "thefinal", "myfinal", "my")
_STATED = re.compile(r"[ \t]*(?:\*\*|__)?[ \t]*(?:is|[:：])?[ \t]*(?:\*\*|__)?[ \t\n]*")

_FRACTIONS = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4"}
_VULGAR = re.compile(f"[{''.join(_FRACTIONS)}]")
_SIGN = r"(?:(?<![\d\w)}\]])-\s?)?"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_MONEY = r"(?:[$€£]-?)?"
_NUMBER = re.compile(
    rf"{_SIGN}{_MONEY}(?:{_DIGITS}\s?)?\\[dtc]?frac\s*(?:\{{\s*-?\d+\s*\}}\s*\{{\s*\d+\s*\}}|\d\s*\d)"
    rf"|{_SIGN}{_MONEY}(?:\d+\s)?\d+\s?/\s?\d+(?![\d/])"
    rf"|{_SIGN}{_MONEY}(?:{_DIGITS}(?:\.\d+)?|(?<![\d.])\.\d+)(?:[eE][+-]?\d+)?(?:\s?\\?%)?"
)


def answer_of(completion: str, *, fallback: Fallback = "none") -> str | None:
    r"""The text of the answer that `completion` states; None if it states none.

    In this order, each time the last of them:

    1. `<answer>...</answer>`, or an <answer> that is never closed: the box in it, else the LaTeX
       that "answer" leads to, else its only LaTeX, else its whole content if that is short;
    2. `\boxed{...}` (also `\fbox`, `\boxed 4`, `\boxed {4}`, and with doubled backslashes, as in
       text that was escaped for JSON); boxes joined by nothing but "and", "or" or a comma are one
       answer; empty boxes and boxes that the end of the text cuts off count as none;
    3. LaTeX within 50 characters after the word "answer" (the last "answer" that leads to any),
       or what a line labels as the answer (`**Answer:** 42`, `Final answer: **42**`, `#### 42`),
       or a number after "final answer is";
    4. the only LaTeX expression of a completion, if that says nothing else, or is one short
       sentence without other numbers.

    What stands before `</think>` counts only where nothing after it is an answer. A bare number
    elsewhere is no answer, unless `fallback` is "last_number" and there is no other.
    """
    text = restored(completion)
    thought, mark, said = text.rpartition("</think>")
    answer = _stated(said)
    if answer is None and mark and not _TAG.search(said):
        answer = _stated(thought)
    if answer is None and fallback == "last_number" and not _TAG.search(said):
        answer = last_number(said) or last_number(thought)
    return answer


def last_boxed(text: str) -> str | None:
    r"""The content of the last whole, filled \boxed{...} of `text`; boxes that are one answer
    ("\boxed{1} or \boxed{2}") are joined by commas. None without one."""
    boxes = _boxes(text)
    if not boxes:
        return None
    start, _, content = boxes[-1]
    parts = [content]
    for before in reversed(boxes[:-1]):
        if before[1] > start or not _JOINT.fullmatch(text, before[1], start):
            break
        start = before[0]
        if before[2] != parts[-1]:
            parts.append(before[2])
    return ", ".join(reversed(parts))


def last_number(text: str) -> str | None:
    r"""The last number of a text, with its sign, as plain text without currency or separators.

    Decimals, `.5`, `1/2`, `3 1/2`, `\frac{1}{2}`, `1,234.5`, `$18`, `50%` and U+2212 as minus.
    """
    plain = _VULGAR.sub(lambda found: f" {_FRACTIONS[found.group()]}", plain_characters(text))
    numbers = [match.group() for match in _NUMBER.finditer(plain)]
    return re.sub(r"[$€£,]|(?<=-)\s", "", numbers[-1]).strip() if numbers else None


def _stated(text: str) -> str | None:
    closes = [found for found in _TAG.finditer(text) if found.group()[1] == "/"]
    opens = [found for found in _TAG.finditer(text) if found.group()[1] != "/"]
    for close in reversed(closes):
        before = [found for found in opens if found.end() <= close.start()]
        if before:
            return _of_block(text[before[-1].end() : close.start()])
    if opens:
        return _of_block(text[opens[-1].end() :])
    if closes:  # opened by the prompt
        return _of_block(text[: closes[-1].start()])
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    anchored = _anchored(text)
    return anchored if anchored is not None else _whole(text)


def _of_block(content: str) -> str | None:
    """The answer in the content of answer tags."""
    for found in (last_boxed(content), _anchored(content), _whole(content)):
        if found is not None:
            return found
    spans = [_inner(found) for found in _SPAN.finditer(content)]
    bare = _PREFACE.sub("", content.strip().strip("*_ \n"))
    numbers = _NUMBER.findall(plain_characters(bare))
    if not spans and len(numbers) == 1 and len(re.findall(r"[A-Za-z]{2,}", bare)) > 3:
        return last_number(bare)  # a sentence with one number
    if len(spans) == 1 or (spans and len(bare) > LONGEST_BARE):
        return spans[-1]
    return bare if 0 < len(bare) <= LONGEST_BARE else None


def _anchored(text: str) -> str | None:
    marked = [line for line in _HASHES.finditer(text) if _is_number(line.group(1))]
    for anchor in reversed(list(_ANCHOR.finditer(text))[-ANCHORS:]):
        if marked and marked[-1].start() > anchor.start():
            break
        ending = _sentence_number(text, anchor)
        if ending is not None:
            return ending
        lead = _LED_TO.match(text, anchor.end())
        if lead is not None:
            first = _SPAN.match(text, lead.end())
            if first is not None:
                return _spans_from(text, first)
        bare = _labelled(text, anchor)
        if bare is not None:
            return bare
    return marked[-1].group(1).strip() if marked else None


def _sentence_number(text: str, anchor: re.Match[str]) -> str | None:
    """The number that a labelled sentence ends in: "Final Answer: The largest $n$ is 34." """
    label = _LABEL.match(text, anchor.end())
    if label is None or _prefix(text, anchor) not in _LABELS:
        return None
    sentence = _HOPE.sub("", label.group(1).strip()).strip(" .*_")
    numbers = list(_NUMBER.finditer(plain_characters(sentence)))
    if not numbers or numbers[-1].end() != len(sentence):
        return None
    said = sentence[: numbers[-1].start()]
    return numbers[-1].group() if re.search(r"\b(?:is|are|=)\s*$", said) else None


def _prefix(text: str, anchor: re.Match[str]) -> str:
    """The sentence or line before the word "answer", letters only."""
    before = _SENTENCE_END.split(text[max(anchor.start() - 2 * NEAR, 0) : anchor.start()])[-1]
    return re.sub(r"[^A-Za-z]", "", before).lower() if len(before) < NEAR else before


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(plain_characters(text).strip()) is not None


def _spans_from(text: str, first: re.Match[str]) -> str:
    """A LaTeX span, and those that "and", "or" or a comma join to it."""
    parts, end = [_inner(first)], first.end()
    following = _NEXT_SPAN.match(text, end)
    while following is not None:
        parts.append(_inner(following))
        following = _NEXT_SPAN.match(text, following.end())
    if len(parts) == 1 and _PERCENT_AFTER.match(text, end) and "%" not in parts[0]:
        parts[0] += r"\%"
    return ", ".join(parts)


def _labelled(text: str, anchor: re.Match[str]) -> str | None:
    """The line after "Answer:", in bold after "answer is", or after "final answer is"."""
    prefix = _prefix(text, anchor)
    field = _JSON.match(text, anchor.end())
    if field is not None:
        return _bare(field.group(1).strip('"').replace("\\\\", "\\"))
    label = _HEADING.match(text, anchor.end()) or _LABEL.match(text, anchor.end())
    if label is not None and prefix in _LABELS:
        return _bare(label.group(1))
    bold = _BOLD.match(text, anchor.end())
    if bold is not None:
        return _bare(bold.group(1))
    if not prefix.endswith("final"):
        return None
    stated = _STATED.match(text, anchor.end())
    found = _NUMBER.match(text, stated.end()) if stated is not None else None
    if found is None or not re.match(r"\s*(?:\*\*)?\s*(?:[.!。]?\s|[.!。]?$)", text[found.end() :]):
        return None
    return found.group()


def _bare(content: str) -> str | None:
    cleaned = _HOPE.sub("", content.strip()).strip().strip("*_`").strip()
    cleaned = _PREFACE.sub("", cleaned).strip().rstrip(".").strip("*_` ")
    words = re.findall(r"(?<!\\)[A-Za-z]{2,}", cleaned)
    numbers = _NUMBER.findall(plain_characters(cleaned))
    if len(numbers) == 1 and len(words) > 3:
        return last_number(cleaned)
    return cleaned if cleaned and len(words) <= 3 and len(cleaned) <= LONGEST_BARE else None


def _whole(text: str) -> str | None:
    """The LaTeX of a text that holds one piece of it, alone or in one short sentence."""
    said = text.strip().strip("*").rstrip(" .。")
    found = _SPAN.fullmatch(said)
    if found is None:
        spans = list(_SPAN.finditer(said))
        around = _SPAN.sub("", said)
        if len(spans) != 1 or len(around) > SENTENCE or re.search(r"[\d\n$]|[.!?。]\s", around):
            return None
        return _spans_from(said, spans[0])
    return None if "$" in _inner(found).replace(r"\$", "") else _inner(found)


def _inner(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if group is not None).strip()


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of each whole and filled box that holds no other one."""
    ends = _closing_braces(text)
    found: list[tuple[int, int, str]] = []
    following = len(text)
    for box in reversed(list(_BOX.finditer(text))):
        read = _content(text, box, ends, following)
        following = box.start()
        if read is None or (found and found[-1][0] < read[0]):
            continue  # the last one found is inside
        end, content = read
        if len(content) > LONGEST_BOXED:
            continue
        if len(box.group(1)) == 2:
            content = content.replace(r"\\", "\\")
        if _BOX.sub("", content).strip("{}$. "):
            if _PERCENT_AFTER.match(text, end) and "%" not in content:
                content += r"\%"
            found.append((box.start(), end, content))
    return found[::-1]


def _content(
    text: str, box: re.Match[str], ends: dict[int, int], following: int
) -> tuple[int, str] | None:
    """(end, content) of a box; `following` is where the next one starts."""
    opening = box.end()
    if text[opening : opening + 1] != "{":
        bare = _UNBRACED.match(text, opening)
        return None if bare is None else (bare.end(), bare.group())
    if opening in ends:
        return ends[opening] + 1, text[opening + 1 : ends[opening]].strip()
    shut = _SHUT.search(text, opening, following)
    return None if shut is None else (shut.start(), text[opening + 1 : shut.start()].strip())


def _closing_braces(text: str) -> dict[int, int]:
    """The place of the closing brace of each opening one that has one."""
    closing, opened = {}, []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif brace.group() == "}" and opened:
            closing[opened.pop()] = brace.start()
    return closing


def restored(text: str) -> str:
    r"""Commands whose first letters were read as escapes (`\b`, `\f`, `\t`) get them back.

    Markers of the next turn (`<|im_start|>user`) at the end go.
    """
    text = text[:-NEAR] + _NEXT_TURN.sub("", text[-NEAR:])
    for escape, letter, command in _ESCAPED:
        text = re.sub(f"{escape}(?={command})", rf"\\{letter}", text)
    return text
