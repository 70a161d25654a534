"""Texts fixed in advance, rendered and tokenized once, on which KL is measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_scalpel.errors import ScalpelError


@dataclass(frozen=True)
class ProbeText:
    """One problem with its solution, as the base's chat template renders it."""

    ids: tuple[int, ...]
    """T token IDs, one beginning-of-sequence token at most."""
    answer: slice
    """Positions that predict the assistant's content and its end-of-turn token."""


@dataclass(frozen=True)
class Probe:
    """A named set of texts; `texts` names it, its digest and its template's in the tidy table."""

    name: str
    texts: str
    digest: str
    """First 16 hex digits of the SHA-256 of the texts and the system prompt."""
    pairs: tuple[tuple[str, str], ...]
    """Problem and solution of each text."""
    items: tuple[ProbeText, ...]


def build_probe(
    name: str,
    pairs: Sequence[tuple[str, str]],
    tokenizer: Any,
    *,
    system_prompt: str | None = None,
) -> Probe:
    """Render (problem, solution) pairs with the base's chat template.

    The same texts serve the base and all its checkpoints. Raises ScalpelError where the tokenizer
    has no chat template, or one that changes the prompt when the answer follows.
    """
    if not tokenizer.chat_template:
        raise ScalpelError(
            f"probe {name}: the base's tokenizer has no chat template; "
            "save one with it (tokenizer.chat_template = ...)"
        )
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    items = []
    for problem, solution in pairs:
        question = [*system, {"role": "user", "content": problem}]
        answered = [*question, {"role": "assistant", "content": solution}]
        prompt = _ids(tokenizer, question, add_generation_prompt=True)
        whole = _ids(tokenizer, answered, add_generation_prompt=False)
        if whole[: len(prompt)] != prompt:
            raise ScalpelError(
                f"probe {name}: the chat template renders {problem[:60]!r} otherwise once an "
                "answer follows, so the answer's tokens cannot be told from the prompt's"
            )
        end = _end_of_turn(whole, len(prompt), tokenizer.eos_token_id)
        items.append(ProbeText(tuple(whole), slice(len(prompt) - 1, end)))
    digest = hashlib.sha256(
        json.dumps([system_prompt, *map(list, pairs)], ensure_ascii=False).encode()
    ).hexdigest()[:16]
    template = hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()[:16]
    texts = f"{name} sha256:{digest} template:{template}"
    return Probe(name, texts, digest, tuple(pairs), tuple(items))


def _ids(tokenizer: Any, messages: list[dict[str, str]], **how: bool) -> list[int]:
    rendered = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **how)
    return list(rendered["input_ids"])


def _end_of_turn(ids: list[int], start: int, eos: int | None) -> int:
    """Index of the last end-of-turn token of the answer, or of its last token without one."""
    for index in range(len(ids) - 1, start - 1, -1):
        if ids[index] == eos:
            return index
    return len(ids) - 1
