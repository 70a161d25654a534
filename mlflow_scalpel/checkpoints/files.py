"""The files of a directory that are the checkpoint, and whether they are complete."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow_scalpel.checkpoints.external.layouts import why_none
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.documents import CONFIG, read_object
from mlflow_scalpel.tensors.files import (
    INDEX,
    SINGLE,
    WEIGHTS,
    TensorFiles,
    is_adapter,
    weight_files,
)

# Everything that Transformers and PEFT need to open a model, its tokenizer and its processor.
KEPT = (
    WEIGHTS, ".json", ".jinja", ".txt", ".md",
    ".model", ".tiktoken", ".bpe", ".spm", ".vocab", ".codes", ".tokenizer",  # tokenizers
)  # fmt: skip
# A folder with one of these is part of the model: a processor's second tokenizer and the like.
_PARTS = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
_TEMPLATES = "additional_chat_templates"
# What else a trainer leaves there: larger than the weights, and pickles but for the first. It is
# left behind unless asked for.
TRAINER_STATE = (
    "trainer_state.json",
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "training_args.bin",
)
# Files of ours and of MLflow beside the checkpoint's own in a LoggedModel.
MANIFEST = "manifest.json"
POINTER = "pointer.json"
MLMODEL = "MLmodel"
NOT_CONTENT = (MANIFEST, POINTER, MLMODEL)
# Configurations in which Transformers looks for `auto_map`.
_CONFIGS = (
    CONFIG,
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


def checkpoint_files(directory: Path, *, trainer_state: bool = False) -> list[Path]:
    """The files that make up the checkpoint in `directory` and in folders of it, sorted by name.

    With `trainer_state` also what only resuming needs. Raises ScalpelError where there are no
    safetensors weights or no config, where either cannot be read, or where a file is a link out of
    the directory.
    """
    return _look(directory, trainer_state)[0]


def left_out(directory: Path) -> list[str]:
    """Notes on files in the directory, or named in it, that are not stored; a line each."""
    return _look(directory, trainer_state=False)[1]


def name_in(directory: Path, file: Path) -> str:
    """Name of a file of the checkpoint in `directory` in manifests and stores: a/b.json."""
    return file.relative_to(directory).as_posix()


def is_inner_name(name: str) -> bool:
    """Whether a name like those of `name_in` leads to a place within the checkpoint."""
    path = PurePosixPath(name)
    return (
        path.as_posix() == name
        and not path.is_absolute()
        and "\0" not in name
        and name != "."
        and ".." not in path.parts
    )


def _look(directory: Path, trainer_state: bool) -> tuple[list[Path], list[str]]:
    if not directory.is_dir():
        raise ScalpelError(f"{directory}: there is no such directory; give a checkpoint's")
    states = {file for pattern in TRAINER_STATE for file in directory.glob(pattern)}
    try:
        own = sorted(
            file
            for folder in (directory, *_folders(directory))
            for file in folder.iterdir()
            if file.is_file() and _is_kept(file.name) and file not in states
            if file.name not in NOT_CONTENT or folder != directory
        )
    except OSError as error:
        raise ScalpelError(
            f"{directory}: cannot be read ({error}); check its permissions"
        ) from error
    for file in own:
        _refuse_link_out_of(file, directory)
    if not any(file.suffix == WEIGHTS for file in own) and not (directory / INDEX).is_file():
        raise ScalpelError(f"{directory}: {why_none(directory)}")
    weights = weight_files(directory)
    if not is_adapter(directory):
        if not (directory / CONFIG).is_file():
            raise ScalpelError(f"{directory}: holds no {CONFIG}; save it beside the weights")
        read_object(directory / CONFIG)
    code, notes = code_files(directory)
    unread = [file.name for file in own if file.suffix == WEIGHTS and file not in weights]
    if unread:
        notes.append(
            f"{', '.join(unread)}: not among the weights that Transformers loads, and left out"
        )
    files = [file for file in own if file.suffix != WEIGHTS or file in weights] + code
    if not is_adapter(directory) and not (directory / INDEX).is_file():
        notes += [
            f"{file.name}: is stored under this name, and from_pretrained reads {SINGLE} alone: "
            "rename it before you load it"
            for file in weights
            if file.name != SINGLE
        ]
    odd = [file for file in files if not _is_plain(file.name)]
    if odd:
        notes.append(f"{', '.join(map(repr, (f.name for f in odd)))}: not UTF-8, and left out")
    if trainer_state:
        files += states
    files = sorted(set(files) - set(odd))
    for file in (*code, *(states if trainer_state else ())):
        _refuse_link_out_of(file, directory)
    return files, notes


def _folders(directory: Path) -> list[Path]:
    """Folders that are part of the model: more chat templates, parts of a processor."""
    return [
        folder
        for folder in directory.iterdir()
        if folder.is_dir() and not folder.is_symlink()
        if folder.name == _TEMPLATES
        or (
            any((folder / part).is_file() for part in _PARTS)
            and not (folder / CONFIG).is_file()
            and not any(folder.glob(f"*{WEIGHTS}"))
        )
    ]


def _is_kept(name: str) -> bool:
    """By its suffix; Mistral's tokenizers have their version in its place (tokenizer.model.v3)."""
    return Path(name).suffix in KEPT or name.startswith("tokenizer.model.")


def _is_plain(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8, which no store takes as a name
        return False
    return True


def _refuse_link_out_of(file: Path, directory: Path) -> None:
    if not file.is_symlink():
        return
    target = file.resolve()
    home = directory.resolve()
    # The hub's cache keeps a snapshot as links into the blobs of the same repository.
    homes = (home, *(parent / "blobs" for parent in home.parents[1:2]))
    if not any(target.is_relative_to(home) for home in homes):
        raise ScalpelError(
            f"{file}: is a link to {target}, outside of the checkpoint; put the file itself there"
        )


def check_complete(directory: Path) -> None:
    """Raise ScalpelError that names the file where the checkpoint's weights are not all there.

    Compares the header of every safetensors file with the file's size, and the index with the
    shards; no tensor is read.
    """
    checkpoint_files(directory)
    TensorFiles(directory)


def fingerprint(files: Sequence[Path], directory: Path) -> str:
    """32 hex digits over names, sizes and times of files, which change when one is written."""
    seen = [
        (name_in(directory, file), (stat := file.stat()).st_size, stat.st_mtime_ns)
        for file in files
    ]
    return hashlib.sha256(repr(seen).encode("utf-8", "backslashreplace")).hexdigest()[:32]


def code_files(directory: Path) -> tuple[list[Path], list[str]]:
    """The Python files that the configurations name, with those that these import relatively.

    They are found by reading, stored as they are, and never run here: whoever loads the model
    decides that, by Transformers' `trust_remote_code`. The second list names what is missing, a
    sentence each. Raises ScalpelError where
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
                waiting.append((directory / _file_of_module(named["module"]), config))
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


def _file_of_module(module: str) -> str:
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
            target = package / _file_of_module(module.strip("."))
            inside = target.with_suffix("") / "__init__.py"
            yield inside if inside.is_file() and not target.is_file() else target
        else:  # from . import part
            parts = re.findall(r"(\w+)(?:\s+as\s+\w+)?", names.strip("() "), re.ASCII)
            files = (package / f"{part}.py" for part in parts)
            yield from (part for part in files if part.is_file())
