"""What a checkpoint's own configuration asks for, as Transformers builds it; no weight is made."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from mlflow_scalpel.checkpoints.differences import canonical


def expected_shapes(directory: Path) -> dict[str, tuple[int, ...]] | None:
    """Shape of each tensor by its canonical name, of the model that `config.json` describes.

    None where Transformers cannot build it: a family that it does not know, or whose code would
    have to be run.
    """
    import torch
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    # What is wrong with a configuration may raise anything in the code of some family.
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        try:
            config = AutoConfig.from_pretrained(
                directory, trust_remote_code=False, local_files_only=True
            )
        except Exception:  # noqa: BLE001
            return None
        for kind in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModel):
            try:
                model: Any = kind.from_config(config, trust_remote_code=False)
            except Exception:  # noqa: BLE001
                continue
            return {
                canonical(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()
            }
    return None


def ties_head(directory: Path) -> bool:
    """Whether the model's output head is its embeddings (`tie_word_embeddings`)."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        return bool(config.get_text_config().tie_word_embeddings)
    except Exception:  # noqa: BLE001 - not known to be tied
        return False
