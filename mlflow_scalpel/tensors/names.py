"""Names of tensors, without what wrappers of a model put before or into them."""

from __future__ import annotations

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
