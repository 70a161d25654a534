"""FLOPs, held against what PyTorch counts on real forward passes and on real steps of TRL."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, OlmoeConfig
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from mlflow_scalpel.recipes import load_recipe
from mlflow_scalpel.training.flops import multiplied, multiplied_parameters, run_flops
from mlflow_scalpel.training.planning import model_size, plan_run

PROJECTS = Path(__file__).parents[2] / "projects"
SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 32,
}
EIGHT = {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 64}
SHARED = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
FAMILIES = {
    "mixtral": EIGHT,
    "olmoe": {"num_experts": 16, "num_experts_per_tok": 4, "intermediate_size": 64},
    "qwen2_moe": {**SHARED, "shared_expert_intermediate_size": 96},
    "qwen3_moe": {**SHARED, "intermediate_size": 256, "mlp_only_layers": [1], "head_dim": 32},
    "deepseek_v2": {**ROUTED, **LATENT, "first_k_dense_replace": 1, "q_lora_rank": None},
    "deepseek_v3": {
        **ROUTED, **LATENT, "first_k_dense_replace": 1, "q_lora_rank": 32, "n_group": 2,
        "topk_group": 1,
    },
    "gpt_oss": {**EIGHT, "head_dim": 32},
    "llama4_text": {**EIGHT, "num_experts_per_tok": 1, "moe_layers": [1], "head_dim": 32},
    "granitemoe": EIGHT,
    "granitemoeshared": {**EIGHT, "shared_intermediate_size": 96},
    "jetmoe": {**EIGHT, "kv_channels": 32},  # experts of attention too
    "ernie4_5_moe": {"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 64},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2, "intermediate_size": 64, "head_dim": 32},
    "llama": {"intermediate_size": 256},
    "gemma3_text": {"intermediate_size": 256, "head_dim": 32},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_pass_of_each_family(family: str) -> None:
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family]})
    config._experts_implementation = "eager"  # whose products the counter sees
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    ids = torch.randint(3, 500, (256, 2))  # short, so that attention's own products are few
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    size = multiplied(model)
    assert 2 * size.parameters == pytest.approx(counter.get_total_flops() / ids.numel(), rel=0.02)
    assert size.unknown is False
    assert bool(size.notes) == (family == "llama4_text")  # runs all experts for every token
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    assert multiplied(empty) == size


def test_olmoe_7b_has_1_2_b_active() -> None:
    """6.92 B parameters, 1.28 B of them active, of which 0.10 B are a look-up (2409.02060)."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(OlmoeConfig(intermediate_size=1024))
    assert model.num_parameters() == pytest.approx(6.92e9, rel=0.005)
    looked_up = model.get_input_embeddings().weight.numel()
    assert multiplied_parameters(model) + looked_up == pytest.approx(1.28e9, rel=0.005)


class Layer(nn.Module):
    """A mixture as models with code of their own write it: a module for each expert."""

    def __init__(self, top_k: int | None) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 4, bias=False)
        self.experts = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(4))
        self.shared_experts = nn.ModuleList([nn.Linear(8, 8, bias=False)])
        if top_k is not None:
            self.top_k = top_k


class Own(nn.Module):
    def __init__(self, top_k: int | None) -> None:
        super().__init__()
        self.config = LlamaConfig()
        self.embed = nn.Embedding(5, 8)
        self.layer = Layer(top_k)
        self.lm_head = nn.Linear(8, 5, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


def test_experts_that_are_modules_and_those_nothing_is_known_of() -> None:
    rest = 8 * 4 + 8 * 8 + 8 * 5
    assert multiplied_parameters(Own(top_k=1)) == rest + 64
    assert multiplied_parameters(Own(top_k=3)) == rest + 3 * 64
    size = multiplied(Own(top_k=None))
    assert size.parameters == rest + 4 * 64
    assert size.unknown
    assert "not known, so all of them are counted" in size.notes[0]


def recipe_of(stage: str, settings: str):
    return load_recipe("tiny", PROJECTS / stage / "recipes", stage=stage, settings=settings)


@pytest.fixture
def model(first_model: Path):
    """Wide enough that attention's products and norms are next to nothing, and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(first_model)
    config = LlamaConfig(
        **{**SIZES, "hidden_size": 256, "vocab_size": len(tokenizer)}, intermediate_size=700
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config), tokenizer


WITHIN = {False: 0.03, True: 0.07}
"""By whether layers run again; PyTorch then stops before a layer's last product."""
COMMON = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "disable_tqdm": True,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-6,
}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_steps_of_sft(model, tmp_path: Path, checkpointing: bool) -> None:
    model, tokenizer = model
    rows = [{"input_ids": [5 + i] * 30} for i in range(8)]
    arguments = SFTConfig(
        output_dir=str(tmp_path), max_steps=2, gradient_checkpointing=checkpointing, **COMMON
    )
    data = datasets.Dataset.from_list(rows)
    trainer = SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer)
    with FlopCounterMode(display=False) as counter:
        trainer.train()
    recipe = recipe_of("sft", f"train.gradient_checkpointing={str(checkpointing).lower()}")
    said = run_flops(recipe, multiplied(model), tokens_trained=240, read=0, written=0)
    assert counter.get_total_flops() == pytest.approx(said, rel=WITHIN[checkpointing])


@pytest.mark.parametrize(
    ("beta", "iterations", "checkpointing"),
    [(0.0, 1, False), (0.1, 1, False), (0.0, 2, False), (0.1, 2, True)],
)
def test_two_steps_of_grpo(
    model, tmp_path: Path, beta: float, iterations: int, checkpointing: bool
) -> None:
    model, tokenizer = model
    prompts = [{"prompt": f"{i}+{i}=" + "?" * 12} for i in range(1, 9)]
    lengths = {len(tokenizer(row["prompt"])["input_ids"]) for row in prompts}
    assert len(lengths) == 1  # no padding, which is not counted
    prompt, new = lengths.pop(), 24
    arguments = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        num_generations=4,
        steps_per_generation=1,
        max_completion_length=new,
        generation_kwargs={"min_new_tokens": new},
        beta=beta,
        num_iterations=iterations,
        gradient_checkpointing=checkpointing,
        **COMMON,
    )
    if beta:
        model.config._name_or_path = str(tmp_path / "reference")
        model.save_pretrained(tmp_path / "reference")
    trainer = GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
        args=arguments,
        train_dataset=datasets.Dataset.from_list(prompts),
        processing_class=tokenizer,
    )
    with FlopCounterMode(display=False) as counter:
        trainer.train()
    settings = f"train.beta={beta} train.num_iterations={iterations}"
    settings += f" train.gradient_checkpointing={str(checkpointing).lower()}"
    recipe = recipe_of("grpo", settings)
    batches = 2 // iterations
    said = run_flops(
        recipe,
        multiplied(model),
        tokens_trained=2 * 4 * (prompt + new),
        read=batches * 4 * (prompt + new),
        written=batches * 4 * new,
    )
    assert counter.get_total_flops() == pytest.approx(said, rel=WITHIN[checkpointing])


def test_plan_and_run_say_the_same() -> None:
    """4 steps of 2 iterations: 2 generated batches, each trained on twice."""
    recipe = recipe_of("grpo", "train.max_steps=4 checkpoints.count=2 train.num_iterations=2")
    size = model_size(LlamaConfig(**SIZES, intermediate_size=256), recipe)
    plan = plan_run(recipe, size, sequence_tokens=20, completion_tokens=5)
    a_step = plan.sequences // 4
    assert plan.tokens_trained == 4 * a_step * 20
    assert plan.tokens_generated == 2 * a_step * 5
    n, h = size.multiplied.parameters, size.multiplied.head
    passes = 3 * 4 + 2 + 2  # trained; generated; and scored by the old policy
    assert plan.flops == pytest.approx(2 * a_step * 20 * passes * (n - h + h * 5 / 20))
