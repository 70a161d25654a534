"""Opens the model and the tokenizer that an evaluation asks."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import torch

from mlflow_scalpel.chat import load_tokenizer
from mlflow_scalpel.checkpoints.models.opening import CannotOpen
from mlflow_scalpel.checkpoints.models.swapping import SwappableModel
from mlflow_scalpel.comparison.tokenizers import added_tokens, other_tokenizer
from mlflow_scalpel.errors import ScalpelError


def open_tokenizer(model: str, template_date: date) -> Any:
    """The tokenizer of a directory or hub name, whose template writes that date.

    Raises ScalpelError where it cannot be had.
    """
    try:
        return load_tokenizer(model, template_date, local_files_only=Path(model).is_dir())
    except (OSError, ValueError) as error:
        raise _not_loaded(model, error) from error


def open_model(model: Path, dtype: str, device: str | None) -> SwappableModel:
    """The model of a directory on a device, by default a GPU where there is one.

    Raises ScalpelError where it cannot be had.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return SwappableModel(model, dtype=dtype, device=device)
    except CannotOpen as error:
        raise _not_loaded(str(model), error) from error


def check_tokenizer(base: Path, checkpoint: Path) -> None:
    """Raise ScalpelError unless the base's tokenizer reads and writes for the checkpoint too."""
    reason = other_tokenizer(base, checkpoint)
    if reason is not None:
        raise ScalpelError(reason)
    added = added_tokens(base, checkpoint)
    if added:
        raise ScalpelError(
            f"{checkpoint}: its tokenizer has tokens of text that the base's has not "
            f"({len(added)}, the first is {added[0]!r}): what it answers would be read without "
            "them; evaluate it by itself (model=...)"
        )


def _not_loaded(model: str, error: Exception) -> ScalpelError:
    return ScalpelError(
        f"model {model}: it cannot be loaded: {error}. Give a directory with config.json, "
        "tokenizer and safetensors files, or a name on the hub"
    )
