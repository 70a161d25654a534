"""Models in GGUF files, against the numbers that llama.cpp's own package reads in them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mlflow_scalpel
from mlflow_scalpel.errors import ScalpelError

LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows as llama.cpp orders those of q and k: the two halves of each head alternate."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def write_gguf(base: Path, file: Path) -> dict[str, torch.Tensor]:
    """The model of a directory in Q8_0; its numbers by the names of the base."""
    gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
    kind = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(96)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    tensors = load_file(base / "model.safetensors")
    writer.add_vocab_size(len(tensors["model.embed_tokens.weight"]))
    count = len(tensors["model.embed_tokens.weight"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*(chr(0x21 + n) for n in range(count - 1)), '!"'])
    writer.add_token_types([1] * count)
    writer.add_token_merges(['! "'])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    numbers = {}
    for name, weight in tensors.items():
        stem = name.removesuffix(".weight")
        if stem in ENDS:
            theirs = ENDS[stem]
        else:
            _, _, layer, rest = stem.split(".", 3)
            theirs = f"blk.{layer}.{LAYER[rest]}"
        turned = permuted(weight, 2) if stem.endswith(("q_proj", "k_proj")) else weight
        if weight.ndim == 1:
            writer.add_tensor(f"{theirs}.weight", weight.numpy())
            numbers[name] = weight
            continue
        blocks = gguf.quantize(turned.numpy(), kind)
        writer.add_tensor(f"{theirs}.weight", blocks, raw_dtype=kind)
        exact = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind).copy())
        numbers[name] = exact
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return numbers


def test_the_error_of_a_gguf_against_its_base(first_model, tmp_path):
    numbers = write_gguf(first_model, tmp_path / "tiny-Q8_0.gguf")
    for source in (tmp_path / "tiny-Q8_0.gguf", tmp_path):
        table = mlflow_scalpel.compare(
            str(first_model), str(source), metrics=["weights/relative_frobenius"]
        )
        assert set(table["status"]) == {"ok"}
        exact = load_file(first_model / "model.safetensors")
        for matrix, block in (("q_proj", "self_attn"), ("down_proj", "mlp")):
            name = f"model.layers.1.{block}.{matrix}.weight"
            change = (numbers[name].double() - exact[name].double()).norm()
            expected = float(change / exact[name].double().norm())
            row = table[(table["layer"] == 1) & (table["matrix"] == matrix)].iloc[0]
            assert row["value"] == pytest.approx(expected, rel=1e-6)
            assert 0.001 < row["value"] < 0.02


def test_without_the_package_the_reason_names_it(first_model, tmp_path, monkeypatch):
    (tmp_path / "some.gguf").write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ScalpelError, match=r"some.gguf: is a GGUF file.*mlflow-scalpel\[gguf\]"):
        mlflow_scalpel.compare(str(first_model), str(tmp_path), metrics=["weights"])


def test_several_in_one_directory_are_not_guessed_at(first_model, tmp_path):
    for name in ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ScalpelError, match=r"a-00001-of-00002.gguf, a-00002-of-00002.gguf"):
        mlflow_scalpel.compare(str(first_model), str(tmp_path), metrics=["weights"])
