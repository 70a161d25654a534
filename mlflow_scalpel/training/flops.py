"""FLOPs of a training run, from the parameters that each token is multiplied with.

A mixture of experts runs only some of them: `mixtures_of`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlflow_scalpel.recipes.trainers import GrpoTrain
from mlflow_scalpel.recipes.training import GrpoRecipe, TrainingRecipe
from mlflow_scalpel.training.freezing import elements

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
class Multiplied:
    """The parameters that each token is multiplied with."""

    parameters: int
    """N, the head's among them."""
    head: int
    """H, those of the output embedding: TRL's GRPO makes logits of completions only."""
    notes: tuple[str, ...] = ()
    """Notes on mixtures of experts."""
    unknown: bool = False
    """Whether a mixture's experts all count because how many run is not known."""


def multiplied(model: Any) -> Multiplied:
    """N = all parameters - look-ups (embeddings) - experts that do not run + a tied head.

    A head that is tied to the input embedding is one matrix in memory, and a product with it all
    the same: it counts once, tied or not. Of a mixture's routed experts as many count as one token
    runs through (`mixtures_of`); shared experts count whole. Norms and biases are counted as if
    they were matrices, which is next to nothing.
    """
    from torch.nn import Embedding

    mixtures = mixtures_of(model)
    shares = {name: one.share for one in mixtures for name in one.parameters}
    head = model.get_output_embeddings()
    look_ups = {id(one.weight) for one in model.modules() if isinstance(one, Embedding)}
    look_ups -= {id(head.weight)} if head is not None else set()
    total = sum(
        shares.get(name, 1.0) * elements(weight)
        for name, weight in model.named_parameters()  # a tied matrix once
        if id(weight) not in look_ups
    )
    return Multiplied(
        round(total),
        0 if head is None else elements(head.weight),
        tuple(dict.fromkeys(one.note for one in mixtures if one.note is not None)),
        any(one.unknown for one in mixtures),
    )


def multiplied_parameters(model: Any) -> int:
    """N of `multiplied`."""
    return multiplied(model).parameters


def estimate_flops(
    size: Multiplied,
    tokens_trained: float,
    *,
    tokens_sampled: float = 0.0,
    tokens_scored: float = 0.0,
    completions: float = 1.0,
    checkpointing: bool = False,
) -> float:
    """FLOPs of a run: the usual 2 N a token and forward pass, 4 N a backward pass (2001.08361).

        2 N (3 tokens_trained + tokens_sampled + tokens_scored)
        + 2 (N - H) tokens_trained    with gradient checkpointing, which runs the layers again
                                      (but for the last product of each: 6 % too much in all)

    Attention's own products are left out, which are small where sequences are much shorter than 12
    times the hidden size; so are padding, evaluations and measuring. Frozen weights count as
    trained ones, though they need a third less.

    Args:
        size: N and H, by `multiplied`.
        tokens_trained: that go forward and backward, prompts included; as often as they do.
        tokens_sampled: of generation, prompts included, which are read for each completion.
        tokens_scored: of forward passes without a backward one, prompts included: `scoring_passes`.
        completions: share of the tokens that are the completions'. GRPO makes logits of them alone,
            so H counts for this share of all tokens; 1 in SFT.
        checkpointing: whether activations are computed a second time.
    """
    forward = 3.0 * tokens_trained + tokens_sampled + tokens_scored
    layers = size.parameters - size.head
    again = tokens_trained if checkpointing else 0.0
    return 2.0 * layers * (forward + again) + 2.0 * size.head * completions * forward


def scoring_passes(train: GrpoTrain) -> int:
    """Forward passes over each generated batch besides the training's own, as TRL 1.16 makes them.

    One of the reference model where `beta` is above 0, and one of the policy as it was when it
    generated, where a batch serves several steps (`num_iterations` above 1) or vLLM's sampling is
    corrected for.
    """
    corrected = train.use_vllm and train.vllm_importance_sampling_correction
    return int(train.beta > 0.0) + int(train.num_iterations > 1 or corrected)


def run_flops(
    recipe: TrainingRecipe, size: Multiplied, tokens_trained: float, read: float, written: float
) -> float:
    """`estimate_flops` of a recipe's run, of which `plan` knows the tokens before, a run after.

    Args:
        recipe: says which passes there are.
        size: of the model.
        tokens_trained: as in `estimate_flops`.
        read: tokens of all generated batches, prompts and completions; 0 in SFT.
        written: those of the completions.
    """
    checkpointing = recipe.train.gradient_checkpointing
    if not isinstance(recipe, GrpoRecipe):
        return estimate_flops(size, tokens_trained, checkpointing=checkpointing)
    return estimate_flops(
        size,
        tokens_trained,
        tokens_sampled=read,
        tokens_scored=read * scoring_passes(recipe.train),
        completions=min(1.0, written / read) if read else 1.0,
        checkpointing=checkpointing,
    )


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
    Transformers, whose experts do not see where a token is sent).
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
        note = "how many experts a token is sent to is not known, so all of them are counted"
        return Mixture(name, names, 1.0, note, unknown=True)
    if _runs_all(experts):
        note = f"{type(above[0]).__name__} runs all {count} experts for every token"
        return Mixture(name, names, 1.0, note)
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
    integers = (n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0)
    return next(integers, None)
