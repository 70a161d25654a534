"""Mixtures of experts: which weights a token runs through, and which only others do."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_PER_TOKEN = (
    "top_k",
    "topk",
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "num_selected_experts",
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_IDLE = "zero_expert_num"  # LongCat's router may choose so many experts that do nothing


@dataclass(frozen=True)
class Mixture:
    """The routed experts of one layer. Shared experts are none of them: every token runs them."""

    name: str
    parameters: frozenset[str]
    """Full names of the weights of all experts."""
    share: float
    """Part of them that one token runs through: experts a token / experts."""
    note: str | None = None
    """Why all are counted, where all are."""
    unknown: bool = False
    """Whether that is because nothing says how many run."""


def mixtures_of(model: Any) -> list[Mixture]:
    """The mixtures of a Transformers model.

    Experts are a list of modules named `experts`, or tensors that hold all of them, the first
    dimension the experts', under that name or in a class so named. How many a token is sent to is
    asked of the layer's router, else of the configuration; where neither says, all count, with a
    note. So they do where the layer runs all of its experts for every token (Llama 4 in
    Transformers, whose experts are not told where a token is sent).
    """
    from torch.nn import ModuleDict, ModuleList

    modules = dict(model.named_modules())
    config = model.config.get_text_config()
    found: list[Mixture] = []
    lists: list[str] = []
    for name, module in modules.items():
        if "shared" in name or name.startswith(tuple(lists)):
            continue
        under = "experts" in name.split(".")
        if isinstance(module, ModuleList | ModuleDict):
            if name.rpartition(".")[2] == "experts":
                lists.append(f"{name}.")
                found.append(_mixture(name, module, modules, config))
        elif under or "expert" in type(module).__name__.casefold():
            own = module.parameters(recurse=False)
            most = max((len(getattr(w, "ds_shape", w.shape)) for w in own), default=0)
            if most >= (2 if "expert" in type(module).__name__.casefold() else 3):
                found.append(_mixture(name, module, modules, config))
    return found


def _mixture(name: str, experts: Any, modules: dict[str, Any], config: Any) -> Mixture:
    names = frozenset(f"{name}.{inner}" for inner, _ in experts.named_parameters())
    above = [modules[name.rsplit(".", up)[0]] for up in (1, 2) if name.count(".") >= up]
    routers = [child for block in above for child in block.children() if child is not experts]
    per_token = _first(_PER_TOKEN, [*above[:1], *routers, *above[1:], config])
    count = _count(experts) or _first(_EXPERTS, [experts, *above, config])
    if per_token is None or count is None:
        said = "how many experts a token is sent to is not known, so all of them are counted"
        return Mixture(name, names, 1.0, said, unknown=True)
    if _runs_all(experts):
        said = f"{type(above[0]).__name__} runs all {count} experts for every token"
        return Mixture(name, names, 1.0, said)
    idle = getattr(config, _IDLE, None) or 0
    return Mixture(name, names, min(1.0, per_token / (count + idle)))


def _count(experts: Any) -> int | None:
    """The number of experts, as their weights show it."""
    from torch.nn import ModuleDict, ModuleList

    if isinstance(experts, ModuleList | ModuleDict):
        return len(experts)
    # ZeRO-3 keeps the shape of a weight that is spread over processes in `ds_shape`.
    shapes = [getattr(weight, "ds_shape", weight.shape) for weight in experts.parameters()]
    firsts = {shape[0] for shape in shapes if len(shape) >= 3}
    return int(firsts.pop()) if len(firsts) == 1 else None


def _runs_all(experts: Any) -> bool:
    """Whether the experts are called with hidden states alone, and not with where tokens go."""
    from torch.nn import ModuleDict, ModuleList

    if isinstance(experts, ModuleList | ModuleDict):
        return False  # called one by one
    return len(inspect.signature(type(experts).forward).parameters) <= 2  # self, hidden states


def _first(names: tuple[str, ...], places: list[Any]) -> int | None:
    """The first whole number above 0 that one of the places has under one of the names."""
    found: Iterator[Any] = (getattr(place, name, None) for place in places for name in names)
    whole = (n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0)
    return next(whole, None)
