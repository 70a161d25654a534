"""How the tensors of a checkpoint differ from its base's, told by names and shapes alone.

Trainers drop heads that they do not train, pad or grow the vocabulary, fuse experts, rename
prefixes and add heads of their own: that is noted, and the checkpoint is what it is. Only what
shares no weights with the base was not trained from it.
"""

from __future__ import annotations

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
from mlflow_scalpel.tensors.names import canonical

Shape = tuple[int, ...]
# Parts before the first that says something of the tensor: `language_model.model.layers.0` and
# `model.language_model.layers.0` are one.
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")
_EXPERTS = re.compile(r"\.(?:experts|block_sparse_moe|moe|mlp_experts)\.")
_HEAD = "an output head or embeddings, which may be tied with the other,"
# What a tensor that only one side has may be, the first that fits; a name, and what it is called.
_KINDS = (
    (re.compile(r"(?:^|\.)(?:mtp|nextn|mtp_layers|eh_proj|enorm|hnorm|shared_head)(?:\.|$)"),
     "multi-token prediction heads"),
    (re.compile(r"(?:^|\.)(?:v_head|value_head|value_model|critic|score|reward_head)(?:\.|$)"),
     "a value or reward head"),
    (re.compile(r"rotary|inv_freq|masked_bias|position_ids|attn\.bias$|freqs_c(?:is|os)"),
     "buffers that are computed anew"),
    (re.compile(r"scale|qweight|qzeros|g_idx|absmax|quant_|_blocks$|zero_point"),
     "quantised weights"),
    (re.compile(r"vision|visual|image|multi_modal|mm_projector|patch_embed"), "a vision tower"),
    (re.compile(r"audio|speech|talker|code2wav|token2wav"), "parts for audio"),
    (re.compile(r"lora_|modules_to_save"), "an adapter's weights"),
    (re.compile(r"lm_head|embed_out|output_layer|embed_tokens|wte|word_embeddings|embed_in"),
     _HEAD),
)  # fmt: skip
_LEFT_ASIDE = ("multi-token prediction heads", "buffers that are computed anew")
_VOCABULARY = re.compile(r"embed|lm_head|wte|output_layer|word_embeddings|bias$")
_SHARE = 0.5  # of the base's elements whose shapes are found, below which nothing is shared


class _Shaped(Protocol):
    @property
    def shape(self) -> Shape: ...


@dataclass(frozen=True)
class Differences:
    """What is to say of a checkpoint beside its base."""

    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """Names in the base of what is missing, and nothing here accounts for."""
    heads: tuple[str, ...] = ()
    """Names in the base of a missing output head or embeddings, which may be tied."""
    reshaped: tuple[str, ...] = ()
    """Names of tensors whose shape is another, and that are not a vocabulary."""
    foreign: str | None = None
    """Why it shares no weights with the base; None where it does."""


def differences(base: Mapping[str, _Shaped], checkpoint: Mapping[str, _Shaped]) -> Differences:
    """Compare names and shapes of the tensors of a base and of a checkpoint of it."""
    before, after = _by_canonical(base), _by_canonical(checkpoint)
    notes = []
    if len(before.keys() & after.keys()) > len(base.keys() & checkpoint.keys()):
        notes.append("tensors are named otherwise than in the base, by their prefix")
    paired = {name for name in before.keys() & after.keys() if before[name] == after[name]}
    foreign = _foreign(before, after, paired)
    if foreign is not None:
        return Differences(foreign=foreign)
    reshaped = sorted((before.keys() & after.keys()) - paired)
    grown = [name for name in reshaped if _is_vocabulary(name, before[name], after[name])]
    if grown:
        name = max(grown, key=lambda one: len(before[one]))
        notes.append(f"the vocabulary has {after[name][0]} rows, and the base's {before[name][0]}")
    others = [name for name in reshaped if name not in grown]
    lost, added = before.keys() - after.keys(), after.keys() - before.keys()
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
    notes += [
        f"{name} has shape {after[name]}, and the base's {before[name]}" for name in others[:2]
    ]
    deeper = _layers_beyond(before, after, lost)
    if deeper:
        lost -= deeper
        notes.append(
            f"without the base's last {len({_layer(name) for name in deeper})} layers, as of "
            f"multi-token prediction ({some(deeper)})"
        )
    gone, known = _by_kind(lost)
    heads = known.get(_HEAD, set())
    notes += [f"without {what} of the base ({some(names)})" for what, names in known.items()]
    more, known = _by_kind(added)
    notes += [f"with {what} that the base does not have ({some(n)})" for what, n in known.items()]
    if more:
        notes.append(f"with {len(more)} tensors that the base does not have ({some(more)})")
    stored_as = {canonical(name): name for name in base}

    def as_stored(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(stored_as.get(name, name) for name in sorted(names))

    return Differences(tuple(notes), as_stored(gone), as_stored(heads), as_stored(others))


def _by_canonical(tensors: Mapping[str, _Shaped]) -> dict[str, Shape]:
    """Shapes by name without wrappers and leading containers, where that stays unique."""
    short = {name: canonical(name) for name in tensors}
    count = Counter(short.values())
    return {
        short[name] if count[short[name]] == 1 else name: tuple(tensor.shape)
        for name, tensor in tensors.items()
    }


def _foreign(
    before: Mapping[str, Shape], after: Mapping[str, Shape], paired: set[str]
) -> str | None:
    """Why nothing is shared: no matrix of the layers pairs, and the shapes are others too."""
    if any(len(before[name]) >= 2 and _layer(name) is not None for name in paired):
        return None
    matrices = [shape for shape in before.values() if len(shape) >= 2]
    there = Counter(shape for shape in after.values() if len(shape) >= 2)
    common = Counter(matrices) & there
    elements = sum(map(_elements, matrices))
    share = sum(_elements(shape) * count for shape, count in common.items()) / (elements or 1)
    if share >= _SHARE:
        return None
    # A model of other layers is foreign; one that is stored in other pieces is not.
    if _same_by_layer(before, after):
        return None
    example = next((name for name in sorted(before) if len(before[name]) >= 2), None)
    told = ""
    if example is not None:
        told = f" ({example} has shape {before[example]} in the base and "
        told += f"{after[example]})" if example in after else "is not in the checkpoint)"
    return f"no weight matrix of its layers has name and shape of one of the base's{told}"


def _same_by_layer(before: Mapping[str, Shape], after: Mapping[str, Shape]) -> bool:
    """Whether the first layer holds as many elements in both."""
    sums = []
    for side in (before, after):
        first = [shape for name, shape in side.items() if _layer(name) == 0]
        sums.append(sum(map(_elements, first)))
    return sums[0] == sums[1] > 0


def _stored_otherwise(
    before: Mapping[str, Shape], after: Mapping[str, Shape], lost: set[str], added: set[str]
) -> tuple[set[str], set[str]]:
    """Tensors of both sides that differ, where those of a layer have as many elements together.

    Experts are compared apart from the rest of their layer.
    """
    groups: dict[object, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for side, names in enumerate((lost, added)):
        for name in names:
            layer = _layer(name)
            if layer is not None and _kind(name) is None:
                groups[layer, bool(_EXPERTS.search(name))][side].add(name)
    once: set[str] = set()
    then: set[str] = set()
    for old, new in groups.values():
        if old and new and _sum(before, old) == _sum(after, new):
            once |= old
            then |= new
    return once, then


def _layers_beyond(
    before: Mapping[str, Shape], after: Mapping[str, Shape], lost: Iterable[str]
) -> set[str]:
    """Lost tensors of layers behind the checkpoint's last one, with a head of their own.

    GLM-4.5 and DeepSeek-V3 store the multi-token prediction head as one more layer.
    """
    last = max((layer for name in after if (layer := _layer(name)) is not None), default=-1)
    beyond = {name for name in lost if (layer := _layer(name)) is not None and layer > last}
    layers = {_layer(name) for name in beyond if _kind(name) == "multi-token prediction heads"}
    return {name for name in beyond if _layer(name) in layers}


def _by_kind(names: Iterable[str]) -> tuple[set[str], dict[str, set[str]]]:
    """Names that nothing accounts for, and the others by what they are."""
    unknown: set[str] = set()
    known: dict[str, set[str]] = defaultdict(set)
    for name in names:
        kind = _kind(name)
        (known[kind] if kind is not None else unknown).add(name)
    return unknown, dict(known)


def _kind(name: str) -> str | None:
    return next((what for pattern, what in _KINDS if pattern.search(name)), None)


def _is_vocabulary(name: str, before: Shape, after: Shape) -> bool:
    return (
        _layer(name) is None
        and bool(_VOCABULARY.search(name))
        and before[1:] == after[1:]
        and len(before) == len(after) > 0
    )


def _layer(name: str) -> int | None:
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def _elements(shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _sum(tensors: Mapping[str, Shape], names: Iterable[str]) -> int:
    return sum(_elements(tensors[name]) for name in names)


def is_left_aside(name: str) -> bool:
    """Whether no engine's forward pass reads the tensor: buffers, and heads of later tokens."""
    return _kind(name) in _LEFT_ASIDE


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
    """How the checkpoint differs from its base, for a note; raises ScalpelError if in all.

    Weights of the base that are missing without a reason are warned of on the run; where the
    checkpoint's own configuration asks for them, it is not whole.
    """
    if base is None or not base.tensors:
        return []
    found = differences(base.tensors, manifest.tensors)
    if found.foreign is not None:
        raise ScalpelError(
            f"{entry.source}: shares no weights with the base {entry.base}: {found.foreign}; give "
            "the model that this training began with as the base, or none: then it is stored, and "
            "compared with what you name"
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
        f"step {entry.step}: {what}; if the save was cut off, log the whole model again: what is "
        "missing is measured nowhere"
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
                "config.json asks for it, so that it is not whole; save it again, all of it"
            )
    for name in found.reshaped:
        shape = wanted.get(canonical(name))
        if shape is not None and shape != stored[canonical(name)]:
            raise ScalpelError(
                f"{entry.source}: tensor {name} has shape {stored[canonical(name)]}, and the "
                f"checkpoint's own config.json asks for {shape}; save weights and config together"
            )
