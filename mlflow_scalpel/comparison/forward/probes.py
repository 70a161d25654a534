"""Texts fixed in advance, rendered and tokenized once, on which KL is measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow_scalpel.chat import (
    check_answered,
    render_answered,
    settled,
    template_of,
)
from mlflow_scalpel.data.conversations import EARLIER, Message, question
from mlflow_scalpel.data.files import Placed, read_file
from mlflow_scalpel.data.values import NotText, as_text
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
    """First 16 hex digits of the SHA-256 of what was rendered: texts, system prompt, date, and
    whatever else the template writes."""
    pairs: tuple[tuple[str, str], ...]
    """Problem and solution of each text."""
    items: tuple[ProbeText, ...]
    """The texts that are measured, in the order of `pairs`."""
    failure: str = ""
    """Why the texts could not be rendered, so that there are no items."""
    left_out: tuple[str, ...] = ()
    """Why each of the others is not: they are longer than the model's context."""
    warnings: dict[str, str] = field(default_factory=dict, compare=False)
    """Warnings about them, by code."""


def build_probe(
    name: str,
    pairs: Sequence[tuple[str, str]],
    tokenizer: Any,
    *,
    earlier: Sequence[list[Message]] | None = None,
    system_prompt: str | None = None,
    context: int | None = None,
) -> Probe:
    """Render (problem, solution) pairs with the tokenizer's chat template.

    `earlier` has the turns before each problem; a system turn among them stands in place of
    `system_prompt`.

    The same texts serve the base and all its checkpoints; those of more than `context` tokens are
    left out. Raises ScalpelError where the tokenizer has no chat template, or one that refuses,
    cuts or leaves out what was given.
    """
    what = f"probe {name}: the chat template"
    conversations = []
    for number, (problem, solution) in enumerate(pairs):
        row = {"problem": problem, EARLIER: earlier[number] if earlier else []}
        turns = question(row, system_prompt)
        conversations.append((settled(tokenizer, turns), solution))
    rendered = render_answered(tokenizer, conversations, what=what)
    ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    checked = check_answered(tokenizer, conversations, rendered, ends, what=what, learned=False)
    # An end that is not an end token matters in training: here it is one token more.
    warnings = {
        code: message for code, message in checked.warnings().items() if code != "never_stops"
    }
    items, left_out = [], []
    for number, ((problem, _), one) in enumerate(zip(pairs, rendered, strict=True)):
        if context is not None and len(one.ids) > context:
            left_out.append(
                f"problem {number} of probe {name} ({problem[:60]!r}) has {len(one.ids)} tokens "
                f"with its solution, and the model's context has {context}"
            )
            continue
        items.append(ProbeText(one.ids, slice(max(one.start - 1, 0), one.end - 1)))
    if left_out:
        warnings["too_long"] = (
            f"{len(left_out)} of {len(pairs)} texts of probe {name} are longer than the model's "
            f"context, and are not measured; the first: {left_out[0]}"
        )
    digest = text_digest(json.dumps([[one.text, one.ids] for one in rendered], ensure_ascii=False))
    texts = f"{name} sha256:{digest} template:{text_digest(template_of(tokenizer) or '')}"
    return Probe(
        name,
        texts,
        digest,
        tuple(pairs),
        tuple(items),
        left_out=tuple(left_out),
        warnings=warnings,
    )


def failed_probe(name: str, pairs: Sequence[tuple[str, str]], failure: str) -> Probe:
    """Texts that the base's tokenizer cannot render, of which nothing is measured."""
    digest = text_digest(json.dumps([list(pair) for pair in pairs], ensure_ascii=False))
    texts = f"{name} sha256:{digest}"
    return Probe(name, texts, digest, tuple(pairs), (), failure)


def text_digest(text: str) -> str:
    """First 16 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_texts(file: Path) -> list[tuple[str, str]]:
    """Problem and solution of each row of a file (JSON lines, CSV, Parquet) with these two columns.

    Raises ScalpelError that names the line for a file of another form.
    """
    if not file.is_file():
        raise ScalpelError(f"texts = {file}: there is no such file; give one of JSON lines")
    try:
        placed = read_file(file)
    except ScalpelError as error:
        raise ScalpelError(str(error).replace("data.file = ", "texts = ", 1)) from error
    if not placed:
        raise ScalpelError(f"texts = {file}: there is no row in it; give one JSON object per line")
    return [(_text(file, one, "problem"), _text(file, one, "solution")) for one in placed]


def _text(file: Path, one: Placed, column: str) -> str:
    try:
        text = as_text(one.row.get(column), column, "user" if column == "problem" else "assistant")
    except NotText as error:
        raise ScalpelError(
            f"texts = {file}: {one.place}: {column} {error}; give a file with this text in a "
            f"column {column}"
        ) from error
    if text is None:
        raise ScalpelError(
            f"texts = {file}: {one.place} has no {column}; give each row the columns problem and "
            "solution"
        )
    return text
