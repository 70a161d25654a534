"""One model stored in two ways is compared tensor by tensor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mlflow_scalpel
from mlflow_scalpel.comparison.weights.files import StoredWeights
from tests.tensors.tiny_families import tiny_config, tiny_model

NORM = "weights/relative_frobenius"
Tensors = dict[str, torch.Tensor]


def save(directory: Path, tensors: Tensors, config: Path | None = None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        shutil.copy(config / "config.json", directory)
    return directory


def norms(base: Path, checkpoint: Path) -> pd.DataFrame:
    return mlflow_scalpel.compare(str(base), [str(checkpoint)], metrics=[NORM], cache=False)


def moved(tensors: Tensors) -> Tensors:
    torch.manual_seed(1)
    return {name: one + 0.01 * one.std() * torch.randn_like(one) for name, one in tensors.items()}


@pytest.fixture
def mixture(tmp_path: Path) -> tuple[Path, Path]:
    """Qwen3-MoE with its experts one by one, as on the hub, and as Transformers 5 holds them."""
    torch.manual_seed(0)
    model = tiny_model("qwen3_moe", moe_intermediate_size=24)
    model.save_pretrained(tmp_path / "apart")
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    return tmp_path / "apart", tmp_path / "fused"


def test_experts_one_by_one_against_experts_in_one_tensor(mixture: tuple[Path, Path]) -> None:
    apart, fused = mixture
    names = load_file(fused / "model.safetensors")
    assert any(tensor.ndim == 3 for tensor in names.values())
    for base, checkpoint in (mixture, mixture[::-1]):
        table = norms(base, checkpoint)
        assert set(table["status"]) == {"ok"}
        assert (table["value"] == 0.0).all()
        assert len(table[table["part"] == "experts"]) == 4 * 4 * 3  # layers, experts, matrices
    assert list(norms(apart, fused)["matrix"]) == list(norms(apart, apart)["matrix"])


def test_experts_stored_the_other_way_round(mixture: tuple[Path, Path], tmp_path: Path) -> None:
    apart, fused = mixture
    turned = {
        name: tensor.mT if tensor.ndim == 3 else tensor
        for name, tensor in load_file(fused / "model.safetensors").items()
    }
    new = save(tmp_path / "turned", moved(turned), fused)
    table = norms(apart, new).set_index(["layer", "matrix"])
    experts = load_file(apart / "model.safetensors")
    changed = load_file(new / "model.safetensors")["model.layers.1.mlp.experts.gate_up_proj"]
    w0 = experts["model.layers.1.mlp.experts.2.up_proj.weight"].double()  # (I, H)
    wt = changed[2].T[24:].double()  # (E, H, 2 I), gates first
    expected = float((wt - w0).norm() / w0.norm())
    assert table.loc[(1, "experts.2.up_proj"), "value"] == pytest.approx(expected, rel=1e-6)
    # Where both are stored so, they are read so.
    both = norms(save(tmp_path / "base", turned, fused), new).set_index(["layer", "matrix"])
    assert both.loc[(1, "experts.2.up_proj"), "value"] == pytest.approx(expected, rel=1e-6)


PREFIXES = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}


def test_a_multimodal_model_under_the_names_of_two_versions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny_model("gemma3")
    new = dict(model.state_dict())
    new.pop("lm_head.weight")  # tied
    old = {}
    for name, tensor in new.items():
        prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
        old[PREFIXES[prefix] + name.removeprefix(prefix)] = tensor
    model.config.save_pretrained(tmp_path / "new")
    save(tmp_path / "new", new)
    save(tmp_path / "old", old, tmp_path / "new")
    table = norms(tmp_path / "old", tmp_path / "new")
    assert len(table) == len(new)
    assert not set(table["status"]) - {"ok", "undefined"}  # a bias of zeros has no relative norm
    vision = table[table["matrix"].str.contains("vision_tower|multi_modal")]
    assert vision["layer"].isna().all()
    assert set(vision["part"]) == {"vision"}
    assert set(table["layer"].dropna()) == {0, 1, 2, 3}


@pytest.mark.parametrize("stored", ["once", "twice"])
def test_a_tied_head_is_the_embeddings(stored: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny_model("qwen3", tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "base")
    once = load_file(tmp_path / "base/model.safetensors")
    assert "lm_head.weight" not in once
    new = moved(once)
    if stored == "twice":
        new["lm_head.weight"] = new["model.embed_tokens.weight"].clone()
    save(tmp_path / "base", {**once, "lm_head.weight": once["model.embed_tokens.weight"].clone()})
    table = norms(tmp_path / "base", save(tmp_path / "new", new, tmp_path / "base"))
    assert set(table["status"]) == {"ok"}
    assert "lm_head" not in set(table["matrix"])


def test_a_head_that_left_its_embeddings_is_compared_with_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny_model("qwen3", tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    tensors = load_file(tmp_path / "base/model.safetensors")
    head = 1.5 * tensors["model.embed_tokens.weight"]
    new = save(tmp_path / "new", {**tensors, "lm_head.weight": head}, tmp_path / "base")
    table = norms(tmp_path / "base", new).set_index("matrix")
    assert table.loc["lm_head", "value"] == pytest.approx(0.5, rel=1e-6)
    assert table.loc["lm_head", "part"] == "head"
    assert table.loc["embed_tokens", "value"] == 0.0


def test_two_matrices_of_a_layer_never_share_a_row(tmp_path: Path) -> None:
    tensors = {
        "model.layers.0.self_attn.gate_proj.weight": torch.randn(4, 4),  # AFMoE has both
        "model.layers.0.mlp.gate_proj.weight": torch.randn(4, 4),
        "model.layers.0.self_attn.q_proj.weight": torch.randn(4, 4),
        "model.layers.0.attn.q_proj.weight": torch.randn(4, 4),
        "model.layers.0.cross_attn.q_proj.weight": torch.randn(4, 4),
        "model.norm.weight": torch.randn(4),
        "norm.weight": torch.randn(4),
        "norm": torch.randn(4),
    }
    stored = StoredWeights(save(tmp_path / "base", tensors))
    assert sorted(name for name, _ in stored.matrices().values()) == sorted(tensors)
    assert {matrix for layer, matrix in stored.matrices() if layer == 0} == {
        "gate_proj",
        "self_attn.gate_proj",
        "self_attn.q_proj",
        "attn.q_proj",
        "cross_attn.q_proj",
    }


def test_a_predictor_of_further_tokens_is_no_layer(tmp_path: Path) -> None:
    tensors = {
        f"model.layers.{layer}.self_attn.q_proj.weight": torch.randn(4, 4) for layer in range(3)
    }
    tensors["model.layers.2.eh_proj.weight"] = torch.randn(4, 8)  # as DeepSeek-V3 stores it
    stored = StoredWeights(save(tmp_path / "base", tensors))
    assert {place for place in stored.pieces if place[0] is not None} == {
        (0, "q_proj"),
        (1, "q_proj"),
    }
    assert {piece.part for place, piece in stored.pieces.items() if place[0] is None} == {"other"}


def test_buffers_are_no_weights(tmp_path: Path) -> None:
    tensors = {
        "model.layers.0.self_attn.q_proj.weight": torch.randn(4, 4),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.rotary_emb.original_inv_freq": torch.ones(4),
        "h.0.attn.bias": torch.ones(1, 1, 4, 4),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
        "embeddings.position_ids": torch.arange(4),
    }
    stored = StoredWeights(save(tmp_path / "base", tensors))
    assert list(stored.pieces) == [(0, "q_proj")]


def test_what_does_not_fit_the_configuration_is_one_matrix(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny_model("phi3").save_pretrained(tmp_path / "base")
    file = tmp_path / "base/config.json"
    config: dict[str, Any] = json.loads(file.read_text())
    assert {"q_proj", "k_proj"} <= {matrix for _, matrix in StoredWeights(file.parent).matrices()}
    for wrong in (
        {**config, "num_attention_heads": 3},
        {**config, "model_type": "unheard_of"},
        {key: one for key, one in config.items() if key != "num_attention_heads"},
        ["no", "mapping"],
    ):
        file.write_text(json.dumps(wrong))
        pieces = StoredWeights(file.parent).pieces
        assert pieces[0, "qkv_proj"].cut is None
        assert pieces[0, "qkv_proj"].part == "attention"
    file.unlink()
    assert (0, "gate_up_proj") in StoredWeights(file.parent).pieces
    # A checkpoint without a configuration has its base's.
    tiny_config("phi3").save_pretrained(tmp_path / "other")
    assert (0, "q_proj") in StoredWeights(file.parent, like=tmp_path / "other").pieces


def test_the_family_of_a_language_model_within_another(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = tiny_config("llama4_text")
    config = transformers.Llama4Config(text_config=text.to_dict())
    model = tiny_model("llama4_text")
    config.save_pretrained(tmp_path / "base")
    tensors = {f"language_model.{name}": one for name, one in model.state_dict().items()}
    pieces = StoredWeights(save(tmp_path / "base", tensors)).pieces
    assert pieces[1, "experts.0.gate_proj"].shape == (text.intermediate_size, text.hidden_size)


def test_a_dtype_that_pytorch_does_not_have_is_a_row(tmp_path: Path) -> None:
    header = {
        "lm_head.weight": {"dtype": "F6_E2M3", "shape": [4, 4], "data_offsets": [0, 12]},
        "model.embed_tokens.weight": {"dtype": "F32", "shape": [4, 4], "data_offsets": [12, 76]},
    }
    content = json.dumps(header).encode()
    for name in ("base", "new"):
        (tmp_path / name).mkdir()
        data = len(content).to_bytes(8, "little") + content + bytes(range(76))
        (tmp_path / name / "model.safetensors").write_bytes(data)
        (tmp_path / name / "config.json").write_text("{}")
    table = norms(tmp_path / "base", tmp_path / "new").set_index("matrix")
    assert table["status"].to_dict() == {"embed_tokens": "ok", "lm_head": "not supported"}
    assert "F6_E2M3" in table.loc["lm_head", "reason"]
