"""Adapters of which something cannot be had: what can is measured, and the rest says why."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import mlflow_scalpel
from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
from mlflow_scalpel.checkpoints.models.merging import merge_adapter
from mlflow_scalpel.errors import ScalpelError

NORM = "weights/relative_frobenius"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Save an adapter whose parameters moved, trained on a base that may have grown first."""

    def make(base: Path, name: str = "good", *, grown: int = 0, **options: Any) -> Path:
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_pretrained(base)
        if grown:
            model.resize_token_embeddings(model.config.vocab_size + grown)
        config = LoraConfig(r=4, task_type="CAUSAL_LM", **{"target_modules": ["q_proj"], **options})
        together = get_peft_model(model, config)
        with torch.no_grad():
            for parameter in together.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn_like(parameter))
        together.save_pretrained(tmp_path / name / "checkpoint-5")
        return tmp_path / name / "checkpoint-5"

    return make


def configured(adapter: Path, **fields: Any) -> Path:
    path = adapter / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return adapter


def measure(base: Path, *adapters: Path, **more: Any):
    return mlflow_scalpel.compare(
        str(base), [str(one) for one in adapters], metrics=[NORM], cache=False, **more
    )


def own_norm(base: Path, adapter: Path, layer: int = 0) -> float:
    """||s B A|| / ||W_0|| of q_proj, in float64."""
    name = f"model.layers.{layer}.self_attn.q_proj"
    factors = load_file(adapter / WEIGHTS)
    a, b = (factors[f"base_model.model.{name}.lora_{one}.weight"].double() for one in "AB")
    w0 = load_file(base / "model.safetensors")[f"{name}.weight"].double()
    return float(2.0 * (b @ a).norm() / w0.norm())  # lora_alpha / r = 8 / 4


def norm_of(table, adapter: Path) -> float:
    rows = table[(table["model_id"] == str(adapter)) & (table["layer"] == 0).fillna(False)]
    return float(rows[rows["matrix"] == "q_proj"]["value"].item())


def emptied(adapter: Path) -> Path:
    """As ZeRO-3 leaves them: each tensor has the shape [0]."""
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: torch.empty(0) for name in tensors}, adapter / WEIGHTS)
    return adapter


BREAK: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty": (emptied, "without elements.*ZeRO-3"),
    "pissa_niter": (
        lambda one: configured(one, init_lora_weights="pissa_niter_4"),
        "randomised SVD.*path_initial_model_for_weight_conversion",
    ),
    "corda": (lambda one: configured(one, init_lora_weights="corda"), "covariances of data"),
    "loftq": (lambda one: configured(one, init_lora_weights="loftq"), "quantised base"),
    "lora_ga": (lambda one: configured(one, init_lora_weights="lora_ga"), "gradients of data"),
    "other rank": (lambda one: configured(one, r=8), "says rank 8"),
    "config": (lambda one: (one / CONFIG).write_text("[1]") and one, "is not the configuration"),
    "aLoRA": (
        lambda one: configured(one, alora_invocation_tokens=[1, 2]),
        "does not support merging",
    ),
}


@pytest.mark.parametrize("name", BREAK)
def test_a_bad_adapter_is_rows_of_its_own(first_model, make_adapter, name):
    good = make_adapter(first_model)
    spoil, why = BREAK[name]
    bad = spoil(Path(shutil.copytree(good, good.parents[1] / "bad" / "checkpoint-5")))
    table = measure(first_model, good, bad)
    assert norm_of(table, good) == pytest.approx(own_norm(first_model, good), rel=1e-9)
    rows = table[table["model_id"] == str(bad)]
    assert set(rows["status"]) == {"not readable"}
    assert rows["reason"].str.contains(why, regex=True).all()


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda", "loftq", "lora_ga"])
def test_a_start_that_nobody_finds_again_is_not_merged(first_model, make_adapter, start):
    adapter = configured(make_adapter(first_model), init_lora_weights=start)
    with pytest.raises(ScalpelError, match="path_initial_model_for_weight_conversion"):
        merge_adapter(adapter, first_model)
    with pytest.raises(ScalpelError, match="path_initial_model_for_weight_conversion"):
        measure(first_model, adapter)


@pytest.mark.parametrize(
    "options",
    [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}, {"trainable_token_indices": [77, 78]}],
)
def test_grown_embeddings(first_model, make_adapter, options):
    rows = load_file(first_model / "model.safetensors")["lm_head.weight"].shape[0]
    if "trainable_token_indices" in options:
        options = {"trainable_token_indices": [rows, rows + 1]}
    adapter = make_adapter(first_model, grown=4, **options)
    table = measure(first_model, adapter)
    assert norm_of(table, adapter) == pytest.approx(own_norm(first_model, adapter), rel=1e-9)
    (reason,) = set(table[table["status"] == "shape mismatch"]["reason"])
    assert f"grew from {rows} to {rows + 4} rows" in reason
    whole = load_file(merge_adapter(adapter, first_model) / "model.safetensors")
    assert whole["lm_head.weight"].shape[0] == rows + 4
    held = load_file(adapter / WEIGHTS)
    if not options:
        name = "base_model.model.model.embed_tokens.weight"
        assert torch.equal(whole["model.embed_tokens.weight"], held[name])
    if "trainable_token_indices" in options:
        delta = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
        assert torch.equal(whole["model.embed_tokens.weight"][rows : rows + 2], held[delta])


def test_biases_of_layers_that_have_none(first_model, make_adapter):
    adapter = make_adapter(first_model, lora_bias=True)
    table = measure(first_model, adapter)
    assert norm_of(table, adapter) == pytest.approx(own_norm(first_model, adapter), rel=1e-9)
    added = table[table["matrix"] == "self_attn.q_proj.bias"]
    assert added["status"].tolist() == ["missing"] * 2
    kl = mlflow_scalpel.compare(
        str(first_model), str(adapter), metrics=["kl/all_tokens"], texts=[("1", "2")], cache=False
    )
    assert "base layer has no bias" in kl["reason"].item()


def test_a_base_whose_weights_are_codes(first_model, make_adapter, tmp_path):
    adapter = make_adapter(first_model)
    coded = Path(shutil.copytree(first_model, tmp_path / "coded"))
    tensors = load_file(first_model / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        packed = torch.zeros(tensors[name].numel() // 2, 1, dtype=torch.uint8)
        tensors[name] = packed
    save_file(tensors, coded / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((coded / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (coded / "config.json").write_text(json.dumps(config))
    configured(adapter, base_model_name_or_path=str(coded))

    # Against whole weights: those updates, and no more.
    table = measure(first_model, adapter)
    assert norm_of(table, adapter) == pytest.approx(own_norm(first_model, adapter), rel=1e-9)

    # Against the codes: what is known of the update alone.
    table = mlflow_scalpel.compare(
        str(coded), str(adapter), metrics=["weights", "spectra"], cache=False
    )
    here = (table["layer"] == 0).fillna(False) & (table["matrix"] == "q_proj").fillna(False)
    rows = table[here].set_index("metric")
    assert rows.loc[NORM, "status"] == "not comparable"
    assert "quantised" in rows.loc[NORM, "reason"]
    w0 = load_file(first_model / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    rms = own_norm(first_model, adapter) * float(w0.double().norm()) / math.sqrt(w0.numel())
    assert rows.loc["weights/update_rms", "value"] == pytest.approx(rms, rel=1e-9)
    assert rows.loc["spectra/effective_rank", "value"] <= 4.0


def test_a_base_that_is_away_is_the_one_that_is_given(
    tracking, first_model, make_model, make_adapter, monkeypatch, capsys
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    adapter = configured(make_adapter(first_model), base_model_name_or_path="org/away")
    table = measure(first_model, adapter)
    assert norm_of(table, adapter) == pytest.approx(own_norm(first_model, adapter), rel=1e-9)
    assert "org/away, which cannot be had here" in capsys.readouterr().out
    with pytest.raises(ScalpelError, match=r"org/away: .*could be had from the hub"):
        measure(make_model(2, hidden=64), adapter)

    # A logged adapter knows the digest of its base, and takes no other.
    with mlflow.start_run():
        base = log_base(str(first_model))
        model = log_checkpoint(adapter, step=5, base=base.model_id).wait()
    mlflow.MlflowClient().set_logged_model_tags(base.model_id, {"scalpel.pruned": "2026-01-02"})
    found = mlflow_scalpel.compare(
        str(first_model), f"models:/{model.model_id}", metrics=[NORM], cache=False
    )
    rows = found[(found["layer"] == 0).fillna(False) & (found["matrix"] == "q_proj")]
    assert rows["value"].item() == pytest.approx(own_norm(first_model, adapter), rel=1e-9)
    with pytest.raises(ScalpelError, match="pruned at 2026-01-02"):
        mlflow_scalpel.compare(
            str(make_model(2)), f"models:/{model.model_id}", metrics=[NORM], cache=False
        )
