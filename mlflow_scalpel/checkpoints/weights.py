"""Puts the stored weights of a checkpoint into a model that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mlflow_scalpel.errors import ScalpelError


def stored_tensors(directory: Path) -> dict[str, Any]:
    """The open safetensors file that holds each tensor of the checkpoint in `directory`, by name.

    Raises ScalpelError that names a file that is not whole.
    """
    found: dict[str, Any] = {}
    for file in sorted(directory.glob("*.safetensors")):
        try:
            handle = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ScalpelError(
                f"{file}: cannot be read ({error}); save or copy the checkpoint again"
            ) from error
        found.update(dict.fromkeys(handle.keys(), handle))
    return found


@torch.no_grad()
def load_weights(model: Any, directory: Path) -> None:
    """Copy every tensor of the checkpoint in `directory` into `model`, in place.

    Loading a model anew costs more than its weights do. Only safetensors files are read, whole or
    sharded; tied weights are stored once and set once. Raises ScalpelError that names the tensor
    where names or shapes differ: then the checkpoint is of another model.
    """
    targets = model.state_dict(keep_vars=True)
    stored = stored_tensors(directory)
    _check(targets, stored, directory, type(model).__name__)
    for name, file in stored.items():
        targets[name].copy_(file.get_tensor(name))


def _check(targets: dict[str, Any], stored: dict[str, Any], directory: Path, model: str) -> None:
    """All names and shapes before the first copy: a refused checkpoint leaves the model whole."""
    for name, file in stored.items():
        if name not in targets:
            raise ScalpelError(
                f"{directory}: tensor {name} is none of {model}'s; take a checkpoint of this model"
            )
        shape, wanted = tuple(file.get_slice(name).get_shape()), tuple(targets[name].shape)
        if shape != wanted:
            raise ScalpelError(
                f"{directory}: tensor {name} has shape {shape}, and the model's has {wanted}; "
                "take a checkpoint of this model"
            )
    # Tied weights share their memory and are stored under one of their names, or under each.
    given: dict[int, str] = {}
    for name in sorted(stored):
        first = given.setdefault(targets[name].data_ptr(), name)
        if first != name and targets[name].numel() and not _same(stored, first, name):
            raise ScalpelError(
                f"{directory}: tensors {first} and {name} differ, and are one (tied) in {model}; "
                "take a checkpoint of this model, or an untied base"
            )
    missing = sorted(name for name in targets if targets[name].data_ptr() not in given)
    if missing:
        raise ScalpelError(f"{directory}: lacks the tensor {missing[0]}; it is not whole")


def _same(stored: dict[str, Any], first: str, second: str) -> bool:
    one, other = (stored[name].get_tensor(name) for name in (first, second))
    return torch.equal(one, other)
