"""Differences between the tensors of a checkpoint and its base's, by names and shapes alone.

Trainers drop heads that they do not train, pad or grow the vocabulary, fuse experts, rename
prefixes and add heads of their own: that is noted, and the checkpoint is what it is. Only what
shares no weights with the base was not trained from it.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from mlflow import MlflowClient

from mlflow_scalpel.checkpoints.logging.spool import CheckpointEntry
from mlflow_scalpel.checkpoints.manifest import Manifest
from mlflow_scalpel.checkpoints.models.opening import expected_shapes, ties_head
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.run_warnings import print_warning, warning_tag
from mlflow_scalpel.tensors.names import canonical, located

Shape = tuple[int, ...]

_EXPERTS = re.compile(r"\.(?:experts|block_sparse_moe|moe|mlp_experts)\.")
_PREDICTORS = "multi-token prediction heads"
_BUFFERS = "buffers that are computed anew"
_HEAD = "an output head or embeddings, which may be tied with the other,"
# What a tensor that only one side has may be, the first that fits; a name, and what it is called.
_KINDS = (
    (re.compile(r"(?:^|\.)(?:mtp|nextn|mtp_layers|eh_proj|enorm|hnorm|shared_head)(?:\.|$)"),
     _PREDICTORS),
    (re.compile(r"(?:^|\.)(?:v_head|value_head|value_model|critic|score|reward_head)(?:\.|$)"),
     "a value or reward head"),
    (re.compile(r"rotary|inv_freq|masked_bias|position_ids|attn\.bias$|freqs_c(?:is|os)"),
     _BUFFERS),
    (re.compile(r"scale|qweight|qzeros|g_idx|absmax|quant_|_blocks$|zero_point"),
     "quantised weights"),
    (re.compile(r"vision|visual|image|multi_modal|mm_projector|patch_embed"), "a vision tower"),
    (re.compile(r"audio|speech|talker|code2wav|token2wav"), "parts for audio"),
    (re.compile(r"lora_|modules_to_save"), "an adapter's weights"),
    (re.compile(r"lm_head|embed_out|output_layer|embed_tokens|wte|word_embeddings|embed_in"),
     _HEAD),
)  # fmt: skip
_VOCABULARY = re.compile(r"embed|lm_head|wte|output_layer|word_embeddings|bias$")
_SHARE = 0.5  # of the base's elements whose shapes are found, below which nothing is shared


class _Shaped(Protocol):
    @property
    def shape(self) -> Shape: ...


@dataclass(frozen=True)
class Differences:
    """The differences between a checkpoint's tensors and its base's."""

    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """Names in the base of tensors that are missing for no known reason."""
    heads: tuple[str, ...] = ()
    """Names in the base of a missing output head or embeddings, which may be tied."""
    reshaped: tuple[str, ...] = ()
    """Names of tensors that have another shape and are not a vocabulary."""
    unrelated: str | None = None
    """The reason why it shares no weights with the base; None where it does."""


class _Tensors:
    """The shapes of a model's tensors by their canonical names, and where in the model they are."""

    def __init__(self, tensors: Mapping[str, _Shaped]) -> None:
        self.shapes = _by_canonical(tensors)
        self._located = located(self.shapes)

    def layer(self, name: str) -> int | None:
        """The layer of the language model that a tensor is in."""
        return self._located[name].layer

    def kind(self, name: str) -> str | None:
        """The kind of a tensor that only one side may have; None for weights of every model."""
        return _PREDICTORS if self._located[name].kind == "extra" else _kind(name)

    def elements(self, names: Iterable[str]) -> int:
        """Number of elements of the tensors together."""
        return sum(math.prod(self.shapes[name]) for name in names)


def differences(base: Mapping[str, _Shaped], checkpoint: Mapping[str, _Shaped]) -> Differences:
    """Compare names and shapes of the tensors of a base and of a checkpoint of it."""
    before, after = _Tensors(base), _Tensors(checkpoint)
    old, new = before.shapes, after.shapes
    notes = []
    if len(old.keys() & new.keys()) > len(base.keys() & checkpoint.keys()):
        notes.append("the prefix of the tensors' names differs from the base's")
    paired = {name for name in old.keys() & new.keys() if old[name] == new[name]}
    unrelated = _why_unrelated(before, after, paired)
    if unrelated is not None:
        return Differences(unrelated=unrelated)
    reshaped = sorted((old.keys() & new.keys()) - paired)
    grown = [name for name in reshaped if _is_vocabulary(name, before, after)]
    if grown:
        name = max(grown, key=lambda one: len(old[one]))
        notes.append(f"the vocabulary has {new[name][0]} rows, and the base's {old[name][0]}")
    others = [name for name in reshaped if name not in grown]
    lost, added = old.keys() - new.keys(), new.keys() - old.keys()
    fused_before, fused_after = _stored_otherwise(
        before, after, {*lost, *others}, {*added, *others}
    )
    if fused_before:
        experts = all(_EXPERTS.search(name) for name in fused_before)
        what = "experts" if experts else "some weights of the layers"
        notes.append(
            f"{what} are stored as {len(fused_after)} tensors, and the base's as "
            f"{len(fused_before)}, with as many elements"
        )
    lost, added = lost - fused_before, added - fused_after
    others = [name for name in others if name not in fused_before]
    notes += [f"{name} has shape {new[name]}, and the base's {old[name]}" for name in others[:2]]
    missing, known = _by_kind(before, lost)
    heads = known.get(_HEAD, set())
    notes += [f"without {what} of the base ({some(names)})" for what, names in known.items()]
    more, known = _by_kind(after, added)
    notes += [f"with {what} that the base does not have ({some(n)})" for what, n in known.items()]
    if more:
        notes.append(f"with {len(more)} tensors that the base does not have ({some(more)})")
    stored_as = {canonical(name): name for name in base}

    def as_stored(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(stored_as.get(name, name) for name in sorted(names))

    return Differences(tuple(notes), as_stored(missing), as_stored(heads), as_stored(others))


def _by_canonical(tensors: Mapping[str, _Shaped]) -> dict[str, Shape]:
    """Shapes by name without wrappers and leading containers, where that stays unique."""
    short = {name: canonical(name) for name in tensors}
    count = Counter(short.values())
    return {
        short[name] if count[short[name]] == 1 else name: tuple(tensor.shape)
        for name, tensor in tensors.items()
    }


def _why_unrelated(before: _Tensors, after: _Tensors, paired: set[str]) -> str | None:
    """The reason why no weights are shared: no matrix of the layers pairs, nor do the shapes."""
    old, new = before.shapes, after.shapes
    if any(len(old[name]) >= 2 and before.layer(name) is not None for name in paired):
        return None
    matrices = [shape for shape in old.values() if len(shape) >= 2]
    common = Counter(matrices) & Counter(shape for shape in new.values() if len(shape) >= 2)
    elements = sum(map(math.prod, matrices))
    share = sum(math.prod(shape) * count for shape, count in common.items()) / (elements or 1)
    if share >= _SHARE:
        return None
    # A model of other layers is unrelated; one that is stored in other pieces is not.
    sums = [
        side.elements(name for name in side.shapes if side.layer(name) == 0)
        for side in (before, after)
    ]
    if sums[0] == sums[1] > 0:
        return None
    example = next((name for name in sorted(old) if len(old[name]) >= 2), None)
    shapes = ""
    if example is not None:
        shapes = f" ({example} has shape {old[example]} in the base and "
        shapes += f"{new[example]})" if example in new else "is not in the checkpoint)"
    return f"no weight matrix of its layers has name and shape of one of the base's{shapes}"


def _stored_otherwise(
    before: _Tensors, after: _Tensors, lost: set[str], added: set[str]
) -> tuple[set[str], set[str]]:
    """Tensors of both sides that differ, where those of a layer have as many elements together.

    Experts are compared apart from the rest of their layer.
    """
    groups: dict[object, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for side, (tensors, names) in enumerate(((before, lost), (after, added))):
        for name in names:
            layer = tensors.layer(name)
            if layer is not None and tensors.kind(name) is None:
                groups[layer, bool(_EXPERTS.search(name))][side].add(name)
    once: set[str] = set()
    then: set[str] = set()
    for old, new in groups.values():
        if old and new and before.elements(old) == after.elements(new):
            once |= old
            then |= new
    return once, then


def _by_kind(tensors: _Tensors, names: Iterable[str]) -> tuple[set[str], dict[str, set[str]]]:
    """Names that nothing accounts for, and the others by what they are."""
    unknown: set[str] = set()
    known: dict[str, set[str]] = defaultdict(set)
    for name in names:
        kind = tensors.kind(name)
        (known[kind] if kind is not None else unknown).add(name)
    return unknown, dict(known)


def _kind(name: str) -> str | None:
    return next((what for pattern, what in _KINDS if pattern.search(name)), None)


def _is_vocabulary(name: str, before: _Tensors, after: _Tensors) -> bool:
    old, new = before.shapes[name], after.shapes[name]
    return (
        before.layer(name) is None
        and bool(_VOCABULARY.search(name))
        and old[1:] == new[1:]
        and len(old) == len(new) > 0
    )


def is_left_aside(name: str) -> bool:
    """Whether no engine's forward pass reads the tensor: buffers, and heads of later tokens."""
    return _kind(name) in (_PREDICTORS, _BUFFERS)


def is_head(name: str) -> bool:
    """Whether the tensor is an output head."""
    return canonical(name) in ("lm_head.weight", "embed_out.weight", "output_layer.weight")


def some(names: Iterable[str]) -> str:
    """The first two of the names."""
    ordered = sorted(names)
    return f"{', '.join(ordered[:2])}{', ...' if len(ordered) > 2 else ''}"


def compare_with_base(
    client: MlflowClient,
    manifest: Manifest,
    base: Manifest | None,
    entry: CheckpointEntry,
    directory: Path,
    run_id: str,
) -> list[str]:
    """The differences between a checkpoint and its base, for a note of its model.

    Weights of the base that are missing for no known reason are warned of on the run. Raises
    ScalpelError where no weights are shared, or where the checkpoint's own configuration asks for
    the missing ones, so that it is not complete.
    """
    if base is None or not base.tensors:
        return []
    found = differences(base.tensors, manifest.tensors)
    if found.unrelated is not None:
        raise ScalpelError(
            f"{entry.source}: shares no weights with the base {entry.base}: {found.unrelated}; "
            "give the model that this training began with as the base, or none: then it is stored, "
            "and compared with what you name"
        )
    if found.heads and not ties_head(directory):
        found = replace(found, missing=(*found.missing, *found.heads))
    if found.missing or found.reshaped:
        _check_own_configuration(found, manifest, entry, directory)
    if not found.missing:
        return list(found.notes)
    what = (
        f"{len(found.missing)} of the base's {len(base.tensors)} tensors are missing "
        f"({some(found.missing)})"
    )
    message = (
        f"step {entry.step}: {what}; if the save was cut off, log the complete model again: what "
        "is missing is measured nowhere"
    )
    print_warning("checkpoint_incomplete", message, run_id)
    for key, value in warning_tag("checkpoint_incomplete", message).items():
        client.set_tag(run_id, key, value)
    return [*found.notes, what]


def _check_own_configuration(
    found: Differences, manifest: Manifest, entry: CheckpointEntry, directory: Path
) -> None:
    """Raise ScalpelError where the checkpoint's config.json asks for what its files do not hold.

    Transformers would fill it with random values, or refuse the model.
    """
    wanted = expected_shapes(directory)
    if wanted is None:
        return
    stored = {canonical(name): tensor.shape for name, tensor in manifest.tensors.items()}
    for name in found.missing:
        if canonical(name) in wanted:
            raise ScalpelError(
                f"{entry.source}: tensor {name} of the base is missing, and the checkpoint's own "
                "config.json asks for it, so that it is not complete; save it again, all of it"
            )
    for name in found.reshaped:
        shape = wanted.get(canonical(name))
        if shape is not None and shape != stored[canonical(name)]:
            raise ScalpelError(
                f"{entry.source}: tensor {name} has shape {stored[canonical(name)]}, and the "
                f"checkpoint's own config.json asks for {shape}; save weights and config together"
            )
