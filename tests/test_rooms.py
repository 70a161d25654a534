"""The order of the rooms: a module imports only rooms before its own, and no circle is anywhere.

Imports within functions count as those at the top of a module do: a circle that is hidden in a
function is a circle.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "mlflow_scalpel"

# From the first to the last; what stands in one set may use each other, without a circle.
ORDER = (
    {"credentials", "links", "units"},
    {"errors"},
    {"extras", "remote_code", "run_warnings", "server_errors"},
    {"tensors"},
    {"metrics"},
    {"recipes"},
    {"chat", "data"},
    {"checkpoints"},
    {"runs"},
    {"comparison"},
    {"evaluation"},
    {"views"},
    {"training"},
    {"server"},
    {"evaluator", "cli"},
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}


def modules() -> dict[str, Path]:
    found = {}
    for file in (ROOT / PACKAGE).rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(name: str, file: Path, known: dict[str, Path]) -> set[str]:
    """The modules of this package that a file imports, wherever in it, types alone excepted."""
    tree = ast.parse(file.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{name}: imports are absolute"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in known else node.module for one in inner}
    return {one for one in found if one in known and one not in (name, PACKAGE)}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(name, file, known) for name, file in known.items()}


def room(name: str) -> str:
    return name.split(".")[1]


def test_every_room_has_its_place(graph):
    assert {room(name) for name in graph if name != PACKAGE} == set(RANK)


def test_a_room_uses_only_those_before_it(graph):
    wrong = [
        f"{name} -> {other}"
        for name, others in graph.items()
        if name != PACKAGE
        for other in others
        if room(other) != room(name) and RANK[room(other)] >= RANK[room(name)]
    ]
    assert not wrong


def test_there_is_no_circle(graph):
    """Taking away what imports nothing that is left, again and again, leaves nothing."""
    left = {name: set(others) for name, others in graph.items()}
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    # What only leads to a circle is taken away from the other end.
    while ends := left.keys() - {one for others in left.values() for one in others}:
        left = {name: others for name, others in left.items() if name not in ends}
    assert not sorted(left)
