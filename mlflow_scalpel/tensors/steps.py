"""The training step that a directory's name gives, as trainers write it."""

from __future__ import annotations

import re

# checkpoint-400 (Transformers), global_step_400 (verl), global_step400_hf (OpenRLHF), epoch_2
# (torchtune), step_400 (prime-rl), iter_0000400 (Megatron), 400
_STEP = re.compile(r"^(?:(?:checkpoint|global_step|step|epoch|iter)[-_]?)?(\d{1,18})(?:_hf)?$")


def step_of_name(name: str) -> int | None:
    """The step in the name of a directory, such as 400 of `checkpoint-400`; None without one."""
    found = _STEP.match(name)
    return int(found[1]) if found else None
