"""Chooses tensors of a model by layer and module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.recipes.trainers import parse_layers
from mlflow_scalpel.tensors.names import located


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
    if lacking := [module for module in modules or () if module not in found_in]:
        raise ScalpelError(f"modules = {lacking[0]}: is in none of the layers {layers}")
    return chosen


def _layers(text: str) -> list[int]:
    try:
        return parse_layers(text)
    except ValueError as error:
        raise ScalpelError(f"layers = {text}: {error}") from error
