"""How the tensors of a checkpoint differ from its base's, told by names and shapes alone.

Trainers drop heads that they do not train, pad or grow the vocabulary, fuse experts, rename
prefixes and add heads of their own: that is noted, and the checkpoint is what it is. Only what
shares no weights with the base was not trained from it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

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
    gone, known = _told(lost)
    heads = known.get(_HEAD, set())
    notes += [f"without {what} of the base ({some(names)})" for what, names in known.items()]
    more, known = _told(added)
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


def _told(names: Iterable[str]) -> tuple[set[str], dict[str, set[str]]]:
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
