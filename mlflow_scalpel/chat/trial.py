"""Tries a chat template in a process of its own, before it is rendered in this one.

A template is a program: `{{ 'x' * 9999999999 }}` or loops within loops would take all memory, or
all time, of whoever renders it, and Python cannot be interrupted in the middle of either. The
process, which imports no more than Jinja, may use ten seconds of a processor and a gigabyte.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from mlflow_scalpel.errors import ScalpelError

CPU_SECONDS = 10
MEMORY = 1 << 30  # bytes of address space
LONGEST = 50_000_000  # characters of all that is rendered
_WALL_SECONDS = 300.0  # on a machine that has other things to do, too
_TOO_LONG = 3  # what the process ends with

_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from mlflow_scalpel.chat.trial import main; main()"
)
_USER, _ANSWER = (
    {"role": "user", "content": "What is 1 + 1?"},
    {"role": "assistant", "content": "2"},
)
_SHAPES = (
    [_USER],
    [{"role": "system", "content": "Be brief."}, _USER],
    [_USER, _ANSWER],
    [{"role": "system", "content": "Be brief."}, *[_USER, _ANSWER] * 4, _USER],
)


def check_bounded(tokenizer: Any, what: str) -> None:
    """Raise ScalpelError where the chat template of a tokenizer takes too much, or for ever.

    Each template is tried once.
    """
    template = getattr(tokenizer, "chat_template", None)
    tokens = _tokens(tokenizer)
    for text in template.values() if isinstance(template, dict) else [template]:
        if isinstance(text, str) and not _is_bounded(text, tokens):
            raise _unbounded(what, "a few short conversations")


def check_bounded_with(
    tokenizer: Any, conversations: Sequence[list[dict[str, Any]]], what: str
) -> None:
    """As `check_bounded`, with the conversations that are about to be rendered."""
    template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    if isinstance(template, str) and not _ends(template, _tokens(tokenizer), conversations):
        raise _unbounded(what, f"{len(conversations)} conversations of the data")


def _unbounded(what: str, which: str) -> ScalpelError:
    return ScalpelError(
        f"{what}: takes more than {CPU_SECONDS} seconds, {MEMORY >> 30} GB or {LONGEST} characters "
        f"for {which}, as a template does that was made to stop whoever renders it; it is not "
        "rendered: give another one (chat_template), or take another model"
    )


def _tokens(tokenizer: Any) -> str:
    return json.dumps(getattr(tokenizer, "special_tokens_map", {}), default=str)


@functools.lru_cache(maxsize=256)
def _is_bounded(template: str, tokens: str) -> bool:
    return _ends(template, tokens, _SHAPES)


def _ends(template: str, tokens: str, conversations: Sequence[Any]) -> bool:
    """Whether a template renders the conversations within the bounds."""
    given = json.dumps([template, tokens, list(conversations)], default=str)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            input=given.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_WALL_SECONDS,
            start_new_session=True,  # Ctrl-C is for the one who started it
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode == 1:  # nothing that the template did
        raise RuntimeError(f"the trial of a chat template failed: {done.stderr.decode()[-2000:]}")
    return done.returncode == 0


def main() -> None:
    """Render what stands in the input, within bounds; a template that raises has an end, too."""
    import resource

    import jinja2

    given = json.loads(sys.stdin.buffer.read())
    template, tokens, conversations = given[0], json.loads(given[1]), given[2]
    if sys.platform == "linux":  # elsewhere there is no such limit of memory
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, hard))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 2))
    length = 0
    try:
        compiled = _environment().from_string(template)
        for messages in conversations:
            for prompt in (True, False):
                try:
                    text = compiled.render(
                        messages=messages, add_generation_prompt=prompt, tools=None, **tokens
                    )
                except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError):
                    continue  # is reported where it is rendered
                length += len(text)
                if length > LONGEST:
                    os._exit(_TOO_LONG)
    except (jinja2.TemplateError, RecursionError, SyntaxError):
        pass
    except (MemoryError, OverflowError):
        os._exit(_TOO_LONG)
    os._exit(0)


def _environment() -> Any:
    """A Jinja environment like that of Transformers, of which no more is needed than its costs."""
    import jinja2.sandbox
    from jinja2.ext import Extension

    class Generation(Extension):
        """`{% generation %} ... {% endgeneration %}`, which marks what an assistant says."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, default=str)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: form
    return environment
