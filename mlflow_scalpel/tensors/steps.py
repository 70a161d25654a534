"""The training step that a directory's name gives, as trainers write it."""

from __future__ import annotations

import re
from pathlib import Path

# checkpoint-400 (Transformers), checkpoint_400, global_step_400 (verl), global_step400_hf
# (OpenRLHF), step_400 (prime-rl, NeMo RL), epoch_2 (torchtune), iter_0000400 (Megatron), ba400
# (Composer), 400
_STEP = re.compile(
    r"(?:(?:checkpoint|ckpt)[-_]?)?"
    r"(?:(?:global[-_]?steps?|steps?|epoch|iter|iteration|update|ba)[-_=]?)?"
    r"(\d{1,18})"
    r"(?:[-_](?:hf|huggingface|merged))?",
    re.ASCII,
)
_EPOCH = re.compile(r"((?:(?:checkpoint|ckpt)[-_]?)?epoch[-_=]?)\d+")
# Folders that trainers put between the step's directory and the model:
# global_step_20/actor/huggingface (verl), global_step_20/policy (SkyRL).
INNER = frozenset(
    {
        "actor", "policy", "huggingface", "hf", "hf_model", "model", "weights", "lora_adapter",
        "adapter", "consolidated", "pretrained", "artifacts",
    }
)  # fmt: skip


def step_of_name(name: str) -> int | None:
    """The step in the name of a directory, such as 400 of `checkpoint-400`; None without one."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found else None


def step_of_directory(directory: Path) -> int | None:
    """The step that a directory's name gives among its neighbours.

    Epochs that count from 0 (torchtune: epoch_0 is saved after the first) are counted from 1:
    step 0 is the model that training began with.
    """
    step = step_of_name(directory.name)
    epoch = _EPOCH.match(directory.name)
    if step is None or epoch is None:
        return step
    first = directory.absolute().with_name(f"{epoch[1]}0{directory.name[epoch.end() :]}")
    return step + 1 if first.is_dir() else step


def counts_epochs(directory: Path) -> bool:
    """Whether the number in the directory's name is that of an epoch."""
    return _EPOCH.match(directory.name) is not None


def step_of_path(path: Path) -> int | None:
    """The step of a model's directory: in its own name, or in that of the step that it is part of.

    20 of `global_step_20/actor/huggingface`; None where neither says one.
    """
    path = path.absolute()
    while path.name in INNER:
        path = path.parent
    return step_of_directory(path)
