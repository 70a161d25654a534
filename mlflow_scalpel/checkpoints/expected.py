"""What a checkpoint's own configuration asks for, as Transformers builds it; no weight is made."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from mlflow_scalpel.checkpoints.opening import class_of, errors_told, read_config
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.names import canonical


def expected_shapes(directory: Path) -> dict[str, tuple[int, ...]] | None:
    """Shape of each tensor by its canonical name, of the model that `config.json` describes.

    None where Transformers cannot build it: a family that it does not know, whose code would have
    to be run, or that predicts no tokens.
    """
    import torch

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        try:
            with errors_told():  # a configuration may raise anything in the code of some family
                config = read_config(directory)
                model: Any = class_of(config)._from_config(config)
        except ScalpelError:
            return None
        return {canonical(name): tuple(one.shape) for name, one in model.state_dict().items()}


def ties_head(directory: Path) -> bool:
    """Whether the output head is the embeddings (`tie_word_embeddings`); False if not known."""
    try:
        with errors_told():
            return bool(read_config(directory).get_text_config().tie_word_embeddings)
    except ScalpelError:
        return False
