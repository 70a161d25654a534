"""Estimate the memory, disk, steps, tokens and FLOPs of a recipe.

From the recipe and the model's configuration alone: no weights are loaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from mlflow_scalpel.training.planning import Plan

CONFIG = "config.json"
EXTRA = "measure"
EXAMPLE = 'mlflow-scalpel plan grpo/olmo2-1b --set "processes=2" --sharding zero3'
_PATIENCE = 5.0  # seconds that the hub may take to answer


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", help="path of a YAML, or STAGE/NAME, such as grpo/olmo2-7b")
    parser.add_argument(
        "--set", default="", help='fields to replace, such as "train.learning_rate=1e-5"'
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="config.json of the model (default: that of the recipe's model)",
    )
    parser.add_argument(
        "--rows", type=_count, help="number of problems in the data, where the recipe counts epochs"
    )
    parser.add_argument(
        "--tokens", type=_mean, help="mean length of a sequence in tokens, prompt included"
    )
    parser.add_argument(
        "--completion-tokens", type=_mean, help="mean length of GRPO's completions in tokens"
    )
    parser.add_argument(
        "--sharding",
        choices=("zero2", "zero3", "fsdp"),
        help="how the model is spread over the processes (default: as the recipe says)",
    )


def _count(text: str) -> int:
    return int(_at_least_one(text, int(text)))


def _mean(text: str) -> float:
    return _at_least_one(text, float(text))


def _at_least_one(text: str, value: float) -> float:
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 1")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    from mlflow_scalpel.errors import RecipeError
    from mlflow_scalpel.recipes.load import find_recipe, read_recipe
    from mlflow_scalpel.recipes.settings import BY_COMMAND, parse_settings
    from mlflow_scalpel.recipes.training import TrainingRecipe
    from mlflow_scalpel.training.planning import model_size, plan_run

    path = find_recipe(arguments.recipe, Path())
    settings = parse_settings(arguments.set, BY_COMMAND)
    recipe = read_recipe(path, settings=settings, option=BY_COMMAND)
    if not isinstance(recipe, TrainingRecipe):
        raise RecipeError(f"{path}: stage = {recipe.stage}: only sft and grpo are planned")
    size = model_size(_config(arguments.config, recipe.model), recipe)
    plan = plan_run(
        recipe,
        size,
        rows=arguments.rows,
        sequence_tokens=arguments.tokens,
        completion_tokens=arguments.completion_tokens,
        sharding=arguments.sharding or recipe.sharding,
    )
    for name, value in lines(recipe, size, plan, bounded=arguments.tokens is None):
        print(f"{name:24} {value}")
    return 0


def lines(recipe: Any, size: Any, plan: Plan, *, bounded: bool) -> list[tuple[str, str]]:
    """Names and values of a plan, for reading."""
    from mlflow_scalpel.units import count, flop

    most = "at most " if bounded else ""
    generated = [("tokens generated", f"{most}{count(plan.tokens_generated, 'tokens')}")]
    memory, gb = plan.memory, 1e9
    told = [
        ("model", f"{recipe.model}, {size.parameters / 1e6:,.1f} M parameters"),
        ("trained", f"{size.trainable / 1e6:,.1f} M parameters in {recipe.train.dtype}"),
        ("steps", f"{plan.steps:,}"),
        ("sequences", f"{plan.sequences:,}, of {plan.problems:,} draws of a problem"),
        ("tokens trained on", f"{most}{count(plan.tokens_trained, 'tokens')}"),
        *(generated if plan.tokens_generated else []),
        ("FLOPs", f"{most}{flop(plan.flops)}"),
        *(("experts", note) for note in size.multiplied.notes),
        (
            "memory a GPU",
            f"{memory.total / gb:.2f} GB: weights {memory.weights / gb:.2f}, gradients "
            f"{memory.gradients / gb:.2f}, optimizer {memory.optimizer / gb:.2f}, activations "
            f"{memory.activations / gb:.2f} (sequences of {plan.longest} tokens)"
            + (f", autocast's copies {memory.copies / gb:.2f}" if memory.copies else ""),
        ),
        ("a checkpoint", f"{plan.checkpoint_bytes / gb:.4g} GB"),
        ("disk, stored", f"{plan.disk_stored / gb:.4g} GB ({recipe.checkpoints.count} and base)"),
        ("disk, while training", f"{plan.disk_working / gb:.4g} GB"),
    ]
    if getattr(recipe.train, "use_vllm", False):
        share = recipe.train.vllm_gpu_memory_utilization
        where = "a GPU of its own" if recipe.train.vllm_mode == "server" else "each GPU, beside it"
        told.append(("vLLM", f"{share:.0%} of {where}"))
    return told


def _config(file: str | None, model: str) -> Any:
    from huggingface_hub.errors import StrictDataclassError

    from mlflow_scalpel.errors import ScalpelError
    from mlflow_scalpel.remote_code import refused

    if file is not None and not Path(file).is_file():
        raise ScalpelError(f"--config {file}: there is no such file")
    try:
        with refused(file or model):
            return _load(file, model)
    except ScalpelError:
        raise
    except (OSError, ValueError, StrictDataclassError) as error:
        why = " ".join(str(error).split()[:40]) or type(error).__name__
        if file is not None:
            raise ScalpelError(
                f"--config {file}: is no configuration of a model that transformers knows "
                f"({why}); give the model's config.json"
            ) from error
        raise ScalpelError(
            f"model = {model}: its configuration cannot be had ({why}); name a local directory, "
            "give the model's config.json with --config, or connect to the hub"
        ) from error


def _load(file: str | None, model: str) -> Any:
    """The configuration in a file, or of a model; raises what Transformers raises."""
    from transformers import AutoConfig

    from mlflow_scalpel.checkpoints.reading.pull import resolve

    if file is not None:
        return AutoConfig.from_pretrained(file, trust_remote_code=False)
    if Path(model).is_dir() or model.startswith(("models:/", "runs:/")):
        return AutoConfig.from_pretrained(resolve(model), trust_remote_code=False)
    # A hub name is not resolved: that would fetch the weights.
    repository, _, revision = model.partition("@")
    _ask_hub(repository, revision or None)
    return AutoConfig.from_pretrained(
        repository, revision=revision or "main", trust_remote_code=False
    )


def _ask_hub(repository: str, revision: str | None) -> None:
    """Raise OSError where the configuration is not in the cache here, and no hub answers.

    Transformers asks for half a minute where nobody answers; what an answer says, it tells.
    """
    import requests
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(repository, CONFIG, revision=revision), str):
        url = hf_hub_url(repository, CONFIG, revision=revision)
        try:
            requests.head(url, timeout=_PATIENCE)
        except requests.RequestException as error:
            raise OSError(f"{urlsplit(url).netloc} does not answer") from error
