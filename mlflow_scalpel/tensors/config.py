"""The config.json of a model's directory, as far as the layout of its tensors asks for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = "config.json"


def read_config(directory: Path) -> Mapping[str, Any]:
    """What config.json holds; empty where there is none, or it cannot be read.

    Without it no tensor is cut and none is taken for tied: the weights are measured as they are
    stored. Who needs the model itself is told by Transformers what is wrong with the file.
    """
    try:
        config = json.loads((directory / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
