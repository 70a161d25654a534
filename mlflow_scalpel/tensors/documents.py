"""JSON files that somebody else wrote, read so that nothing in them raises but a named error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_scalpel.errors import ScalpelError

_LARGEST = 256 * 1024 * 1024  # bytes; a trainer's history of a million steps is smaller


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises ScalpelError that names the file where it cannot be read, is not JSON, or is something
    else than an object.
    """
    try:
        size = file.stat().st_size
        if size > _LARGEST:
            raise ValueError(f"it has {size} bytes, more than any such file")
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise ScalpelError(
            f"{file}: is not a readable JSON file ({type(error).__name__}: {error}); "
            "save or copy the checkpoint again"
        ) from error
    if not isinstance(content, dict):
        raise ScalpelError(
            f"{file}: holds {type(content).__name__}, not a JSON object; save or copy the "
            "checkpoint again"
        )
    return content


CONFIG = "config.json"


def read_config(directory: Path, name: str = CONFIG) -> Mapping[str, Any]:
    """The content of config.json, or of another file; empty where there is none to read.

    Without it no tensor is cut and none is taken for tied: the weights are measured as they are
    stored. Whoever opens the model gets the fault of the file from Transformers.
    """
    try:
        config = json.loads((directory / name).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
