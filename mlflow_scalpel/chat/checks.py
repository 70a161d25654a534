"""Whether what is rendered is what was given: the faults of chat templates, and what helps.

What cannot be right raises ScalpelError: a template that refuses the turns or leaves out what they
say, an answer that is cut, or that is learned behind another prompt than the model will be given.
What may be wrong is counted over all conversations, and reported in one sentence each.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlflow_scalpel.chat.rendering import (
    OWN_TEMPLATE,
    Messages,
    Rendered,
    render,
    shared_length,
)
from mlflow_scalpel.errors import ScalpelError

_MARK = "\u2042mark\u2042"  # text that no template has of its own
_SENTENCE = re.compile(r"[^\W\d_]+(?:[^\w\n]+[^\W\d_]+){2,}")  # three words in a line
_SHOWN = 120


@dataclass
class Checked:
    """Faults of a set of rendered conversations, counted."""

    total: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    """Conversations by the fault's code."""
    firsts: dict[str, str] = field(default_factory=dict)
    """The message about the first conversation with the fault."""

    def count(self, code: str, first: str) -> None:
        """One more conversation with a fault."""
        self.counts[code] = self.counts.get(code, 0) + 1
        self.firsts.setdefault(code, first)

    def warnings(self) -> dict[str, str]:
        """Code -> message."""
        return {
            code: f"{self.firsts[code]} (the first of {count} among {self.total} conversations)"
            for code, count in self.counts.items()
        }


def settled(tokenizer: Any, messages: Messages, *, what: str = "the chat template") -> Messages:
    """The turns with an empty system turn as the template needs it.

    An empty system prompt switches off what a template says by itself where none is given. It is
    left out for templates that say nothing then. Raises ScalpelError for one that cannot be kept
    quiet.
    """
    if not messages or messages[0]["role"] != "system" or messages[0]["content"]:
        return messages
    without = messages[1:]
    return (
        [{"role": "system", "content": ""}, *without] if _needs_empty(tokenizer, what) else without
    )


def system_turn(system_prompt: str | None) -> Messages:
    """The turn that carries a system prompt; none where it is None."""
    return [] if system_prompt is None else [{"role": "system", "content": system_prompt}]


def check_system_prompt(tokenizer: Any, system_prompt: str | None, *, what: str) -> Messages:
    """The turns before a problem that carry a system prompt, once the template is seen to take it.

    Raises ScalpelError where there is no template, or where it leaves out the system prompt or a
    question.
    """
    question = {"role": "user", "content": "What is 1 + 1?"}
    render(tokenizer, [question], what=what)  # says what the tokenizer does not have
    turns = settled(tokenizer, [*system_turn(system_prompt), question], what=what)
    check_prompt(turns, render(tokenizer, turns, what=what), Checked(), what=what)
    return turns[:-1]


def check_prompt(messages: Messages, prompt: str, checked: Checked, *, what: str) -> None:
    """Whether the prompt holds what the turns say.

    Raises ScalpelError where the system prompt or the question is missing; an earlier turn that is
    missing or cut (as reasoning of earlier answers is by several templates) is counted.
    """
    for place, turn in enumerate(messages):
        content = turn["content"]
        if not isinstance(content, str) or _holds(prompt, content):
            continue
        if turn["role"] == "system":
            raise ScalpelError(
                f"{what}: leaves out the system prompt {_short(content)}; set system_prompt to "
                f"null, or {OWN_TEMPLATE}"
            )
        if place == len(messages) - 1:
            raise ScalpelError(
                f"{what}: leaves out what the {turn['role']} says, {_short(content)}: the prompt "
                f"is {_short(prompt)}; {OWN_TEMPLATE}"
            )
        checked.count(
            "template_cuts_context",
            f"{what} leaves out text of an earlier {turn['role']} turn, {_short(content)}, in "
            "training as when a model is asked",
        )


def check_answered(
    tokenizer: Any,
    conversations: Sequence[tuple[Messages, str]],
    rendered: Sequence[Rendered],
    ends: Collection[int],
    *,
    what: str,
    learned: bool,
) -> Checked:
    """Whether each conversation holds its answer, behind the prompt, and ends.

    With `learned` the answers are to be trained on: an answer behind another prompt than the model
    will be given, and a template that ends no turn, raise ScalpelError; else they are counted.
    Raises ScalpelError for every answer that is cut, too, with their number and the first.
    """
    checked = Checked(total=len(rendered))
    cut: list[int] = []
    elsewhere: list[int] = []
    endless: list[int] = []
    for number, ((messages, answer), one) in enumerate(zip(conversations, rendered, strict=True)):
        check_prompt(messages, one.prompt, checked, what=what)
        if one.differing.strip():
            elsewhere.append(number)
        if one.merged and learned:
            checked.count(
                "answer_merges_with_prompt",
                f"an answer that begins with {answer[:8]!r} is one token with the prompt's end, "
                f"{one.prompt[-8:]!r}: it is learned from that token on, which the model is never "
                "given to go on from; let solutions begin without blanks",
            )
        found = _place_of(one, answer)
        if found is None:
            if not _holds(one.text[_before_answer(tokenizer, messages, one) :], answer):
                cut.append(number)
                continue
            checked.count(
                "template_changes_blanks",
                f"{what} writes the blanks of an answer otherwise than given: {_short(answer)} "
                f"becomes {_short(one.text[one.boundary :])}",
            )
        else:
            lead = answer[: len(answer) - len(answer.lstrip())]
            inserted = one.text[one.boundary : found[0]].removesuffix(lead)
            if inserted.strip():
                checked.count(
                    "template_adds_text",
                    f"{what} writes {inserted!r} in front of an answer, which was not given and "
                    "is part of what is learned and measured",
                )
        if not _ends(one, found, ends):
            endless.append(number)
    if cut:
        raise ScalpelError(_cut(conversations, rendered, cut, what))
    if elsewhere:
        _other_prompt(conversations, rendered, elsewhere, checked, what, learned)
    if endless:
        _without_end(tokenizer, rendered, endless, ends, checked, what, learned)
    return checked


def _holds(text: str, part: str) -> bool:
    """Whether a text holds a part, whatever the blanks are."""
    return part.strip() in text or _squeezed(part) in _squeezed(text)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def _place_of(one: Rendered, answer: str) -> tuple[int, int] | None:
    """First and last character of the answer in the text; None where it is not there as it is.

    It may begin before the boundary, where the prompt opens it (`<think>`).
    """
    bare = answer.strip()
    start = one.text.rfind(bare)
    if start < 0 or (bare and start + len(bare) <= one.boundary):
        return None
    return start, start + len(bare)


def _before_answer(tokenizer: Any, messages: Messages, one: Rendered) -> int:
    """Where the text that the prompt's turns have in the conversation is over."""
    try:
        turns = render(tokenizer, messages, answer=True)
    except ScalpelError:  # some refuse a conversation that ends with a user's turn
        return one.boundary
    return min(one.boundary, shared_length(turns, one.text))


def _other_prompt(
    conversations: Sequence[tuple[Messages, str]],
    rendered: Sequence[Rendered],
    which: list[int],
    checked: Checked,
    what: str,
    learned: bool,
) -> None:
    one = rendered[which[0]]
    why = (
        f"{what} ends the prompt with {one.differing!r}, which is not there once an answer "
        f"follows: {_short(one.text[one.boundary :])}"
    )
    messages = conversations[which[0]][0]
    if learned and messages[0]["role"] == "system" and not _holds(one.text, messages[0]["content"]):
        raise ScalpelError(
            f"{what}: leaves out the system prompt {_short(messages[0]['content'])} once an answer "
            f"follows, so that {len(which)} of {len(rendered)} answers would be learned without "
            f"it; set system_prompt to null, or {OWN_TEMPLATE}"
        )
    if learned:
        raise ScalpelError(
            f"{why}. {len(which)} of {len(rendered)} answers would be learned behind another "
            "prompt than the model is given; let solutions go on from the prompt as it ends, "
            f"or {OWN_TEMPLATE}"
        )
    for _ in which:
        checked.count("template_changes_prompt", why)


def _ends(one: Rendered, found: tuple[int, int] | None, ends: Collection[int]) -> bool:
    """Whether one of the tokens that end a completion is learned behind the answer."""
    if found is None or not one.offsets:
        return any(token in ends for token in one.ids[max(one.start, one.end - 1) :])
    behind = [at for at, (first, _) in enumerate(one.offsets) if first >= found[1]]
    return any(one.ids[at] in ends for at in behind if at >= one.start)


def _cut(
    conversations: Sequence[tuple[Messages, str]],
    rendered: Sequence[Rendered],
    cut: list[int],
    what: str,
) -> str:
    first = cut[0]
    answer, one = conversations[first][1], rendered[first]
    why = (
        f"{what}: cuts text out of {len(cut)} of {len(rendered)} answers. The first, "
        f"{_short(answer)}, becomes {_short(one.text[one.boundary :])}"
    )
    if "</think>" in answer:
        why += " (reasoning up to </think> is taken out, as is meant for earlier turns)"
    return f"{why}; {OWN_TEMPLATE}, one that writes all of the answer"


def _without_end(
    tokenizer: Any,
    rendered: Sequence[Rendered],
    endless: list[int],
    ends: Collection[int],
    checked: Checked,
    what: str,
    learned: bool,
) -> None:
    """Warns of an end of turn that is not an end token; where learned, none at all is refused."""
    one = rendered[endless[0]]
    last = one.ids[one.end - 1] if one.end > one.start else None
    marks = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
    named = ", ".join(repr(tokenizer.decode([token])) for token in ends) or "none"
    count = f"{len(endless)} of {len(rendered)} answers"
    if last is not None and last in marks:
        mark = tokenizer.convert_ids_to_tokens(last)
        message = (
            f"{what} ends an answer with {mark}, which ends no completion of this model (its "
            f"tokenizer and generation config name {named}): what is generated goes on until the "
            f"token limit ({count}). Set eos_token: {mark!r}"
        )
        checked.counts["never_stops"], checked.firsts["never_stops"] = len(endless), message
        return
    message = (
        f"{what}: ends {count} with no end token (the tokenizer and generation config name "
        f"{named}), but with {_short(one.text[-40:])}: a model that learns from it never stops. "
        "Let the template write {{ eos_token }} behind an assistant turn (chat_template), or set "
        "eos_token to the token that it writes there"
    )
    if learned:
        raise ScalpelError(message)


def _needs_empty(tokenizer: Any, what: str) -> bool:
    """Whether an empty system turn is what keeps the template from words of its own."""
    user = {"role": "user", "content": _MARK}
    without = render(tokenizer, [user], what=what)
    frame = None
    try:
        marked = render(tokenizer, [{"role": "system", "content": _MARK + "s"}, user])
        if _MARK + "s" in marked:
            frame = marked.replace(_MARK + "s", "", 1)
    except ScalpelError:
        pass  # the role is refused
    own = _own_words(tokenizer, without, frame)
    if own is None:
        return False
    if frame is not None:
        empty = render(tokenizer, [{"role": "system", "content": ""}, user])
        left = _own_words(tokenizer, empty, frame)
        if left is None:
            return True
        own = left
    raise ScalpelError(
        f"system_prompt = '': {what} writes {_short(own)} whatever the system prompt "
        f"is, so it cannot be switched off; set system_prompt to null to keep it, or "
        f"{OWN_TEMPLATE}"
    )


def _own_words(tokenizer: Any, text: str, frame: str | None) -> str | None:
    """What a template says before the first user's turn, beside its marks; None if nothing."""
    head = text.split(_MARK)[0]
    if frame is not None:  # what it has more than a system turn without any text
        bare = frame.split(_MARK)[0]
        first = shared_length(head, bare)
        last = shared_length(head[first:][::-1], bare[first:][::-1])
        more = _without_marks(tokenizer, head[first : len(head) - last]).strip()
        if re.search(r"\w", more):
            return more
    head = _without_marks(tokenizer, head)
    found = _SENTENCE.search(head)
    return None if found is None else head[found.start() :].split("\n")[0].strip()


def _without_marks(tokenizer: Any, text: str) -> str:
    for token in tokenizer.get_added_vocab():
        text = text.replace(token, "\n")
    return text
