"""One model in memory that is the base, or any checkpoint whose weights are put into it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlflow_scalpel.checkpoints.differences import differences, is_head, is_left_aside
from mlflow_scalpel.checkpoints.models.opening import (
    CannotOpen,
    check_loaded,
    load,
    misshapen,
    missing,
    open_model,
    other_settings,
    read_config,
    same_model,
    ties_head,
    unknown,
)
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.documents import CONFIG
from mlflow_scalpel.tensors.files import Header, TensorFiles
from mlflow_scalpel.tensors.names import canonical, of_a_tower
from mlflow_scalpel.tensors.quantised import FloatTensors

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads")
Shapes = dict[str, tuple[int, ...]]
Read = Callable[[str], Tensor]
_WITHOUT_VLLM = "evaluate it without vLLM (engine=hf): Transformers reads it as it is"


class SwappableModel:
    """A transformers model that is the base, or any checkpoint whose weights are swapped in.

    It is opened by the class that its config names: a model of images and texts too, which is then
    run on text alone. Raises CannotOpen where that cannot be done.
    """

    def __init__(self, base: Path, *, dtype: str = "float32", device: str = "cpu") -> None:
        self.base = base
        self.dtype = dtype
        self.device = device
        self._config = read_config(base)
        self._now: Path | None = None
        self.model: Any = None
        self._open(base, copy.deepcopy(self._config))

    def load_checkpoint(self, checkpoint: Path) -> None:
        """Make it the checkpoint; ScalpelError, and no change, for one of another model.

        Where only weights differ they are copied into the model. A checkpoint whose config makes
        something else of them (a grown vocabulary, untied embeddings, other positions), or which
        names them otherwise than this model does, is opened anew by its own config.
        """
        config = self._config
        if (checkpoint / CONFIG).is_file():
            config = read_config(checkpoint)
            self._check_like_base(checkpoint, config)
        if same_model(config, self._loaded):
            try:
                self._load(checkpoint)
                return
            except ScalpelError:
                if same_model(config, self._config):
                    raise
        self._open(checkpoint, config, TensorFiles(self.base).headers)

    def load_base(self) -> None:
        """Make it the base."""
        if self._now == self.base:
            return
        if same_model(self._config, self._loaded):
            self._load(self.base)
        else:
            self._open(self.base, copy.deepcopy(self._config))

    def _load(self, directory: Path) -> None:
        self._now = None  # should a tensor turn out to be unreadable when half of them are copied
        load_weights(self.model, directory, base=self.base)
        self._now = directory

    def _open(self, directory: Path, config: Any, ignored: Collection[str] | None = None) -> None:
        """Open the stored model in place of the present one."""
        settings = copy.deepcopy(config)
        dtype = getattr(torch, self.dtype)
        model = open_model(directory, dtype, config=config, ignored=ignored)
        self._check(directory, model)
        self.model, self._loaded, self._now = model.to(self.device), settings, directory

    def _check(self, directory: Path, model: Any) -> None:
        """Raise ScalpelError where the opened model is of no use."""

    def _check_like_base(self, checkpoint: Path, config: Any) -> None:
        """A checkpoint has its base's language model, whatever stands around it."""
        # Not by attribute: of a model whose layers differ, that one may not be asked for.
        ours, theirs = (one.get_text_config().to_dict() for one in (self._config, config))
        for name in _SIZES:
            sizes = theirs.get(name), ours.get(name)
            if sizes[0] != sizes[1]:
                raise ScalpelError(
                    f"{checkpoint}: its config.json has {name} = {sizes[0]}, and the base's has "
                    f"{sizes[1]}; take a checkpoint of this model"
                )


@torch.no_grad()
def load_weights(model: Any, directory: Path, *, base: Path | None = None) -> None:
    """Copy every tensor of the checkpoint in `directory` into `model`, in place.

    Loading a model anew costs more than its weights do. Only safetensors files are read, single or
    sharded; tied weights are stored once and set once; quantised ones are dequantised. Names are
    taken as they are, or without what stands before a language model in them: a checkpoint without
    the vision tower leaves the model's as it is. Where files name tensors otherwise than memory
    does (the experts of a mixture), Transformers reads them: the weights are then there twice for a
    while. Tensors that Transformers ignores in `base`, the model's own directory, it may ignore in
    the checkpoint too.

    Raises ScalpelError that names the tensor where names or shapes differ: then the checkpoint is
    of another model, and this one is left as it was.
    """
    targets = model.state_dict(keep_vars=True)
    stored = FloatTensors(directory)
    stored.check_complete()
    headers = {**stored.headers, **stored.integers}
    by_target = _paired(targets, headers)
    kept: set[str] = set()
    if by_target is not None:
        shapes: Shapes = {name: headers[one].shape for name, one in by_target.items()}
        if by_target.keys() != headers.keys():  # a model within another one
            kept = {name for name in targets if of_a_tower(name)}
        read: Read = partial(_read_tensor, stored, by_target)
    else:
        ignored = TensorFiles(base).headers if base is not None else {}
        state = _read_by_transformers(model, directory, ignored.keys())
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        read = state.__getitem__
    _check_weights(targets, shapes, read, directory, type(model).__name__, kept)
    for name in shapes:
        targets[name].copy_(read(name))


def check_same_tensors(directory: Path, base: Path) -> None:
    """Raise ScalpelError unless an engine that has loaded `base` can take over `directory`'s files.

    For engines that read files by themselves (vLLM), and leave what a file does not hold as it was.
    Stricter than `load_weights`: names and shapes must be the base's, and settings too, since the
    engine keeps those that it has. What engines leave aside may differ: a head that is tied to the
    embeddings on both sides, multi-token prediction heads, and buffers that are computed anew.
    """
    stored, wanted = TensorFiles(directory).headers, TensorFiles(base).headers
    for name in sorted(stored.keys() | wanted.keys()):
        if name in stored and name in wanted:
            if stored[name].shape != wanted[name].shape:
                shapes = stored[name].shape, wanted[name].shape
                raise ScalpelError(misshapen(directory, name, *shapes))
        elif not is_left_aside(name) and not (
            is_head(name) and ties_head(directory) and ties_head(base)
        ):
            raise ScalpelError(_other_tensors(directory, base, name, stored, wanted))
    if (directory / CONFIG).is_file():
        ours, theirs = read_config(base), read_config(directory)
        for setting in other_settings(ours, theirs):
            raise ScalpelError(
                f"{directory}: its config.json has {setting} = {getattr(theirs, setting, None)}, "
                f"and the base's {base} has {getattr(ours, setting, None)}, which vLLM would keep; "
                f"{_WITHOUT_VLLM}"
            )


def _other_tensors(
    directory: Path,
    base: Path,
    name: str,
    stored: Mapping[str, Header],
    wanted: Mapping[str, Header],
) -> str:
    """The reason why an engine cannot take over the weights, by names and shapes."""
    found = differences(wanted, stored)
    if not is_head(name) and found.unrelated is None and not found.missing and found.notes:
        return (
            f"{directory}: tensor {name} is stored otherwise than in the base {base} "
            f"({'; '.join(found.notes)}), and vLLM would leave weights as the base has them; "
            f"save it in the base's format (save_pretrained(..., save_original_format=True)), or "
            f"{_WITHOUT_VLLM}"
        )
    if name in stored:
        return unknown(directory, name, f"the base {base}")
    return missing(directory, name)


def _read_tensor(stored: FloatTensors, by_target: Mapping[str, str], name: str) -> Tensor:
    return stored.read(by_target[name])


def _paired(targets: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, str] | None:
    """Name in the files of each tensor in memory; None where Transformers has to tell.

    Names are equal, or equal without what stands before the language model: that holds only where
    it is one to one.
    """
    if targets.keys() >= stored.keys():
        return {name: name for name in stored}
    plain: dict[str, list[str]] = {}
    for name in targets:
        plain.setdefault(canonical(name), []).append(name)
    found: dict[str, str] = {}
    for name in stored:
        at = plain.get(canonical(name), [])
        if len(at) != 1 or at[0] in found:
            return None
        found[at[0]] = name
    return found


def _check_weights(
    targets: dict[str, Any],
    shapes: Shapes,
    read: Read,
    directory: Path,
    model: str,
    kept: Collection[str],
) -> None:
    """Compare names and shapes before the first copy: a refused checkpoint changes nothing."""
    for name, shape in shapes.items():
        if name not in targets:
            raise ScalpelError(unknown(directory, name, model))
        if shape != tuple(targets[name].shape):
            raise ScalpelError(misshapen(directory, name, shape, targets[name].shape))
    # Tied weights share their memory and are stored under one of their names, or under each.
    given: dict[int, str] = {}
    for name in sorted(shapes):
        first = given.setdefault(targets[name].data_ptr(), name)
        if first != name and targets[name].numel() and not torch.equal(read(first), read(name)):
            raise ScalpelError(
                f"{directory}: tensors {first} and {name} differ, and are one (tied) in {model}; "
                "take a checkpoint of this model, or an untied base"
            )
    absent = sorted(
        name for name in targets if targets[name].data_ptr() not in given and name not in kept
    )
    if absent:
        raise ScalpelError(missing(directory, absent[0]))


def _read_by_transformers(
    model: Any, directory: Path, ignored: Collection[str]
) -> dict[str, Tensor]:
    """The checkpoint's tensors under the names that they have in memory."""
    try:
        # With the model's own config, so that what is another model shows in names and shapes.
        other, info = load(directory, type(model), copy.deepcopy(model.config), model.dtype)
    except CannotOpen as error:
        raise ScalpelError(f"{error}; take a checkpoint of this model") from error
    check_loaded(directory, info, type(model).__name__, ignored)
    state: dict[str, Tensor] = other.state_dict()
    return state
