"""One model in memory that is the base, or any checkpoint that is put into its place."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from mlflow_scalpel.checkpoints.opening import open_model, read_config, same_model
from mlflow_scalpel.checkpoints.weights import load_weights
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.files import TensorFiles

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads")


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
        if (checkpoint / "config.json").is_file():
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
