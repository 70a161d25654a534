"""Knowledge about families of models: `families.toml`, read once."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class PartRule:
    """A part of a model, and the names of the tensors that are of it."""

    part: str
    name: re.Pattern[str]
    vectors: bool
    """Whether it holds for tensors of at most one dimension only."""
    matrices: bool
    """Whether it holds for tensors of more than one dimension only."""
    outside: bool
    """Whether it holds outside of the layers only."""


@dataclass(frozen=True)
class Fused:
    """A projection whose outputs are those of several matrices."""

    families: frozenset[str]
    tensor: str
    """End of its name, such as `self_attn.qkv_proj`."""
    pieces: tuple[tuple[str, str], ...]
    """Name and number of outputs of each piece in a block, as `cuts.Sizes` reads it."""
    blocks: str = "1"
    transposed: bool = False
    when: tuple[tuple[str, Any], ...] = ()
    """Fields of config.json, and what they must be."""


@dataclass(frozen=True)
class Experts:
    """Tensors that hold a matrix of every expert of a layer."""

    families: frozenset[str]
    tensors: Mapping[str, list[str]]
    """Names of the matrices that each holds, by the last part of its name."""
    module: str = "experts"
    """Regular expression of the part of the name before."""
    transposed: bool = False
    interleaved: bool = False


@functools.cache
def data() -> Mapping[str, Any]:
    """The file as it is."""
    text = files("mlflow_scalpel.tensors").joinpath("families.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@functools.cache
def pattern(section: str, key: str) -> re.Pattern[str]:
    """A regular expression of the file."""
    return re.compile(data()[section][key])


@functools.cache
def part_rules() -> tuple[PartRule, ...]:
    """The rules for parts; the first that holds counts."""
    return tuple(
        PartRule(
            one["part"],
            re.compile(one["name"]),
            one.get("vectors", False),
            one.get("matrices", False),
            one.get("outside", False),
        )
        for one in data()["parts"]
    )


@functools.cache
def fused() -> tuple[Fused, ...]:
    """The fused projections of all families."""
    return tuple(
        Fused(
            frozenset(one["families"]),
            one["tensor"],
            tuple((name, size) for name, size in one["pieces"]),
            one.get("blocks", "1"),
            one.get("transposed", False),
            tuple(one.get("when", {}).items()),
        )
        for one in data()["fused"]
    )


@functools.cache
def experts() -> tuple[Experts, ...]:
    """The tensors of experts of all families."""
    return tuple(
        Experts(
            frozenset(one["families"]),
            one["tensors"],
            one.get("module", "experts"),
            one.get("transposed", False),
            one.get("interleaved", False),
        )
        for one in data()["experts"]
    )
