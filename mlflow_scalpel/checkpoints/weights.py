"""Puts the stored weights of a checkpoint into a model that is there already."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.files import TensorFiles

Shapes = dict[str, tuple[int, ...]]
Read = Callable[[str], Tensor]


@torch.no_grad()
def load_weights(model: Any, directory: Path, *, base: Path | None = None) -> None:
    """Copy every tensor of the checkpoint in `directory` into `model`, in place.

    Loading a model anew costs more than its weights do. Only safetensors files are read, whole or
    sharded; tied weights are stored once and set once. Where files name tensors otherwise than
    memory does (the experts of a mixture), Transformers reads them: the weights are then there
    twice for a while. Tensors that Transformers ignores in `base`, the model's own directory, it
    may ignore in the checkpoint too.

    Raises ScalpelError that names the tensor where names or shapes differ: then the checkpoint is
    of another model, and this one is left as it was.
    """
    targets = model.state_dict(keep_vars=True)
    stored = TensorFiles(directory)
    if targets.keys() >= stored.headers.keys():
        shapes: Shapes = {name: header.shape for name, header in stored.headers.items()}
        read: Read = stored.read
    else:
        ignored = TensorFiles(base).headers if base is not None else {}
        state = _read_by_transformers(model, directory, ignored.keys())
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        read = state.__getitem__
    _check(targets, shapes, read, directory, type(model).__name__)
    for name in shapes:
        targets[name].copy_(read(name))


def check_same_tensors(directory: Path, base: Path) -> None:
    """Raise ScalpelError unless `directory` stores tensors of the names and shapes of `base`.

    For engines that read files by themselves, and leave what a file lacks as it was. Stricter than
    `load_weights`: weights that are tied, or named otherwise, must be stored as the base has them.
    """
    stored, wanted = TensorFiles(directory).headers, TensorFiles(base).headers
    for name in sorted(stored.keys() | wanted.keys()):
        if name not in wanted:
            raise ScalpelError(_unknown(directory, name, f"the base {base}"))
        if name not in stored:
            raise ScalpelError(_missing(directory, name))
        if stored[name].shape != wanted[name].shape:
            raise ScalpelError(_misshapen(directory, name, stored[name].shape, wanted[name].shape))


def _check(
    targets: dict[str, Any], shapes: Shapes, read: Read, directory: Path, model: str
) -> None:
    """All names and shapes before the first copy: a refused checkpoint leaves the model whole."""
    for name, shape in shapes.items():
        if name not in targets:
            raise ScalpelError(_unknown(directory, name, model))
        if shape != tuple(targets[name].shape):
            raise ScalpelError(_misshapen(directory, name, shape, targets[name].shape))
    # Tied weights share their memory and are stored under one of their names, or under each.
    given: dict[int, str] = {}
    for name in sorted(shapes):
        first = given.setdefault(targets[name].data_ptr(), name)
        if first != name and targets[name].numel() and not torch.equal(read(first), read(name)):
            raise ScalpelError(
                f"{directory}: tensors {first} and {name} differ, and are one (tied) in {model}; "
                "take a checkpoint of this model, or an untied base"
            )
    missing = sorted(name for name in targets if targets[name].data_ptr() not in given)
    if missing:
        raise ScalpelError(_missing(directory, missing[0]))


def _read_by_transformers(
    model: Any, directory: Path, ignored: Collection[str]
) -> dict[str, Tensor]:
    """The checkpoint's tensors under the names that they have in memory."""
    try:
        # With the model's own config, so that what is another model shows in names and shapes.
        other, info = type(model).from_pretrained(
            directory,
            config=copy.deepcopy(model.config),
            dtype=model.dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ScalpelError(
            f"{directory}: Transformers cannot read it as {type(model).__name__} ({error}); "
            "take a checkpoint of this model"
        ) from error
    for name, shape, wanted in info["mismatched_keys"]:
        raise ScalpelError(_misshapen(directory, name, shape, wanted))
    for name in sorted(set(info["unexpected_keys"]) - set(ignored)):
        raise ScalpelError(_unknown(directory, name, type(model).__name__))
    for name in sorted(info["missing_keys"]):
        raise ScalpelError(_missing(directory, name))
    state: dict[str, Tensor] = other.state_dict()
    return state


def _unknown(directory: Path, name: str, model: str) -> str:
    return f"{directory}: tensor {name} is none of {model}'s; take a checkpoint of this model"


def _misshapen(directory: Path, name: str, shape: Any, wanted: Any) -> str:
    return (
        f"{directory}: tensor {name} has shape {tuple(shape)}, and the model's has "
        f"{tuple(wanted)}; take a checkpoint of this model"
    )


def _missing(directory: Path, name: str) -> str:
    return f"{directory}: lacks the tensor {name}; it is not whole"
