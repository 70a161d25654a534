"""Adapters measured by their factors: the numbers of PEFT's own merge in float64, and of NumPy."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GptOssConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

import mlflow_scalpel
from mlflow_scalpel.comparison.weights.files import StoredWeights
from tests.conftest import make_tokenizer

SIZES = {
    "vocab_size": len(make_tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
}
QWEN = Qwen3Config(**SIZES, tie_word_embeddings=False)
TIED = Qwen3Config(**SIZES, tie_word_embeddings=True)
BIASED = Qwen2Config(**SIZES)
GPT2 = GPT2Config(vocab_size=SIZES["vocab_size"], n_embd=32, n_layer=2, n_head=4, n_positions=96)
UNTIED_GPT2 = GPT2Config(**{**GPT2.to_dict(), "tie_word_embeddings": False})
PHI3 = Phi3Config(**SIZES, pad_token_id=1)
MIXTURE = Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
GPT_OSS = GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
MEASURED = [
    "weights/relative_frobenius",
    "weights/update_rms",
    "weights/cosine_distance",
    "weights/largest_change",
    "weights/unchanged",
    "spectra",
]


def lora(**more: Any) -> LoraConfig:
    return LoraConfig(
        **{"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "up_proj"], **more}
    )


CASES: dict[str, tuple[PretrainedConfig, Any]] = {
    "plain": (QWEN, lora()),
    "rslora": (QWEN, lora(use_rslora=True, lora_alpha=16)),
    "patterns": (
        QWEN,
        lora(
            rank_pattern={"up_proj": 2, r"layers\.1\.self_attn\.q_proj": 6},
            alpha_pattern={"q_proj": 3},
        ),
    ),
    "one layer": (QWEN, lora(layers_to_transform=[1])),
    "dora": (QWEN, lora(use_dora=True)),
    "bias": (BIASED, lora(lora_bias=True, target_modules=["q_proj"])),
    "all biases": (BIASED, lora(bias="all")),
    "embeddings": (QWEN, lora(target_modules=["embed_tokens", "lm_head", "q_proj"])),
    "modules to save": (QWEN, lora(modules_to_save=["lm_head"])),
    "tokens": (QWEN, lora(trainable_token_indices=[5, 7, 30])),
    "tied tokens": (TIED, lora(trainable_token_indices=[5, 7, 30])),
    "Conv1D": (GPT2, lora(target_modules=["c_attn", "c_fc"])),
    "Conv1D dora": (GPT2, lora(target_modules=["c_attn", "c_fc"], use_dora=True)),
    "square Conv1D": (GPT2, lora(target_modules=["attn.c_proj"])),
    "Conv1D and Linear": (UNTIED_GPT2, lora(target_modules=["c_attn", "c_proj", "lm_head"])),
    "fused": (PHI3, lora(target_modules=["qkv_proj", "gate_up_proj"])),
    "fused dora": (PHI3, lora(target_modules=["qkv_proj", "gate_up_proj"], use_dora=True)),
    "pissa": (QWEN, lora(init_lora_weights="pissa")),
    "olora": (QWEN, lora(init_lora_weights="olora")),
    "eva": (QWEN, lora(init_lora_weights="eva")),
    "orthogonal": (QWEN, lora(init_lora_weights="orthogonal")),
    "experts": (
        MIXTURE,
        lora(
            target_modules=["q_proj"],
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        ),
    ),
    "stored experts": (
        GPT_OSS,
        lora(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"]),
    ),
    "loha": (QWEN, peft.LoHaConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])),
    "ia3": (
        QWEN,
        peft.IA3Config(
            task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]
        ),
    ),
}  # fmt: skip


@pytest.fixture
def make_base(tmp_path: Path) -> Callable[..., Path]:
    """Save a base of a family, in bfloat16."""

    def make(config: PretrainedConfig, dtype: torch.dtype = torch.bfloat16) -> Path:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases are zeros in a new model
                torch.nn.init.normal_(parameter, 1.0, 0.1)
        model.to(dtype).save_pretrained(tmp_path / "base")
        make_tokenizer().save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return make


def train(base: Path, config: Any, directory: Path, seed: int = 3) -> Path:
    """An adapter whose own parameters moved, with the base that it was attached to."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    together = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in together.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    together.save_pretrained(directory)
    return directory


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """PEFT's own merge in float64, under the names of files, as Transformers writes them."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    together = PeftModel.from_pretrained(model, adapter).double()
    whole = together.merge_and_unload()
    whole.save_pretrained(adapter / "by-peft")
    found = load_file(adapter / "by-peft" / "model.safetensors")
    shutil.rmtree(adapter / "by-peft")
    return found


def measure(base: Path, *adapters: Path, metrics: list[str] = MEASURED) -> pd.DataFrame:
    return mlflow_scalpel.compare(
        str(base), [str(one) for one in adapters], metrics=metrics, cache=False
    )


def values_of(table: pd.DataFrame, place: tuple[int | None, str]) -> dict[str, Any]:
    layer, matrix = place
    rows = table[table["matrix"] == matrix]
    rows = rows[rows["layer"].isna()] if layer is None else rows[rows["layer"] == layer]
    return {
        row["metric"]: (row["value"], row["status"], row["dtype"]) for _, row in rows.iterrows()
    }


def expected(w0: np.ndarray, wt: np.ndarray) -> dict[str, float]:
    update = wt - w0
    found = {
        "weights/relative_frobenius": np.linalg.norm(update) / np.linalg.norm(w0),
        "weights/update_rms": np.sqrt((update**2).mean()),
        "weights/largest_change": np.abs(update).max(),
        "weights/unchanged": (update == 0).mean(),
    }
    if w0.ndim == 2:
        s = np.linalg.svd(update, compute_uv=False)
        p = s[s > 1e-13 * s[0]] / s[s > 1e-13 * s[0]].sum()
        found["spectra/update_spectral_norm"] = s[0]
        found["spectra/stable_rank"] = (s**2).sum() / s[0] ** 2
        found["spectra/effective_rank"] = np.exp(-(p * np.log(p)).sum())
        before = np.linalg.svd(w0, compute_uv=False)
        after = np.linalg.svd(wt, compute_uv=False)
        drift = np.linalg.norm(after - before) / np.linalg.norm(before)
        found["spectra/singular_value_drift"] = drift
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_every_tensor_has_the_numbers_of_pefts_merge_in_float64(
    tmp_path: Path, make_base: Callable[..., Path], name: str
) -> None:
    family, config = CASES[name]
    base = make_base(family)
    adapter = train(base, config, tmp_path / "run" / "checkpoint-5")
    before = load_file(base / "model.safetensors")
    after = merged_by_peft(base, adapter)
    table = measure(base, adapter)
    touched = 0
    for place, (tensor, cut) in StoredWeights(base).matrices().items():
        w0, wt = (one[tensor].double() for one in (before, after))
        w0, wt = (one if cut is None else cut.of(one) for one in (w0, wt))
        found = values_of(table, place)
        if torch.equal(w0, wt):
            assert found["weights/relative_frobenius"][:2] == (0.0, "not trained"), place
            assert found["weights/unchanged"][:2] == (1.0, "not trained"), place
            continue
        touched += 1
        for metric, value in expected(w0.numpy(), wt.numpy()).items():
            got, status, _ = found[metric]
            assert status == "ok", (place, metric, status)
            # PEFT adds in float64, which rounds to 1e-16 of the weights.
            tolerance = 1e-6 if metric != "weights/unchanged" else 1e-3
            assert math.isclose(got, value, rel_tol=tolerance, abs_tol=1e-12), (place, metric)
    assert touched >= 2


def full_checkpoint(base: Path, directory: Path) -> Path:
    """A checkpoint of whole weights, some of which moved."""
    torch.manual_seed(9)
    shutil.copytree(base, directory)
    tensors = load_file(base / "model.safetensors")
    moved = {
        name: tensor + (0.01 * torch.randn_like(tensor) if tensor.ndim == 2 else 0)
        for name, tensor in tensors.items()
    }
    save_file(moved, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def flat(update: torch.Tensor) -> np.ndarray:
    found: np.ndarray = update.double().numpy().reshape(-1)
    return found


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


NAME = "model.layers.1.self_attn.q_proj"


@pytest.mark.filterwarnings("ignore")
def test_pairs_of_adapters_and_of_an_adapter_and_whole_weights(
    tmp_path: Path, make_base: Callable[..., Path]
) -> None:
    base = make_base(QWEN)
    one = train(base, lora(), tmp_path / "a" / "checkpoint-5", seed=1)
    other = train(base, lora(target_modules=["q_proj"]), tmp_path / "b" / "checkpoint-5", seed=1)
    whole = full_checkpoint(base, tmp_path / "c" / "checkpoint-5")
    before = load_file(base / "model.safetensors")[f"{NAME}.weight"].double()
    after = {
        str(adapter): merged_by_peft(base, adapter)[f"{NAME}.weight"] for adapter in (one, other)
    }
    after[str(whole)] = load_file(whole / "model.safetensors")[f"{NAME}.weight"]
    table = measure(base, one, other, whole, metrics=["pairs"])
    rows = table[(table["layer"] == 1) & (table["matrix"] == "q_proj").fillna(False)]
    cosines = rows[rows["metric"] == "pairs/update_cosine"]
    assert len(cosines) == 3
    for _, row in cosines.iterrows():
        updates = [flat(after[key].double() - before) for key in (row["model_id"], row["other"])]
        assert row["value"] == pytest.approx(cosine(*updates), rel=1e-9, abs=1e-12)
    overlaps = rows[rows["metric"] == "pairs/changed_overlap_total"]
    # Nearly all weights of a LoRA's matrix change, and so do those of the other: that is chance.
    assert overlaps["value"].tolist() == pytest.approx([1.0] * 3, abs=0.02)
    up = table[(table["layer"] == 1) & (table["matrix"] == "up_proj").fillna(False)]
    pair = up[(up["model_id"] == str(one)) & (up["other"] == str(other)).fillna(False)]
    assert set(pair["status"]) == {"not trained"}


@pytest.mark.filterwarnings("ignore")
def test_histograms_count_what_the_sum_in_float64_changes(
    tmp_path: Path, make_base: Callable[..., Path]
) -> None:
    base = make_base(QWEN)
    adapter = train(base, lora(), tmp_path / "checkpoint-5")
    w0 = load_file(base / "model.safetensors")[f"{NAME}.weight"]
    wt = merged_by_peft(base, adapter)[f"{NAME}.weight"]
    table = measure(base, adapter, metrics=["histograms"])
    rows = table[(table["layer"] == 1) & (table["matrix"] == "q_proj").fillna(False)]
    unmoved = rows[(rows["metric"] == "histograms/ulp_change") & (rows["bin"] == 0)]["value"].item()
    assert unmoved == pytest.approx(float((wt.bfloat16() == w0).double().mean()), abs=1e-9)
    changed = rows[rows["metric"] == "histograms/change_by_magnitude"]
    share = (changed["value"] * changed["n"]).sum() / w0.numel()
    assert share == pytest.approx(float((wt != w0.double()).double().mean()), abs=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_another_base_is_measured_from_the_base_that_is_given(
    tmp_path: Path, make_base: Callable[..., Path]
) -> None:
    base = make_base(QWEN)
    trained = full_checkpoint(base, tmp_path / "sft" / "checkpoint-9")
    adapter = train(trained, lora(target_modules=["q_proj"]), tmp_path / "rl" / "checkpoint-5")
    before = load_file(base / "model.safetensors")
    after = merged_by_peft(trained, adapter)
    table = measure(base, adapter)
    for matrix, name in (("q_proj", NAME), ("k_proj", NAME.replace("q_proj", "k_proj"))):
        found = values_of(table, (1, matrix))
        w0, wt = (one[f"{name}.weight"].double().numpy() for one in (before, after))
        for metric, value in expected(w0, wt).items():
            if metric == "weights/unchanged":
                continue
            assert found[metric][0] == pytest.approx(value, rel=1e-5, abs=1e-12), (matrix, metric)
    assert values_of(table, (1, "input_layernorm"))["weights/update_rms"][1] == "not trained"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_embeddings_that_are_tied_in_the_base(
    tmp_path: Path, make_base: Callable[..., Path], target: str
) -> None:
    base = make_base(TIED)
    adapter = train(base, lora(target_modules=[target, "q_proj"]), tmp_path / "checkpoint-5")
    w0 = load_file(base / "model.safetensors")["model.embed_tokens.weight"].double()
    factors = load_file(adapter / "adapter_model.safetensors")
    if target == "lm_head":
        b, a = (factors[f"base_model.model.lm_head.lora_{one}.weight"].double() for one in "BA")
        update = 2.0 * b @ a
    else:
        name = "base_model.model.model.embed_tokens.lora_embedding_"
        b, a = (factors[f"{name}{one}"].double() for one in "BA")
        update = 2.0 * (b @ a).T
    found = values_of(measure(base, adapter), (None, target))
    for metric, value in expected(w0.numpy(), (w0 + update).numpy()).items():
        assert found[metric][0] == pytest.approx(value, rel=1e-6, abs=1e-12), metric
    other = "lm_head" if target == "embed_tokens" else "embed_tokens"
    left = values_of(measure(base, adapter), (None, other))
    assert all(one[1] == "not trained" for one in left.values())


@pytest.mark.filterwarnings("ignore")
def test_kl_is_that_of_the_model_with_its_adapter_not_merged(
    tmp_path: Path, make_base: Callable[..., Path]
) -> None:
    base = make_base(QWEN)
    adapter = train(base, lora(), tmp_path / "checkpoint-5")
    tensors = load_file(adapter / "adapter_model.safetensors")
    small = {name: tensor * 0.2 if "lora_B" in name else tensor for name, tensor in tensors.items()}
    save_file(small, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    texts = [("1+1=?", "2"), ("Name a colour", "red, or blue")]
    table = mlflow_scalpel.compare(
        str(base), str(adapter), metrics=["kl/all_tokens"], texts=texts, cache=False
    )
    tokenizer = make_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval()
    means, before = [], []
    with torch.inference_mode():
        for problem, solution in texts:
            turns = [
                {"role": "user", "content": problem},
                {"role": "assistant", "content": solution},
            ]
            ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
            before.append((ids["input_ids"], model(ids["input_ids"]).logits[0].log_softmax(-1)))
        together = PeftModel.from_pretrained(model, adapter).double().eval()
        for ids, p in before:
            q = together(ids).logits[0].log_softmax(-1)
            means.append(float((p.exp() * (p - q)).sum(-1).mean()))
    assert 1e-9 < np.mean(means) < 1e-3
    assert table["value"].item() == pytest.approx(np.mean(means), rel=1e-3)
