"""Puts the stored weights of a checkpoint into a model that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mlflow_scalpel.errors import ScalpelError


@torch.no_grad()
def load_weights(model: Any, directory: Path) -> None:
    """Copy every tensor of the checkpoint in `directory` into `model`, in place.

    Loading a model anew costs more than its weights do. Only safetensors files are read, whole or
    sharded; tied weights are stored once and set once. Raises ScalpelError that names the tensor
    where names or shapes differ: then the checkpoint is of another model.
    """
    targets = model.state_dict(keep_vars=True)
    waiting = {tensor.data_ptr(): name for name, tensor in targets.items()}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                if name not in targets:
                    raise ScalpelError(
                        f"{file}: tensor {name} is none of {type(model).__name__}'s; "
                        "compare checkpoints of one model"
                    )
                tensor = stored.get_tensor(name)
                if tensor.shape != targets[name].shape:
                    raise ScalpelError(
                        f"{file}: tensor {name} has shape {tuple(tensor.shape)}, and the model's "
                        f"has {tuple(targets[name].shape)}; compare checkpoints of one model"
                    )
                targets[name].copy_(tensor)
                waiting.pop(targets[name].data_ptr(), None)
    if waiting:
        raise ScalpelError(
            f"{directory}: lacks the tensor {sorted(waiting.values())[0]}; "
            "the checkpoint is not whole"
        )
