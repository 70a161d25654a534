"""Frozen weights: set so before training, and proved to be so at every checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.recipes.trainers import Freeze
from mlflow_scalpel.tensors.names import counterparts, select
from mlflow_scalpel.tensors.quantised import FloatTensors
from mlflow_scalpel.tensors.sources import read_source, sources

METRIC = "frozen/changed_elements"
UNIT = "elements"
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Trained:
    """Which tensors of a model training may change, and which it may not."""

    trainable: int
    """Elements of the tensors that are trained."""
    frozen: int
    """Elements of the tensors that are not."""
    frozen_names: list[str] = field(default_factory=list)
    """Their names, as a checkpoint of the model has them."""

    def params(self) -> dict[str, int]:
        """Counts for the run's params."""
        return {
            "parameters_trained": self.trainable,
            "parameters_frozen": self.frozen,
            "tensors_frozen": len(self.frozen_names),
        }


def apply_freeze(model: Any, freeze: Freeze | None) -> Trained:
    """Have only those parameters of a Transformers model trained that `freeze` allows.

    Raises ScalpelError for layers or modules that the model does not have, for tied embeddings of
    which one is to be frozen and the other trained, and where nothing would be left to train.
    """
    parameters = dict(model.named_parameters())
    if freeze is not None:
        frozen = _frozen(model, parameters, freeze)
        for name, parameter in parameters.items():
            parameter.requires_grad_(name not in frozen)
        if len(frozen) == len(parameters):
            raise ScalpelError("train.freeze: freezes all weights, so nothing would be trained")
    sizes = {True: 0, False: 0}
    for parameter in parameters.values():
        sizes[parameter.requires_grad] += elements(parameter)
    names = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    return Trained(sizes[True], sizes[False], _stored_names(model, parameters, names))


def elements(parameter: Any) -> int:
    """Elements of a whole parameter, of which ZeRO-3 may have only a shard here."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def changed_elements(base: Path, checkpoint: Path, names: list[str]) -> dict[str, int]:
    """Elements of each named tensor whose bits differ between base and checkpoint; only those.

    The base's tensor is first cast to the checkpoint's dtype, as it was when training loaded it.
    Raises ScalpelError where a tensor is missing or of another shape.
    """
    before, after = FloatTensors(base), FloatTensors(checkpoint)
    held = counterparts(names, after.headers)
    stored = {name: name if name in after.headers else held.get(name, "") for name in names}
    if missing := next((name for name in names if not stored[name]), None):
        raise ScalpelError(
            f"{checkpoint}: has no tensor {missing}, which is frozen, so that it cannot be compared"
        )
    of_base = sources(stored.values(), after, before)
    changed = {}
    for name in names:
        wt = after.read(stored[name])
        w0 = read_source(before, of_base[stored[name]], wt)
        bits = _BITS[wt.element_size()]
        if count := int((w0.view(bits) != wt.contiguous().view(bits)).sum()):
            changed[name] = count
    return changed


def complaint(changed: dict[str, int], step: int) -> str:
    """The message of a run whose frozen weights have changed."""
    name, count = next(iter(changed.items()))
    return (
        f"step {step}: {len(changed)} frozen tensors differ from the base, first of all {name} in "
        f"{count} elements: the checkpoints are not those of a model with frozen weights; look "
        "for what writes to weights without a gradient (tied weights, averaging, a loaded state)"
    )


def _frozen(model: Any, parameters: dict[str, Any], freeze: Freeze) -> set[str]:
    by_identity = {id(parameter): name for name, parameter in parameters.items()}
    embeddings = by_identity[id(model.get_input_embeddings().weight)]
    output = model.get_output_embeddings()
    head = embeddings if output is None else by_identity[id(output.weight)]
    if head == embeddings and freeze.lm_head != freeze.embeddings:
        raise ScalpelError(
            f"train.freeze: embeddings are {freeze.embeddings} and lm_head is {freeze.lm_head}, "
            "but this model ties them: they are one matrix; give both the same"
        )
    chosen = set(select(parameters, freeze.layers, freeze.modules))
    frozen = chosen if freeze.mode == "freeze" else set(parameters) - chosen
    at_ends = {embeddings: freeze.embeddings, head: freeze.lm_head}
    for name, state in at_ends.items():
        assert name not in chosen  # else two fields would decide about one tensor
        frozen.discard(name)
        if state == "frozen":
            frozen.add(name)
    return frozen


def _stored_names(model: Any, parameters: dict[str, Any], names: list[str]) -> list[str]:
    """What `save_pretrained` calls these parameters, some of which it splits (experts) or joins.

    One that it joins with others which are not among them keeps its name.
    """
    from transformers.core_model_loading import revert_weight_conversion

    def stored(names: Iterable[str]) -> dict[str, Any]:
        shapes = {name: getattr(one, "ds_shape", one.shape) for name, one in parameters.items()}
        empty = {name: torch.empty(shapes[name], device="meta") for name in names}
        return revert_weight_conversion(model, empty) if empty else empty

    all_stored, own = stored(parameters), stored(names)
    same = (n in all_stored and one.shape == all_stored[n].shape for n, one in own.items())
    if all(same):
        return names if set(own) == set(names) else list(own)
    return names
