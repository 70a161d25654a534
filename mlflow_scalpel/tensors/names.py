"""Names of tensors, without what wrappers of a model put before or into them."""

from __future__ import annotations

import re

# torch.compile, DataParallel and DistributedDataParallel, activation checkpointing, FSDP: parts of
# a name that say how the model was run, and nothing of what it is.
_WRAPPERS = frozenset(
    {"_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module"}
)
_PEFT = "base_model.model."


def unwrapped(name: str) -> str:
    """The name without the parts that wrappers add, as `save_pretrained` would have written it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return ".".join(parts).removeprefix(_PEFT) or name


# Parts at the beginning of a name that say within what a language model stands: nothing, a model
# with a head, or a model of images and texts. Versions of Transformers write them differently.
_AROUND = frozenset({"model", "language_model", "text_model"})
_TOWER = re.compile(r"(?:^|[._])(?:vision|visual|image|audio|speech|multi_?modal|mm|vit)(?:[._]|$)")


def canonical(name: str) -> str:
    """The name without what stands before it, in which versions and families differ.

    `model.language_model.layers.0.mlp.up_proj.weight`, `language_model.model.layers.0...` and
    `model.layers.0...` are one tensor: `layers.0.mlp.up_proj.weight`.
    """
    parts = unwrapped(name).split(".")
    while len(parts) > 2 and parts[0] in _AROUND:
        del parts[0]
    return ".".join(parts)


def of_a_tower(name: str) -> bool:
    """Whether the tensor is of what sees or hears in front of a language model, by its name."""
    return _TOWER.search(name.rpartition(".")[0]) is not None
