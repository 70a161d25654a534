"""Conversations as lists of turns: which turn is the problem, which the solution, what is context.

Two forms are taken: TRL's and OpenAI's (`role`, `content`) and ShareGPT's (`from`, `value`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

Message = dict[str, str]

EARLIER = "earlier_turns"  # key of a row: its messages before the problem, the system's included

_ROLES = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_TEXTS = ("text", "input_text", "output_text")
_CALLS = ("tool", "function", "ipython", "observation", "function_call", "tool_call")
_LOST = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")


class Unreadable(Exception):
    """A conversation that is not taken; says why and what would do."""


@dataclass(frozen=True)
class Conversation:
    """One conversation by role."""

    earlier: list[Message]
    """The system turn, where there is one, and all turns before the problem."""
    problem: str
    """The last user turn."""
    solution: str | None
    """The assistant turn after it; None where the conversation ends with the user."""


def conversation_of(value: Any) -> Conversation:
    """The conversation in a column; raises Unreadable for one that has another form."""
    messages = [_message(turn, number) for number, turn in enumerate(_turns(value))]
    for number, message in enumerate(messages):
        before = messages[number - 1]["role"] if number else None
        role = message["role"]
        if role == "system":
            if number:
                raise Unreadable(f"turn {number} is a system turn, and only the first may be one")
        elif role == before:
            raise Unreadable(f"turns {number - 1} and {number} are both of the {role}")
        elif role == "assistant" and before != "user":
            raise Unreadable("it begins with an assistant turn, and no user has asked")
        elif not message["content"].strip():
            raise Unreadable(f"turn {number}, of the {role}, is empty")
    if messages[-1]["role"] == "assistant" and _turns(value)[-1].get("weight", 1) == 0:
        raise Unreadable(
            f"turn {len(messages) - 1}, of the assistant, has weight 0, which says not to learn it"
        )
    solution = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
    if messages[-1]["role"] != "user":
        raise Unreadable("it has no user turn")
    problem = messages.pop()["content"]
    return Conversation(messages, problem, solution)


def question(row: dict[str, Any], system_prompt: str | None) -> list[Message]:
    """The messages that a row's solution answers: system prompt, earlier turns and the problem.

    The row's own system turn comes before `system_prompt`, which is for rows without one.
    """
    earlier: list[Message] = row.get(EARLIER) or []
    has_system = bool(earlier) and earlier[0]["role"] == "system"
    head = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    return [*([] if has_system else head), *earlier, {"role": "user", "content": row["problem"]}]


def _turns(value: Any) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Unreadable("it is a text and not a list of turns") from None
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
        lengths = {len(inner) for inner in value.values()}
        if len(lengths) == 1:  # a list of turns as `datasets` keeps some: a list for each key
            turns = zip(*value.values(), strict=True)
            value = [dict(zip(value, turn, strict=True)) for turn in turns]
    if not isinstance(value, list | tuple):
        raise Unreadable(f"it is {type(value).__name__} and not a list of turns")
    if not value:
        raise Unreadable("it has no turn")
    return list(value)


def _message(turn: Any, number: int) -> Message:
    if not isinstance(turn, dict) or not ({"role", "from"} & set(turn)):
        raise Unreadable(f"turn {number} has neither `role` and `content` nor `from` and `value`")
    key, content = ("role", "content") if "role" in turn else ("from", "value")
    role = turn[key]
    if role in _CALLS:
        raise Unreadable(f"turn {number} is of a {role}; calls of tools are not trained on")
    if role not in _ROLES:
        known = ", ".join(_ROLES)
        raise Unreadable(f"turn {number} has the {key} {role!r}, which is not one of {known}")
    if content not in turn and not set(_LOST) & set(turn):
        there = ", ".join(map(str, turn))
        raise Unreadable(f"turn {number} has no {content} beside its {key}, but {there}")
    lost = [key for key in _LOST if turn.get(key)]
    if lost:
        raise Unreadable(
            f"turn {number} has {lost[0]}, which would not be learned; write it into the content"
        )
    return {"role": _ROLES[role], "content": _content(turn.get(content), number)}


def _content(content: Any, number: int) -> str:
    if isinstance(content, list | tuple):
        return "".join(_part(part, number) for part in content)
    if content is None or isinstance(content, str):
        return content or ""
    raise Unreadable(f"turn {number} holds {type(content).__name__} and not a text")


def _part(part: Any, number: int) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXTS and isinstance(part.get("text"), str):
        return str(part["text"])
    raise Unreadable(f"turn {number} has a part of type {kind!r}; only texts are trained on")
