"""Texts fixed in advance, rendered and tokenized once, on which KL is measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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
        end = _last_of_answer(tokenizer, whole, len(prompt))
        items.append(ProbeText(tuple(whole), slice(len(prompt) - 1, end)))
    digest = hashlib.sha256(
        json.dumps([system_prompt, *map(list, pairs)], ensure_ascii=False).encode()
    ).hexdigest()[:16]
    template = hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()[:16]
    texts = f"{name} sha256:{digest} template:{template}"
    return Probe(name, texts, digest, tuple(pairs), tuple(items))


def other_tokenizer(base: Path, checkpoint: Path) -> str | None:
    """Why the checkpoint's tokens are not the base's, or None; one that has no tokenizer is fine.

    Texts are tokenized once, with the base's; KL between models that mean different tokens by the
    same number would be a number without a meaning. Raises ScalpelError where it cannot be loaded.
    """
    from transformers import AutoTokenizer

    if not (checkpoint / "tokenizer_config.json").is_file():
        return None
    first, second = base / "tokenizer.json", checkpoint / "tokenizer.json"
    if first.is_file() and second.is_file() and first.read_bytes() == second.read_bytes():
        return None
    ours = AutoTokenizer.from_pretrained(base).get_vocab()
    try:
        theirs = AutoTokenizer.from_pretrained(checkpoint).get_vocab()
    except Exception as error:  # tokenizers raises it bare; told in the row
        raise ScalpelError(
            f"{checkpoint}: its tokenizer cannot be loaded ({type(error).__name__}: {error}); "
            "copy the base's tokenizer files into it"
        ) from error
    differing = sorted(token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token))
    if not differing:
        return None
    return (
        f"{checkpoint}: its tokenizer is not the base's ({len(theirs)} tokens against {len(ours)}; "
        f"{len(differing)} differ, the first is {differing[0]!r}), so KL has no meaning; compare "
        "models of one tokenizer"
    )


def read_texts(file: Path) -> list[tuple[str, str]]:
    """Problem and solution of each line of a JSONL file with the fields `problem` and `solution`.

    Raises ScalpelError that names the line for a file of another form.
    """
    pairs = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ScalpelError(
            f"texts = {file}: cannot be read as text ({error}); give a JSONL file"
        ) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            pairs.append((str(fields["problem"]), str(fields["solution"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ScalpelError(
                f"texts = {file}: line {number} is no JSON object with the fields problem and "
                f"solution ({type(error).__name__}: {error})"
            ) from error
    if not pairs:
        raise ScalpelError(f"texts = {file}: is empty; give one JSON object a line")
    return pairs


def _ids(tokenizer: Any, messages: list[dict[str, str]], **how: bool) -> list[int]:
    rendered = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **how)
    return list(rendered["input_ids"])


def _last_of_answer(tokenizer: Any, ids: list[int], start: int) -> int:
    """Index of the answer's last token, its end-of-turn token where the template writes one.

    That need not be the tokenizer's eos_token, and a template may put a line break after it.
    """
    for index in range(len(ids) - 1, start - 1, -1):
        if tokenizer.decode([ids[index]]).strip():
            return index
    return len(ids) - 1
