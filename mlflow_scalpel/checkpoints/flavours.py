"""Models that MLflow's own flavours stored: where their files are, and what belongs together.

`mlflow.transformers` puts the weights into `model/` and the tokenizer into `components/tokenizer`;
`mlflow.pyfunc` (as Transformers' callback logs checkpoints) a directory under `artifacts/`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from mlflow_scalpel.checkpoints import cache
from mlflow_scalpel.checkpoints.artifact_store import place
from mlflow_scalpel.checkpoints.layout import (
    KEPT,
    MANIFEST,
    MLMODEL,
    checkpoint_files,
    is_inner_name,
    name_in,
)
from mlflow_scalpel.checkpoints.layouts import model_in
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.files import WEIGHTS

_COMPONENTS = ("tokenizer", "processor", "image_processor", "feature_extractor")
_TOKENIZER = "tokenizer_config.json"
_LARGEST = 1 << 20  # bytes of an MLmodel


def opened(directory: Path) -> Path:
    """The directory that Transformers can open of a model that MLflow's own flavours stored.

    The directory itself where it is no such model, or one of ours. Where weights and tokenizer lie
    apart, they are put together in the cache; no weight is copied where the file system can link.

    Raises ScalpelError where the MLmodel cannot be read, or names a place outside of the model.
    """
    if not (directory / MLMODEL).is_file() or (directory / MANIFEST).is_file():
        return directory
    flavours = _flavours(directory / MLMODEL)
    transformers = _mapping(flavours.get("transformers"))
    for key in ("peft_adaptor", "model_binary"):
        if key in transformers:
            model = model_in(_inside(directory, transformers[key]))
            return _with_components(directory, model)
    if "source_model_name" in transformers:
        name, revision = (
            transformers["source_model_name"],
            transformers.get("source_model_revision"),
        )
        raise ScalpelError(
            f"{directory}: was logged without its weights, as a reference to {name} on the hub; "
            f"give {name}{f'@{revision}' if revision else ''} itself"
        )
    artifacts = _mapping(_mapping(flavours.get("python_function")).get("artifacts"))
    for entry in artifacts.values():
        folder = _inside(directory, _mapping(entry).get("path"))
        if folder.is_dir():
            return model_in(folder)
    return directory


def _flavours(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"it has {file.stat().st_size} bytes")
        content = yaml.safe_load(file.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ScalpelError(
            f"{file}: is not a readable MLmodel ({type(error).__name__}: {error}); log the model "
            "again"
        ) from error
    return _mapping(_mapping(content).get("flavors"))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _inside(directory: Path, name: Any) -> Path:
    if not isinstance(name, str) or not is_inner_name(name):
        raise ScalpelError(
            f"{directory / MLMODEL}: names {name!r}, which is not a place within the model; "
            "log the model again"
        )
    return directory / name


def _with_components(directory: Path, model: Path) -> Path:
    """The model's directory, with tokenizer and processor from the components where it has none."""
    components = [
        folder for name in _COMPONENTS if (folder := directory / "components" / name).is_dir()
    ]
    if (model / _TOKENIZER).is_file() or not components:
        return model
    files = {name_in(model, file): file for file in checkpoint_files(model)}
    for folder in components:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and not file.is_symlink() and file.suffix in KEPT:
                files.setdefault(name_in(folder, file), file)
    states = [(name, str(file), (s := file.stat()).st_ino, s.st_size, s.st_mtime_ns)
              for name, file in sorted(files.items())]  # fmt: skip
    key = f"together-{hashlib.sha256(json.dumps(states).encode()).hexdigest()}"

    def fill(partial: Path) -> None:
        for name, file in files.items():
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            place(file, target, None if file.suffix == WEIGHTS else "copy")

    return cache.keep(key, sum(file.stat().st_size for file in files.values()), fill)
