"""Python files that a checkpoint needs because its own configurations name them (`auto_map`).

They are found by reading, stored as they are, and never run here: whoever loads the model decides
that, by Transformers' `trust_remote_code`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow_scalpel.tensors.documents import read_object

# Configurations in which Transformers looks for `auto_map`.
_CONFIGS = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
)
_GENERATE = "custom_generate"  # a folder of code that `generate(custom_generate=...)` runs
_CLASS = re.compile(r"(?P<module>\w+(?:\.\w+)*)\.\w+", re.ASCII)
# `from .part import name`, `import .part`, `from ..part.deeper import name`
_RELATIVE = re.compile(r"^\s*(?:from|import)\s+(\.+)([\w.]*)\s*(?:import\s+(.+))?$", re.MULTILINE)


def code_files(directory: Path) -> tuple[list[Path], list[str]]:
    """The Python files that the configurations name, with those that these import relatively.

    The second list says what is named and is not there, a sentence each. Raises ScalpelError where
    a configuration is not readable JSON.
    """
    found: dict[Path, None] = {}
    notes = []
    waiting = []
    for config in _CONFIGS:
        if not (directory / config).is_file():
            continue
        for reference in _references(read_object(directory / config).get("auto_map")):
            repository, dashes, place = reference.rpartition("--")
            named = _CLASS.fullmatch(place)
            if named is None:
                notes.append(f"auto_map of {config} names {reference!r}, which is not a class")
            elif dashes:
                notes.append(f"{config} takes its code from {repository} on the hub")
            else:
                waiting.append((directory / _file(named["module"]), config))
    if (directory / _GENERATE).is_dir():
        waiting += [(file, _GENERATE) for file in sorted((directory / _GENERATE).glob("*.py"))]
    while waiting:
        file, by = waiting.pop()
        if file in found:
            continue
        if not file.is_file():
            notes.append(
                f"{file.relative_to(directory).as_posix()} is named in {by} and is not there: "
                "without it the model does not load"
            )
            continue
        found[file] = None
        waiting += [(part, file.name) for part in _imported(file, directory)]
    return sorted(found), list(dict.fromkeys(notes))


def _references(auto_map: Any) -> Iterator[str]:
    """All class references: values are one, or a list of a slow and a fast class (or null)."""
    for value in auto_map.values() if isinstance(auto_map, dict) else ():
        for reference in value if isinstance(value, list) else [value]:
            if isinstance(reference, str):
                yield reference


def _file(module: str) -> str:
    return PurePosixPath(*module.split(".")).as_posix() + ".py"


def _imported(file: Path, directory: Path) -> Iterator[Path]:
    """Files within the directory that a Python file imports relatively."""
    text = file.read_text(encoding="utf-8", errors="replace")
    for dots, module, names in _RELATIVE.findall(text):
        package = file.parent
        for _ in dots[1:]:
            package = package.parent
        if not package.resolve().is_relative_to(directory.resolve()):
            continue
        if module:
            target = package / _file(module.strip("."))
            inside = target.with_suffix("") / "__init__.py"
            yield inside if inside.is_file() and not target.is_file() else target
        else:  # from . import part
            parts = re.findall(r"(\w+)(?:\s+as\s+\w+)?", names.strip("() "), re.ASCII)
            files = (package / f"{part}.py" for part in parts)
            yield from (part for part in files if part.is_file())
