"""What a training run will need, from its recipe and the model's configuration alone.

Pure functions of numbers; `mlflow-scalpel plan` prints them. Bytes are counted, not measured: what
a CUDA context (about 0.5 GB), fragments of the allocator and vLLM take comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.recipes.training import GrpoRecipe, SftRecipe, TrainingRecipe
from mlflow_scalpel.training.arguments import problems_a_step, sequences_a_step, total_steps
from mlflow_scalpel.training.cost import generations
from mlflow_scalpel.training.flops import Multiplied, multiplied, run_flops
from mlflow_scalpel.training.freezing import apply_freeze, elements

Sharding = Literal["zero2", "zero3", "fsdp"]

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STATES = {"adamw_torch": 2, "adamw_torch_fused": 2, "sgd": 0}  # numbers that are kept a weight


@dataclass(frozen=True)
class ModelSize:
    """What of a model decides the cost of training it."""

    parameters: int
    trainable: int
    """Parameters that the recipe does not freeze."""
    multiplied: Multiplied
    """Parameters that each token is multiplied with."""
    layers: int
    hidden: int
    attention: int
    """Width of the queries: heads times their size."""
    keys_values: int
    """Width of the keys, and of the values."""
    intermediate: int
    cast: int
    """Elements of the matrices that are multiplied with, which autocast copies into its dtype."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU while training."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    copies: float
    """Of the weights, in the dtype of autocast where that is another one."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.copies


@dataclass(frozen=True)
class Plan:
    """A run beforehand. `tokens_...` and `flops` are upper bounds unless a length was given."""

    steps: int
    sequences: int
    problems: int
    """Problems drawn, those that come again in a later epoch counted again."""
    longest: int
    """Longest sequence in tokens."""
    tokens_trained: int
    tokens_generated: int
    flops: float
    memory: Memory
    checkpoint_bytes: int
    """Of the weights of one checkpoint."""
    disk_stored: int
    """Of all checkpoints and the base in the artifact store, where files are not linked."""
    disk_working: int
    """Of the output directory: what stays local, and the one that is being written."""


def model_size(config: Any, recipe: TrainingRecipe) -> ModelSize:
    """Sizes of the model that a Transformers configuration describes; no weight is made.

    A configuration that names no width of its MLP has the one of GPT-2, 4 times the hidden size.
    Raises ScalpelError where it is not of a causal language model, or the recipe freezes what the
    model does not have.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, AttributeError) as error:
        raise ScalpelError(
            f"{type(config).__name__} is not a configuration of a causal language model "
            f"({str(error).splitlines()[0]}); give the one of the recipe's model"
        ) from error
    trained = apply_freeze(model, recipe.train.freeze)
    text = config.get_text_config()
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelSize(
        parameters=trained.trainable + trained.frozen,
        trainable=trained.trainable,
        multiplied=multiplied(model),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        attention=heads * size,
        keys_values=(getattr(text, "num_key_value_heads", None) or heads) * size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        cast=_cast(model),
    )


def _cast(model: Any) -> int:
    """Elements of all matrices but the input embedding, which is a look-up where it is not tied."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    tied = head is not None and head.weight is embedding
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    return sum(elements(weight) for weight in matrices if tied or weight is not embedding)


def plan_run(
    recipe: TrainingRecipe,
    size: ModelSize,
    *,
    rows: int | None = None,
    sequence_tokens: float | None = None,
    completion_tokens: float | None = None,
    sharding: Sharding | None = None,
) -> Plan:
    """The plan of a run.

    Steps as the trainer takes them; sequences = steps x batch x accumulation x processes; tokens
    trained on = sequences x tokens of a sequence, prompt included; FLOPs by `run_flops`.

    Args:
        rows: problems of the data, which a length in epochs needs.
        sequence_tokens: mean tokens of a sequence; the longest that the recipe allows unless given.
        completion_tokens: mean tokens that GRPO generates; the most unless given.
        sharding: how weights, gradients and optimizer are spread over the processes; what the
            recipe says is for the caller to give.

    Raises:
        ScalpelError: the recipe bounds no length and none is given, or its steps need `rows`.
    """
    if recipe.train.max_steps is None and rows is None:
        raise ScalpelError(
            f"train.num_train_epochs = {recipe.train.num_train_epochs}: the number of steps hangs "
            "on the data; give the number of its problems with --rows"
        )
    steps = recipe.train.max_steps or total_steps(recipe, rows or 0)
    sequences = steps * sequences_a_step(recipe)
    longest = longest_sequence(recipe)
    mean = sequence_tokens or longest
    if mean is None:
        raise ScalpelError(
            "the recipe bounds no length; set data.max_prompt_tokens (and for SFT "
            "data.max_solution_tokens or train.max_length), or give --tokens"
        )
    trained, read, generated = round(sequences * mean), 0, 0
    batches = generations(recipe, steps)
    if isinstance(recipe, GrpoRecipe):
        sampled = batches * sequences_a_step(recipe)
        read = round(sampled * mean)
        generated = round(sampled * (completion_tokens or recipe.train.max_completion_length))
    flops = run_flops(recipe, size.multiplied, trained, read, generated)
    weights = size.parameters * _BYTES[recipe.train.dtype]
    states = optimizer_bytes(size, recipe, sharding)
    count, kept = recipe.checkpoints.count, recipe.checkpoints.keep_local
    stored = count * (weights + (states if recipe.checkpoints.trainer_state else 0)) + weights
    return Plan(
        steps=steps,
        sequences=sequences,
        problems=batches * problems_a_step(recipe),
        longest=longest or round(mean),
        tokens_trained=trained,
        tokens_generated=generated,
        flops=flops,
        memory=memory(size, recipe, longest or round(mean), sharding),
        checkpoint_bytes=weights,
        disk_stored=stored,
        disk_working=(kept + 1) * (weights + states),
    )


def longest_sequence(recipe: TrainingRecipe) -> int | None:
    """Tokens of the longest sequence that the recipe lets through; None where it sets no bound.

    SFT: the smaller of `max_length` and prompt + solution. GRPO: prompt + `max_completion_length`.
    """
    data, bounds = recipe.data, []
    prompt = data.max_prompt_tokens
    if isinstance(recipe, GrpoRecipe):
        return None if prompt is None else prompt + recipe.train.max_completion_length
    assert isinstance(recipe, SftRecipe)
    if recipe.train.max_length is not None:
        bounds.append(recipe.train.max_length)
    if prompt is not None and data.max_solution_tokens is not None:
        bounds.append(prompt + data.max_solution_tokens)
    return min(bounds, default=None)


def memory(
    size: ModelSize, recipe: TrainingRecipe, tokens: int, sharding: Sharding | None = None
) -> Memory:
    """Bytes of one GPU, with N parameters, M of them trained, P processes, b bytes of the dtype.

    =========== ============== =============== =============== ==============
    sharding    weights        gradients       optimizer       as in
    =========== ============== =============== =============== ==============
    none        b N            b M             2 b M           PyTorch
    zero2       b N            b M / P         12 M / P        arXiv 1910.02054
    zero3       b N / P        b M / P         12 M / P        the same
    fsdp        4 N / P        4 M / P         8 M / P         master weights in float32
    =========== ============== =============== =============== ==============

    Without sharding, autocast to bfloat16 keeps copies of the float32 weights that it multiplies
    with, 2 bytes each (docs/explanation/gpu.md has a GPU's memory beside a plan).

    (ZeRO's 12 are float32 weights and AdamW's two states; with float32 weights it has no second
    copy, 8.) Activations by `activation_bytes` for a batch of the longest sequences; logits are
    left out, since the trainers' fused head makes them piece by piece.
    """
    b = _BYTES[recipe.train.dtype]
    p = recipe.processes if sharding is not None else 1
    n, m = size.parameters, size.trainable
    if sharding == "fsdp":
        held, b_gradient = 4 * n / p, 4
    else:
        held, b_gradient = (b * n / p if sharding == "zero3" else b * n), b
    return Memory(
        weights=held,
        gradients=b_gradient * m / p,
        optimizer=optimizer_bytes(size, recipe, sharding) / p,
        activations=activation_bytes(
            size,
            tokens * recipe.train.per_device_train_batch_size,
            2 if recipe.train.bf16 else b,
            checkpointing=recipe.train.gradient_checkpointing,
        ),
        copies=2 * size.cast if recipe.train.bf16 and b > 2 and sharding is None else 0,
    )


def optimizer_bytes(
    size: ModelSize, recipe: TrainingRecipe, sharding: Sharding | None = None
) -> int:
    """Bytes of the optimizer's state over all processes: see `memory`.

    Adafactor keeps a row and a column a matrix in place of it, which is counted as nothing.
    """
    states = _STATES.get(recipe.train.optim, 0)
    if sharding is None:
        return states * _BYTES[recipe.train.dtype] * size.trainable
    own_copy = sharding != "fsdp" and recipe.train.dtype != "float32"
    return (states + own_copy) * 4 * size.trainable


def activation_bytes(size: ModelSize, tokens: int, width: int, *, checkpointing: bool) -> int:
    """Bytes that the forward pass of `tokens` tokens keeps for the backward pass.

    A layer keeps, a token, with h the hidden, a the attention's, k the keys' and i the MLP's width:
    6 h (inputs of the two blocks, of their norms, and the outputs) + 3 a (queries before and after
    rotation, output) + 3 k (keys twice, values) + 4 i (gate, its activation, up, their product),
    each of `width` bytes, and 2 h in float32 within the norms. Attention's own probabilities are
    not kept (FlashAttention, and PyTorch's fused kernels). With checkpointing all layers keep their
    input (h) only, and one at a time all of it. An estimate: kernels differ by a third.
    """
    layer = tokens * (
        width
        * (6 * size.hidden + 3 * size.attention + 3 * size.keys_values + 4 * size.intermediate)
        + 4 * 2 * size.hidden
    )
    if checkpointing:
        return size.layers * tokens * size.hidden * width + layer
    return size.layers * layer
