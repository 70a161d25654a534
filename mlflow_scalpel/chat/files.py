"""What a model's directory says of its chat: template, end tokens, context; and another's in place.

A recipe may give a base another template or end token. Then the base is used from a directory of
its own, with links to the files of the first and other settings: whatever opens it (the trainers,
vLLM, the evaluation) reads the same, and a trainer writes them into every checkpoint.
"""

from __future__ import annotations

import datetime
import difflib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from mlflow_scalpel.chat.dates import DEFAULT_DATE, dated
from mlflow_scalpel.chat.trial import check_bounded
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.remote_code import refused

TEMPLATE = "chat_template.jinja"
TOKENIZER = "tokenizer_config.json"
_SPECIAL = "special_tokens_map.json"
_CONFIG = "config.json"
_GENERATION = "generation_config.json"
# Further templates, by name, that Transformers would read beside the one.
_OTHER_TEMPLATES = ("chat_template.json", "additional_chat_templates", "chat_templates")
_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
# Kinds of scaled rotary embeddings whose config states the length that they reach.
_STATED = ("default", "llama3", "longrope", "su", "mrope", "proportional")


def load_tokenizer(directory: str | Path, date: datetime.date = DEFAULT_DATE, **how: Any) -> Any:
    """The tokenizer of a directory, whose chat template writes `date` where it writes one.

    What it saves is its template as it was. Raises what Transformers raises.
    """
    from transformers import AutoTokenizer

    with refused(directory):
        tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, **how)
    check_bounded(tokenizer, f"the chat template of {directory}")
    tokenizer.get_chat_template = partial(_dated_template, tokenizer, date)
    return tokenizer


def _dated_template(
    tokenizer: Any,
    date: datetime.date,
    chat_template: str | None = None,
    tools: list[Any] | None = None,
) -> str:
    own: str = type(tokenizer).get_chat_template(tokenizer, chat_template, tools)
    return dated(own, date)


def template_of(tokenizer: Any) -> str | None:
    """The chat template of a tokenizer: its default one where it has several."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template or None


def stored_template(directory: Path) -> str | None:
    """The chat template in a model's directory, without opening its tokenizer; None if none."""
    file = directory / TEMPLATE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = _read(directory / TOKENIZER).get("chat_template")
    if isinstance(template, list):  # named ones, in older files
        named = {one.get("name"): one.get("template") for one in template}
        template = named.get("default")
    return template or None


def stored_eos(directory: Path) -> str | None:
    """The end token that the tokenizer in a model's directory names; None if none."""
    token = _read(directory / TOKENIZER).get("eos_token")
    return token.get("content") if isinstance(token, dict) else token


def end_tokens(directory: Path, tokenizer: Any) -> list[int]:
    """IDs of the tokens that end a completion of the model in a directory.

    They are those of generation_config.json (of config.json where there is none), which may be a
    list, and the tokenizer's own.
    """
    file = directory / _GENERATION
    config = _read(file if file.is_file() else directory / _CONFIG)
    stated = config.get("eos_token_id") or config.get("text_config", {}).get("eos_token_id")
    found = [*_listed(stated), tokenizer.eos_token_id]
    return list(dict.fromkeys(token for token in found if token is not None))


def context_of(config: Any) -> int | None:
    """Longest text of a model in tokens, by its configuration; None where that states no length.

    A window of attention does not shorten it. Rotary embeddings that are scaled to a length that
    the config does not state (yarn, linear, dynamic) lengthen it by their factor, as in vLLM.
    """
    text = config.get_text_config()
    stated = next((n for name in _LENGTHS if (n := getattr(text, name, None))), None)
    if stated is None:
        return None
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    factor = scaling.get("factor")
    if kind in _STATED or not factor or "gemma3" in str(getattr(text, "model_type", "")):
        return int(stated)
    # With yarn `max_position_embeddings` may hold the length before or after it.
    before = scaling.get("original_max_position_embeddings") or stated
    return int(max(stated, before * factor))


def with_chat(
    directory: Path, into: Path, chat_template: str | None = None, eos_token: str | None = None
) -> Path:
    """The model of a directory with another chat template or end-of-turn token, made in `into`.

    Without either it is `directory` itself. Weights and all else are links. The end token is put
    before those that the model has: any of them ends a completion.

    Raises ScalpelError for an end token that the tokenizer does not know as one token.
    """
    if chat_template is None and eos_token is None:
        return directory
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    changed = (TOKENIZER, _SPECIAL, _CONFIG, _GENERATION, TEMPLATE, *_OTHER_TEMPLATES)
    for file in directory.iterdir():
        if file.is_file() and file.name not in changed:
            (into / file.name).symlink_to(file.resolve())
    settings = _read(directory / TOKENIZER)
    settings.pop("chat_template", None)
    special = _read(directory / _SPECIAL)
    config, generation = _read(directory / _CONFIG), _read(directory / _GENERATION)
    template = chat_template or template_of(tokenizer)
    if template is not None:
        (into / TEMPLATE).write_text(template, encoding="utf-8")
    if eos_token is not None:
        number = _number_of(tokenizer, eos_token, directory)
        before = end_tokens(directory, tokenizer)
        generation["eos_token_id"] = [number, *(token for token in before if token != number)]
        config["eos_token_id"] = number
        if isinstance(config.get("text_config"), dict):
            config["text_config"]["eos_token_id"] = number
        settings["eos_token"] = eos_token
        if special:
            special["eos_token"] = eos_token
    for name, fields in (
        (TOKENIZER, settings),
        (_SPECIAL, special),
        (_CONFIG, config),
        (_GENERATION, generation),
    ):
        if fields:
            text = json.dumps(fields, indent=2, ensure_ascii=False)
            (into / name).write_text(text + "\n", encoding="utf-8")
    return into


def _number_of(tokenizer: Any, token: str, directory: Path) -> int:
    vocabulary = tokenizer.get_vocab()
    if token in vocabulary:
        return int(vocabulary[token])
    special = list(tokenizer.get_added_vocab())
    near = difflib.get_close_matches(token, special, n=3) or special[:8]
    raise ScalpelError(
        f"eos_token = {token!r}: is not a token of {directory}, and the model has no embedding for "
        f"a new one; name one that it has, such as {', '.join(map(repr, near)) or 'its eos_token'}"
    )


def _listed(value: Any) -> list[int | None]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _read(file: Path) -> dict[str, Any]:
    """The fields of a JSON file; none where there is no such file."""
    if not file.is_file():
        return {}
    fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return fields
