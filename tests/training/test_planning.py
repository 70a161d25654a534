"""Plans of runs, held against what real models take."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, Olmo2Config

from mlflow_scalpel.cli import main
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.recipes import load_recipe
from mlflow_scalpel.training.flops import estimate_flops, multiplied
from mlflow_scalpel.training.planning import activation_bytes, memory, model_size, plan_run

PROJECTS = Path(__file__).parents[2] / "projects"
OLMO2_7B = Olmo2Config(
    vocab_size=100352,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
)


def recipe_of(stage: str, settings: str = "", name: str = "tiny"):
    return load_recipe(name, PROJECTS / stage / "recipes", stage=stage, settings=settings)


def tiny(**fields) -> Olmo2Config:
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 6}
    return Olmo2Config(vocab_size=724, num_attention_heads=4, **{**sizes, **fields})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("frozen", [False, True])
def test_weights_gradients_and_optimizer_are_what_pytorch_holds(dtype, frozen):
    freeze = "{mode: only, modules: [mlp], embeddings: frozen, lm_head: trained}"
    settings = f"train.dtype={dtype}" + (f" 'train.freeze={freeze}'" if frozen else "")
    recipe = recipe_of("sft", settings)
    size = model_size(tiny(), recipe)
    planned = memory(size, recipe, tokens=16)

    model = AutoModelForCausalLM.from_config(tiny(), dtype=getattr(torch, dtype))
    if frozen:
        for name, weight in model.named_parameters():
            weight.requires_grad_("mlp" in name or "lm_head" in name)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    ids = torch.arange(16)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    states = [
        value for state in optimizer.state.values() for key, value in state.items() if key != "step"
    ]
    assert planned.weights == sum(weight.nbytes for weight in model.parameters())
    assert planned.gradients == sum(weight.grad.nbytes for weight in trained)
    assert planned.optimizer == sum(value.nbytes for value in states)
    assert size.parameters == model.num_parameters()
    assert size.trainable == sum(weight.numel() for weight in trained)


@pytest.mark.parametrize("shape", [(4, 32), (1, 100)])
def test_activations_are_about_what_the_forward_pass_keeps(shape):
    recipe = recipe_of("sft")
    size = model_size(tiny(), recipe)
    model = AutoModelForCausalLM.from_config(tiny())
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(724, shape)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.model(input_ids=ids).last_hidden_state  # without the head, which is fused
    assert output.requires_grad
    planned = activation_bytes(size, ids.numel(), 4, checkpointing=False)
    assert sum(kept.values()) == pytest.approx(planned, rel=0.35)
    less = activation_bytes(size, ids.numel(), 4, checkpointing=True)
    assert less < planned / 4


@pytest.mark.parametrize("tied", [False, True])
def test_autocast_keeps_the_copies_of_weights_that_the_plan_counts(tied):
    recipe, config = recipe_of("sft", "train.bf16=true"), tiny(tie_word_embeddings=tied)
    size = model_size(config, recipe)
    model = AutoModelForCausalLM.from_config(config)
    shapes = {tuple(weight.shape) for weight in model.parameters() if weight.ndim == 2}
    shapes |= {shape[::-1] for shape in shapes}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        output = model(input_ids=torch.randint(724, (2, 10)))  # whose shapes no weight has
    assert output.logits.requires_grad
    assert memory(size, recipe, 10).copies == sum(kept.values())
    for settings in ("train.bf16=false", "train.bf16=true train.dtype=bfloat16"):
        assert memory(size, recipe_of("sft", settings), 10).copies == 0


@pytest.mark.parametrize("tied", [False, True])
def test_flops_are_what_pytorch_counts(tied):
    config = tiny(tie_word_embeddings=tied)
    size = model_size(config, recipe_of("sft")).multiplied
    model = AutoModelForCausalLM.from_config(config)
    assert size == multiplied(model)
    ids = torch.arange(32).view(2, 16)
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=ids).logits
        sampled = counter.get_total_flops()
        logits.sum().backward()
    # Attention's own products and the norms are 1 % here.
    assert counter.get_total_flops() == pytest.approx(estimate_flops(size, ids.numel()), rel=0.02)
    assert sampled == pytest.approx(estimate_flops(size, 0, tokens_sampled=ids.numel()), rel=0.02)


def test_the_papers_grpo_run():
    recipe = recipe_of("grpo", name="olmo2-7b")
    size = model_size(OLMO2_7B, recipe)
    assert size.parameters == size.trainable == pytest.approx(7.3e9, rel=0.01)
    plan = plan_run(recipe, size, sharding="zero2")
    assert (plan.steps, plan.sequences, plan.problems) == (571, 571 * 448, 9136)
    assert (plan.longest, plan.tokens_generated) == (2012, 571 * 448 * 1500)
    head = 100352 * 4096
    layers = 7.3e9 - 2 * head
    # Forward and backward, the layers once more (gradient checkpointing), and generation; logits
    # are made of the 1500 tokens of a completion.
    a_sequence = layers * (6 + 2 + 2) * 2012 + head * (6 + 2) * 1500
    assert plan.flops == pytest.approx(a_sequence * 571 * 448, rel=0.01)
    n = size.parameters
    assert plan.memory.weights == 2 * n
    assert plan.memory.gradients == 2 * n / 7
    assert plan.memory.optimizer == 12 * n / 7
    assert plan.memory.total < 80e9
    assert plan.checkpoint_bytes == 2 * n
    assert plan.disk_stored == 21 * 2 * n
    assert plan.disk_working == 2 * (2 * n + 12 * n)
    assert memory(size, recipe, 2012).optimizer == 4 * n  # in bfloat16, where 1e-6 is lost
    assert memory(size, recipe, 2012, "zero3").weights == 2 * n / 7
    assert memory(size, recipe, 2012, "fsdp").weights == 4 * n / 7


def test_the_papers_sft_run_and_its_variants():
    recipe = recipe_of("sft", name="olmo2-7b")
    plan = plan_run(recipe, model_size(OLMO2_7B, recipe), sharding="zero2")
    assert (plan.sequences, plan.longest) == (462 * 512, 512 + 4096)
    assert plan.tokens_generated == 0
    mean = plan_run(recipe, model_size(OLMO2_7B, recipe), sequence_tokens=2000.5)
    assert mean.tokens_trained == round(462 * 512 * 2000.5)
    qk = recipe_of("sft", name="olmo2-7b-only-qk")
    size = model_size(OLMO2_7B, qk)
    assert size.trainable == 32 * 2 * 4096 * 4096 + 100352 * 4096
    assert memory(size, qk, 2000, "zero2").optimizer == 12 * size.trainable / 8


def test_steps_in_epochs_come_from_the_rows():
    recipe = recipe_of(
        "sft",
        "train.max_steps=null train.num_train_epochs=2 checkpoints.count=10 train.max_length=64",
    )
    size = model_size(tiny(), recipe)
    assert plan_run(recipe, size, rows=480).steps == 10
    with pytest.raises(ScalpelError, match="--rows"):
        plan_run(recipe, size)


def test_a_recipe_without_bounds_wants_a_length():
    recipe = recipe_of("grpo")
    with pytest.raises(ScalpelError, match=r"data\.max_prompt_tokens"):
        plan_run(recipe, model_size(tiny(), recipe))
    assert plan_run(recipe, model_size(tiny(), recipe), sequence_tokens=40).longest == 40


def test_the_command_prints_a_plan(first_model, capsys, monkeypatch):
    monkeypatch.chdir(PROJECTS.parent)
    config = str(first_model / "config.json")
    assert main(["plan", "grpo/tiny", "--config", config, "--tokens", "40"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["steps"] == "60"
    assert "generated" in " ".join(told.values())
    assert told["sequences"] == "5,760, of 720 draws of a problem"
    parameters = sum(weight.numel() for weight in _model(first_model).parameters())
    assert f"{parameters / 1e6:,.1f} M" in told["model"]
    assert main(["plan", "sft/tiny", "--config", "nowhere.json"]) == 2
    assert "nowhere.json: there is no such file" in capsys.readouterr().err
    assert main(["plan", "sft/tiny", "--config", "pyproject.toml"]) == 2
    assert "--config pyproject.toml: is no configuration" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "sft/tiny", "--config", config, "--tokens", "0"])
    assert "0 is not a number of at least 1" in capsys.readouterr().err
    assert main(["plan", "evaluate/tiny"]) == 2
    assert "only sft and grpo are planned" in capsys.readouterr().err


def test_a_plan_without_a_hub_says_at_once_what_to_do():
    """In a process of its own, with an address where nobody answers."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_CACHE": "/nowhere",
    }
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "mlflow_scalpel.cli", "plan", "grpo/olmo2-7b"],
        cwd=PROJECTS.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert time.monotonic() - started < 15  # most of it imports
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("model = allenai/OLMo-2-1124-7B-Instruct: its configuration cannot be")
    assert "--config" in line


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"model_type": "t5"}', "is not a configuration of a causal language model"),
        ('{"model_type": "olmo2", "hidden_size": "x"}', "is no configuration of a model"),
        ('{"model_type": "nothing"}', "is no configuration of a model"),
    ],
)
def test_a_configuration_of_another_kind_is_one_line(tmp_path, monkeypatch, capsys, config, said):
    monkeypatch.chdir(PROJECTS.parent)
    file = tmp_path / "config.json"
    file.write_text(config)
    assert main(["plan", "sft/olmo2-1b", "--config", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_model_that_names_its_sizes_otherwise_is_planned():
    size = model_size(GPT2Config(n_embd=64, n_layer=2, n_head=2), recipe_of("sft"))
    assert (size.hidden, size.intermediate, size.layers) == (64, 256, 2)


@pytest.mark.parametrize("model", ["./nowhere", "org/name@branch", "a b"])
def test_a_model_that_is_nowhere_is_one_line(model, monkeypatch, capsys):
    monkeypatch.chdir(PROJECTS.parent)
    assert main(["plan", "sft/tiny", "--set", f"'model={model}'"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"model = {model}: its configuration cannot be had")
    assert "a local directory" in line


def _model(directory: Path):
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
