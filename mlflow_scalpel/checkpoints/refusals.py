"""Why the weights of a checkpoint are not those of a model, in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# What trainers and older versions store beside a model, and what no forward pass of it reads:
# tables of positions and masks, heads that predict further tokens or a reward's value.
_UNUSED = re.compile(
    r"rotary_emb\.inv_freq$|\.(?:attn|attention|self_attn)\.(?:masked_)?bias$|position_ids$"
    r"|^(?:model\.)?mtp\.|(?:^|\.)(?:v_head|value_head|score|reward_head)\."
)


def unused(name: str) -> bool:
    """Whether a model that has no such tensor is the same without it."""
    return _UNUSED.search(name) is not None


def unknown(directory: Path, name: str, model: str) -> str:
    """A tensor that the model does not have."""
    return f"{directory}: tensor {name} is none of {model}'s; take a checkpoint of this model"


def misshapen(directory: Path, name: str, shape: Any, wanted: Any) -> str:
    """A tensor of another shape than the model's."""
    return (
        f"{directory}: tensor {name} has shape {tuple(shape)}, and the model's has "
        f"{tuple(wanted)}; take a checkpoint of this model"
    )


def missing(directory: Path, name: str) -> str:
    """A tensor that the model has, and the files do not."""
    return f"{directory}: lacks the tensor {name}; it is not whole"
