"""Opens the model and the tokenizer that an evaluation asks."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers

from mlflow_scalpel.chat import load_tokenizer
from mlflow_scalpel.errors import ScalpelError


def open_tokenizer(model: str, template_date: date) -> Any:
    """The tokenizer of a directory or hub name, whose template writes that date.

    Raises ScalpelError where it cannot be had.
    """
    try:
        return load_tokenizer(model, template_date, local_files_only=Path(model).is_dir())
    except (OSError, ValueError) as error:
        raise _not_loaded(model, error) from error


def open_model(model: str, dtype: str, device: str | None) -> Any:
    """The model of a directory or hub name on a device, by default a GPU where there is one.

    Raises ScalpelError where it cannot be had.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model,
            dtype=getattr(torch, dtype),
            local_files_only=Path(model).is_dir(),
            trust_remote_code=False,
            use_safetensors=True,  # the other formats are pickles
        )
    except (OSError, ValueError) as error:
        raise _not_loaded(model, error) from error
    return loaded.to(device)


def _not_loaded(model: str, error: Exception) -> ScalpelError:
    return ScalpelError(
        f"model {model}: it cannot be loaded: {error}. Give a directory with config.json, "
        "tokenizer and safetensors files, or a name on the hub"
    )
