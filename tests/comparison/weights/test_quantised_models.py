"""Quantised checkpoints against their unquantised base, and the reverse: weights and KL."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import mlflow_scalpel
from mlflow_scalpel.comparison.forward.probes import build_probe
from tests.conftest import make_tokenizer

TEXTS = [("1+1=?", "2"), ("what is the capital", "a long answer of many letters"), ("a", "b")]
NORM = "weights/relative_frobenius"
GROUPS = ["weights/relative_frobenius", "kl/all_tokens"]


def as_fp8(base: Path, directory: Path, *, scales: bool = True) -> dict[str, torch.Tensor]:
    """The base with fp8 matrices in its layers; the numbers that they stand for, in float64."""
    shutil.copytree(base, directory)
    tensors, numbers = {}, {}
    for name, one in load_file(base / "model.safetensors").items():
        numbers[name] = one.double()
        tensors[name] = one
        if ".layers." in name and one.ndim == 2:
            scale = one.abs().amax() / 448
            tensors[name] = (one / scale).to(torch.float8_e4m3fn)
            if scales:
                tensors[f"{name}_scale_inv"] = scale.reshape(1, 1)
            numbers[name] = tensors[name].double() * scale.double()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (directory / "config.json").write_text(json.dumps(config))
    return numbers


def own_kl(first, second) -> float:
    found = []
    for item in build_probe("p", TEXTS, make_tokenizer()).items:
        ids = torch.tensor([item.ids])
        with torch.no_grad():
            p, q = (
                one(input_ids=ids).logits[0].double().log_softmax(-1) for one in (first, second)
            )
        found.append(float((p.exp() * (p - q)).sum(-1).mean()))
    return sum(found) / len(found)


def test_the_error_of_quantisation_in_weights_and_outputs(first_model, tmp_path):
    fp8 = tmp_path / "fp8"
    numbers = as_fp8(first_model, fp8)
    table = mlflow_scalpel.compare(str(first_model), str(fp8), metrics=GROUPS, texts=TEXTS)
    assert set(table["status"]) == {"ok"}, table["reason"].dropna().iloc[0]
    exact = load_file(first_model / "model.safetensors")
    rows = table[table["metric"] == NORM]
    name = "model.layers.1.mlp.up_proj.weight"
    row = rows[(rows["layer"] == 1) & (rows["matrix"] == "up_proj")].iloc[0]
    expected = (numbers[name] - exact[name].double()).norm() / exact[name].double().norm()
    assert row["value"] == pytest.approx(float(expected), rel=1e-6)
    assert 0.01 < row["value"] < 0.04
    first = AutoModelForCausalLM.from_pretrained(first_model).eval()
    second = AutoModelForCausalLM.from_pretrained(first_model).eval()
    second.load_state_dict({name: one.float() for name, one in numbers.items()})
    kl = table[table["metric"] == "kl/all_tokens"]["value"].iloc[0]
    assert kl == pytest.approx(own_kl(first, second), rel=1e-4)


def test_a_quantised_base(first_model, tmp_path):
    fp8 = tmp_path / "fp8"
    as_fp8(first_model, fp8)
    table = mlflow_scalpel.compare(
        str(fp8), [str(fp8), str(first_model)], metrics=GROUPS, texts=TEXTS
    )
    assert set(table["status"]) == {"ok"}
    kl = table[table["metric"] == "kl/all_tokens"]["value"]
    assert kl.iloc[0] == 0.0
    assert kl.iloc[1] > 0.0


def test_raw_numbers_without_their_scales_are_rows_with_a_reason(first_model, tmp_path):
    odd = tmp_path / "odd"
    as_fp8(first_model, odd, scales=False)
    table = mlflow_scalpel.compare(
        str(first_model), [str(odd), str(first_model)], metrics=GROUPS, texts=TEXTS
    )
    bad = table[(table["model_id"] == str(odd)) & (table["status"] != "ok")]
    assert set(bad["status"]) == {"not supported", "not comparable"}
    assert set(bad[bad["metric"] == NORM]["part"]) == {"attention", "mlp"}
    assert bad["reason"].str.contains("F8_E4M3 without a scale").all()
    assert set(table.drop(bad.index)["status"]) == {"ok"}


@pytest.mark.parametrize("side", ["base", "checkpoint"])
def test_a_config_that_says_quantised_of_weights_that_are_not(first_model, tmp_path, side):
    said = tmp_path / "said"
    shutil.copytree(first_model, said)
    config = json.loads((said / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (said / "config.json").write_text(json.dumps(config))
    pair = (said, first_model) if side == "base" else (first_model, said)
    table = mlflow_scalpel.compare(*map(str, pair), metrics=GROUPS, texts=TEXTS)
    kl = table[table["metric"] == "kl/all_tokens"].iloc[0]
    assert kl["status"] == ("not supported" if side == "base" else "not comparable")
    assert "quantised by bitsandbytes" in kl["reason"]
    assert "\n" not in kl["reason"]
    assert set(table[table["metric"] == NORM]["status"]) == {"ok"}
