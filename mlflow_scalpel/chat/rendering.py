"""Conversations as a chat template renders them, and where an answer begins in the tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from mlflow_scalpel.chat.trial import check_bounded, check_bounded_with
from mlflow_scalpel.errors import ScalpelError

Messages = list[dict[str, Any]]
"""Turns of a conversation, `{"role": ..., "content": ...}` each."""

OWN_TEMPLATE = "give another one (chat_template, the text or the path of a .jinja file)"
_BATCH = 1000  # texts that are tokenized at a time


@dataclass(frozen=True)
class Rendered:
    """A conversation whose last turn is an answer."""

    prompt: str
    """The turns before the answer, with the generation prompt."""
    text: str
    """The conversation with its answer."""
    boundary: int
    """Characters of `text` that are the prompt's."""
    ids: tuple[int, ...]
    """T token IDs of `text`; a template writes the beginning-of-sequence token itself."""
    offsets: tuple[tuple[int, int], ...]
    """First character of each token and the one behind its last; empty for a tokenizer in Python,
    which does not say."""
    start: int
    """Index of the answer's first token: the first that holds a character behind the boundary, also
    where it holds the prompt's last ones too (a line break that is merged with the next)."""
    end: int
    """Index behind the answer's last token, which is its end-of-turn token where there is one: a
    template may write a line break after it."""
    merged: bool = False
    """Whether the answer's first token holds the prompt's last characters too."""

    @property
    def differing(self) -> str:
        """The end of the prompt that is not in the conversation with its answer; mostly empty."""
        return self.prompt[self.boundary :]


def render(
    tokenizer: Any, messages: Messages, *, answer: bool = False, what: str = "the chat template"
) -> str:
    """The turns as text; with the generation prompt, unless `answer`: then the last is an answer.

    Raises ScalpelError, which begins with `what`, where there is no template, or where it refuses
    the turns.
    """
    if not tokenizer.chat_template:
        raise ScalpelError(
            f"{what}: the tokenizer has no chat template, so nobody can say how a problem is put "
            f"to the model; take a model that was tuned to chat, or {OWN_TEMPLATE}"
        )
    check_bounded(tokenizer, what)
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not answer
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise ScalpelError(_refusal(tokenizer, messages, answer, what, error)) from error
    return str(text)


def render_answered(
    tokenizer: Any,
    conversations: Sequence[tuple[Messages, str]],
    *,
    what: str = "the chat template",
) -> list[Rendered]:
    """Each prompt with its answer, rendered and tokenized. Raises ScalpelError as `render` does."""
    found: list[Rendered] = []
    for start in range(0, len(conversations), _BATCH):
        batch = conversations[start : start + _BATCH]
        answered = [[*turns, {"role": "assistant", "content": answer}] for turns, answer in batch]
        check_bounded_with(tokenizer, answered, what)
        prompts = [render(tokenizer, turns, what=what) for turns, _ in batch]
        texts = [render(tokenizer, turns, answer=True, what=what) for turns in answered]
        prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        fast = bool(getattr(tokenizer, "is_fast", False))
        tokens = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=fast)
        offsets = tokens["offset_mapping"] if fast else [()] * len(batch)
        found += [
            _rendered(tokenizer, *parts)
            for parts in zip(prompts, texts, prompt_ids, tokens["input_ids"], offsets, strict=True)
        ]
    return found


def prompt_opening(tokenizer: Any, tag: str = "<think>") -> str:
    """What of an answer the generation prompt writes already: from the tag that it opens.

    Empty for most templates; `<think>` and a line break for those of reasoning models such as
    DeepSeek-R1. A tag that it closes again is not open.
    """
    turns = [{"role": "user", "content": "?"}]
    prompt = render(tokenizer, turns)
    opened = prompt.rfind(tag)
    closing = tag.replace("<", "</", 1)
    return "" if opened < 0 or closing in prompt[opened:] else prompt[opened:]


def shared_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many items both begin with."""
    if second[: len(first)] == first:  # mostly so
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))


def _rendered(
    tokenizer: Any,
    prompt: str,
    text: str,
    prompt_ids: list[int],
    ids: list[int],
    offsets: Sequence[tuple[int, int]],
) -> Rendered:
    boundary = shared_length(prompt, text)
    shared = shared_length(prompt_ids, ids)
    start = shared
    if offsets:
        start = next((at for at, (_, end) in enumerate(offsets) if end > boundary), len(ids))
        # The offsets of some tokenizers leave blanks out, at which a token may reach over.
        if shared == start - 1:
            start = shared
    end = _behind_answer(tokenizer.decode, ids, start)
    places = tuple((first, last) for first, last in offsets)
    merged = boundary == len(prompt) and shared < len(prompt_ids)
    return Rendered(prompt, text, boundary, tuple(ids), places, start, end, merged)


def _behind_answer(decode: Callable[[list[int]], str], ids: list[int], start: int) -> int:
    """Index behind the last token from `start` on that is not blank."""
    for index in range(len(ids) - 1, start - 1, -1):
        if decode([ids[index]]).strip():
            return index + 1
    return len(ids)


def _refusal(tokenizer: Any, messages: Messages, answer: bool, what: str, error: Exception) -> str:
    """The message about turns that a template cannot render, with what would help."""
    roles = ", ".join(str(turn["role"]) for turn in messages)
    why = f"{what}: it refuses a conversation of the turns {roles}: {error}"
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"{what}: is not a valid Jinja template (line {error.lineno}: {error}); correct it"
    others = [turn for turn in messages if turn["role"] != "system"]
    if len(others) < len(messages):
        try:
            tokenizer.apply_chat_template(others, tokenize=False, add_generation_prompt=not answer)
        except (jinja2.TemplateError, TypeError, ValueError):
            pass  # the system turn is not the reason
        else:
            return (
                f"{why}. It takes them without the system turn: set system_prompt to null (and "
                f"write what it says into the problems), or {OWN_TEMPLATE}"
            )
    return f"{why}; give data of other turns, or {OWN_TEMPLATE}"
