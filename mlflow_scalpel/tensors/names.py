"""Names of tensors: what wrappers add to them, and which layer of the language model they name."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.families import data, pattern

# torch.compile, DataParallel and DistributedDataParallel, activation checkpointing, FSDP, TRL's
# value heads: parts of a name that come from how the model was run.
_WRAPPERS = frozenset(
    {
        "_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module",
        "_forward_module", "pretrained_model",
    }
)  # fmt: skip
_PEFT = "base_model.model."
# Parts of a name that only say how deep in a larger model the language model is.
_AROUND = frozenset({"model", "language_model", "transformer"})
# Parts at the beginning of a name that say within what a language model stands: nothing, a model
# with a head, or a model of images and texts. Versions of Transformers write them differently.
_CONTAINERS = frozenset(
    {
        "model", "language_model", "text_model", "transformer", "base_model", "llm", "backbone",
        "gpt_neox", "decoder", "thinker",
    }
)  # fmt: skip


def unwrapped(name: str) -> str:
    """The name without the parts that wrappers add, as `save_pretrained` would have written it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return ".".join(parts).removeprefix(_PEFT) or name


def wrapping(names: Iterable[str]) -> str | None:
    """The wrapper of the first name that has one, as `_orig_mod.`; None where none has."""
    for name in names:
        if (bare := unwrapped(name)) != name:
            end = name.find(bare)
            return name[:end] if end > 0 else name
    return None


def canonical(name: str) -> str:
    """The name without what stands before it, in which versions and families differ.

    `model.language_model.layers.0.mlp.up_proj.weight`, `language_model.model.layers.0...` and
    `model.layers.0...` are one tensor: `layers.0.mlp.up_proj.weight`.
    """
    parts = unwrapped(name).split(".")
    while len(parts) > 2 and parts[0] in _CONTAINERS:
        del parts[0]
    return ".".join(parts)


def of_a_tower(name: str) -> bool:
    """Whether the tensor is of what sees or hears in front of a language model, by its name."""
    return _tower(name) == "vision"


@dataclass(frozen=True)
class Location:
    """The place of a tensor in a model."""

    layer: int | None
    """Of the language model, from 0 on; None outside of its layers."""
    path: str
    """The rest of the name after the layer, as in `self_attn.q_proj.weight`; outside of the layers
    the name without the parts that differ between versions, as in `embed_tokens.weight`."""
    kind: str = ""
    """`vision` in towers of images and sound, `extra` in predictors of further tokens."""


def located(names: Iterable[str]) -> dict[str, Location]:
    """The place of each tensor of one model, by its name, in their order.

    A model may have several stacks of layers, and one of them is the language model's. What stands
    before it (`model.`, `model.language_model.`, `language_model.model.`, `transformer.`) is taken
    off, so that a tensor has one location under the spellings of all versions.
    """
    names = list(names)
    found = {name: match for name in names if (match := _stacked().match(name))}
    stack = _language_stack(match["prefix"] or "" for match in found.values())
    inside = {
        name: (int(match["number"]), ".".join(filter(None, (match["kind"], match["rest"]))))
        for name, match in found.items()
        if (match["prefix"] or "") == stack
    }
    marks = frozenset(data()["layers"]["extra_marks"])
    extra = {layer for layer, path in inside.values() if not marks.isdisjoint(path.split("."))}
    around = _AROUND | set((stack or "").split("."))
    towers = _beside(stack or "", {match["prefix"] or "" for match in found.values()})
    locations = {}
    for name in names:
        layer, path = inside.get(name, (None, ""))
        if layer is not None and layer not in extra:
            locations[name] = Location(layer, _newer(path))
        else:
            kind = "extra" if layer is not None else _tower(name)
            if not kind and name.startswith(towers):
                kind = "vision"
            locations[name] = Location(None, _newer(_bare(name, around)), kind)
    return locations


def counterparts(names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """The name in `others` of each tensor of `names`, where it is there, whatever its prefix is.

    Both are the names of all tensors of one model, as two versions of its class spell them.
    """
    by_location = {where: name for name, where in located(others).items()}
    found = {name: by_location.get(where) for name, where in located(names).items()}
    return {name: other for name, other in found.items() if other is not None}


def _newer(path: str) -> str:
    for older, newer in data()["renamed"].items():
        if path.startswith(older):
            return newer + path.removeprefix(older)
    return path


@functools.cache
def _stacked() -> re.Pattern[str]:
    words = data()["layers"]
    return re.compile(
        rf"(?:(?P<prefix>.+?)\.)??(?:(?:{words['stacks']})|(?P<kind>{words['side_by_side']}))"
        r"\.(?P<number>\d{1,6})\.(?P<rest>.+)$"
    )


def _language_stack(prefixes: Iterable[str]) -> str | None:
    """The prefix of the language model's layers, among the prefixes of all stacks of layers."""
    language = re.compile(rf"(?:{data()['layers']['language']})$")
    counts = Counter(prefixes)

    def rank(prefix: str) -> tuple[bool, bool, int, str]:
        parts = prefix.split(".")
        beside = any(pattern("layers", "beside").match(part) for part in parts)
        return any(language.match(part) for part in parts), not beside, counts[prefix], prefix

    return max((one for one in counts if not _tower(one)), key=rank, default=None)


def _beside(stack: str, prefixes: Collection[str]) -> tuple[str, ...]:
    """Prefixes, with a dot, of stacks beside a language model that is named as such."""
    named = re.compile(rf"(?:.*\.)?(?:{data()['layers']['named']})(?=\.|$)").match(stack)
    if named is None:
        return ()
    return tuple(f"{one}." for one in prefixes if one and not f"{one}.".startswith(f"{named[0]}."))


def _tower(name: str) -> str:
    parts = name.split(".")
    for kind in ("vision", "extra"):
        if any(pattern("layers", kind).match(part) for part in parts):
            return kind
    return ""


def _bare(name: str, around: Collection[str]) -> str:
    """The name without the parts at its beginning that stand around the language model."""
    parts = name.replace("vision_tower.vision_model.", "vision_tower.", 1).split(".")
    while len(parts) > 2 and parts[0] in around:
        parts = parts[1:]
    return ".".join(parts)


def select(names: Iterable[str], layers: str | None, modules: Sequence[str] | None) -> list[str]:
    """The names of tensors in the given layers and modules, in their order.

    Layers are the language model's own: a tower of images or sound, and a predictor of further
    tokens, have layers of the same numbers, of which none is ever chosen.

    Args:
        names: of all tensors of a model, such as `model.layers.3.self_attn.q_proj.weight`.
        layers: "19-25" or "0-3,7", both ends included; None takes all layers.
        modules: parts of the names, such as `q_proj` or `mlp`; None takes all of a layer.

    Raises:
        ScalpelError: a layer or a module that the model does not have, or nothing is chosen.
    """
    parts: dict[str, tuple[int, list[str]]] = {}
    for name, where in located(names).items():
        if where.layer is not None:
            *modules_of, last = where.path.split(".")
            # Experts in one tensor are parameters without a module of their own.
            own = [] if last in ("weight", "bias") else [last]
            parts[name] = where.layer, modules_of + own
    there = sorted({layer for layer, _ in parts.values()})
    if not there:
        raise ScalpelError("the model has no tensor under layers.<number>, so none can be chosen")
    wanted = there if layers is None else _layers(layers)
    if beyond := sorted(set(wanted) - set(there)):
        raise ScalpelError(
            f"layers = {layers}: the model has no layer {beyond[0]}; "
            f"its layers are {there[0]} to {there[-1]}"
        )
    known = {module for _, path in parts.values() for module in path}
    for module in modules or ():
        if module not in known:
            raise ScalpelError(
                f"modules = {', '.join(modules or ())}: the model's layers have no module "
                f"{module!r}; they have {', '.join(sorted(known))}"
            )
    chosen = [
        name
        for name, (layer, path) in parts.items()
        if layer in wanted and (modules is None or not set(path).isdisjoint(modules))
    ]
    # A module may be in some layers only, as in a mixture of experts after dense layers.
    found_in = {part for name in chosen for part in parts[name][1]}
    if absent := [module for module in modules or () if module not in found_in]:
        raise ScalpelError(f"modules = {absent[0]}: is in none of the layers {layers}")
    return chosen


def _layers(text: str) -> list[int]:
    try:
        return parse_layers(text)
    except ValueError as error:
        raise ScalpelError(f"layers = {text}: {error}") from error


def parse_layers(text: str) -> list[int]:
    """The layers that "19-25" or "0-3,7" names, both ends included; raises ValueError."""
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError("names no layers; write 19-25 or 0-3,7")
        if dash and int(last) < int(first):
            raise ValueError(f"ends before it begins; write {last}-{first}")
        layers.update(range(int(first), int(last if dash else first) + 1))
    return sorted(layers)
