"""The part of a recipe that says which weights training may change."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from mlflow_scalpel.recipes.fields import Strict
from mlflow_scalpel.tensors.names import parse_layers


class Freeze(Strict):
    """Which weights stay as they are in the base, bit for bit.

    `layers` and `modules` choose weights of the decoder layers. Those that are outside of the
    layers have a field of their own, which must be given; the norm after the last layer
    goes with what was not chosen.
    """

    mode: Literal["freeze", "only"]
    """`freeze`: the chosen weights are frozen, all others of the layers are trained. `only`: the
    chosen weights are trained, all others of the layers are frozen."""
    layers: str | None = None
    """Numbers of layers, both ends included, such as "19-25" or "0-3,7"; null takes all."""
    modules: list[str] | None = Field(default=None, min_length=1)
    """Names of modules within a layer, such as q_proj or mlp; null takes all."""
    embeddings: Literal["frozen", "trained"]
    """The input embeddings."""
    lm_head: Literal["frozen", "trained"]
    """The output embeddings, which are the input embeddings where the model ties them."""

    @field_validator("layers", mode="before")
    @classmethod
    def _one_layer(cls, value: Any) -> Any:
        return str(value) if type(value) is int else value

    @field_validator("layers")
    @classmethod
    def _numbers(cls, value: str | None) -> str | None:
        if value is not None:
            parse_layers(value)
        return value
