"""Models of images and texts, run on text alone by their own class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import mlflow_scalpel
from tests.conftest import make_tokenizer

TEXTS = [("1+1=?", "2"), ("what is the capital", "a long answer of many letters"), ("a", "b")]
TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
    "initializer_range": 0.4,
    "pad_token_id": 1,
}
SEEN = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
MROPE = {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"}


def qwen2_5_vl():
    return transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_scaling": MROPE},
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 24,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=80,
        video_token_id=81,
        vision_start_token_id=82,
        vision_end_token_id=83,
    )


def gemma3():
    return transformers.Gemma3Config(
        text_config={**TEXT, "sliding_window": 8, "final_logit_softcapping": 5.0},
        vision_config=SEEN,
        mm_tokens_per_image=4,
        image_token_index=80,
        boi_token_index=81,
        eoi_token_index=82,
    )


def smolvlm():
    config = transformers.LlamaConfig(**TEXT)
    return transformers.SmolVLMConfig(
        text_config=config, vision_config=SEEN, image_token_id=90, pad_token_id=1
    )


def llava():
    vision = transformers.CLIPVisionConfig(**SEEN, projection_dim=16)
    return transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=vision, image_token_index=90
    )


def mistral3():
    vision = transformers.PixtralVisionConfig(**{**SEEN, "head_dim": 8})
    return transformers.Mistral3Config(
        text_config=transformers.MistralConfig(**TEXT), vision_config=vision, image_token_index=90
    )


def mllama():
    text = {**TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1]}
    del text["head_dim"]
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "vision_output_dim": 32,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1]],
        "max_num_tiles": 1,
    }
    return transformers.MllamaConfig(text_config=text, vision_config=vision, image_token_index=90)


def llama4():
    text = {**TEXT, "intermediate_size_mlp": 48, "num_local_experts": 2, "num_experts_per_tok": 1}
    vision = {
        **SEEN,
        "vision_output_dim": 16,
        "projector_input_dim": 16,
        "projector_output_dim": 16,
    }
    return transformers.Llama4Config(text_config=text, vision_config=vision, image_token_index=90)


def qwen2_audio():
    heard = {
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "num_mel_bins": 8,
        "max_source_positions": 16,
    }
    return transformers.Qwen2AudioConfig(
        text_config=transformers.Qwen2Config(**TEXT), audio_config=heard, audio_token_index=90
    )


OWN = {
    "qwen2_5_vl": (qwen2_5_vl, "Qwen2_5_VLForConditionalGeneration"),
    "gemma3": (gemma3, "Gemma3ForConditionalGeneration"),
    "smolvlm": (smolvlm, "SmolVLMForConditionalGeneration"),
    "llava": (llava, "LlavaForConditionalGeneration"),
    "mistral3": (mistral3, "Mistral3ForConditionalGeneration"),
    "mllama": (mllama, "MllamaForConditionalGeneration"),
    "llama4": (llama4, "Llama4ForConditionalGeneration"),
    "qwen2_audio": (qwen2_audio, "Qwen2AudioForConditionalGeneration"),
}


def saved(family: str, seed: int, directory: Path) -> Path:
    make, name = OWN[family]
    torch.manual_seed(seed)
    model = getattr(transformers, name)(make())
    model.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


def moved(base: Path, directory: Path, by: float = 0.05) -> Path:
    """The base with noise on each matrix, as another checkpoint."""
    directory.mkdir()
    for file in base.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    torch.manual_seed(5)
    new = {
        name: one + by * torch.randn_like(one) if one.ndim > 1 else one
        for name, one in tensors.items()
    }
    save_file(new, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def own_kl(first, second, tokenizer) -> float:
    """KL in nats a token by the models' own logits, in float64."""
    found = []
    for problem, solution in TEXTS:
        turns = [{"role": "user", "content": problem}, {"role": "assistant", "content": solution}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            p, q = (one(input_ids=ids["input_ids"]).logits[0] for one in (first, second))
        log_p, log_q = (one.double().log_softmax(-1) for one in (p, q))
        log_q = log_q[:, : log_p.shape[1]]
        found.append(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
    return sum(found) / len(found)


@pytest.mark.parametrize("family", OWN)
def test_kl_on_text_is_that_of_the_models_own_logits(family, tmp_path):
    base = saved(family, 1, tmp_path / "base")
    checkpoint = moved(base, tmp_path / "checkpoint-5")
    table = mlflow_scalpel.compare(
        str(base), str(checkpoint), metrics=["kl/all_tokens"], texts=TEXTS
    )
    assert list(table["status"]) == ["ok"], table["reason"].iloc[0]
    owner = getattr(transformers, OWN[family][1])
    first, second = (owner.from_pretrained(one).eval() for one in (base, checkpoint))
    expected = own_kl(first, second, AutoTokenizer.from_pretrained(base))
    assert table["value"].iloc[0] == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-4


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm", "mllama"])
def test_the_other_groups_on_text(family, tmp_path):
    base = saved(family, 1, tmp_path / "base")
    checkpoint = moved(base, tmp_path / "checkpoint-5")
    groups = ["attention/distance_change", "kl_paper_compat", "kl_on_base_samples"]
    table = mlflow_scalpel.compare(str(base), str(checkpoint), metrics=groups, texts=TEXTS)
    assert set(table["status"]) == {"ok"}, table["reason"].dropna().iloc[0]
    owner = getattr(transformers, OWN[family][1])
    first, second = (
        owner.from_pretrained(one, attn_implementation="eager").eval() for one in (base, checkpoint)
    )
    tokenizer, shifts = AutoTokenizer.from_pretrained(base), []
    for problem, solution in TEXTS:
        turns = [{"role": "user", "content": problem}, {"role": "assistant", "content": solution}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            rows = [
                one(input_ids=ids["input_ids"], output_attentions=True).attentions[0][0, 1].double()
                for one in (first, second)
            ]
        at = torch.arange(len(rows[0]))
        shifts.append(float(((rows[1] - rows[0]) * (at[:, None] - at)).sum(-1).mean()))
    heads = table[table["metric"] == "attention/distance_change"]
    value = heads[(heads["layer"] == 0) & (heads["head"] == 1)]["value"].iloc[0]
    assert value == pytest.approx(sum(shifts) / 3, rel=1e-4, abs=1e-6)


def language_model_of(directory: Path, target: Path) -> Path:
    """The language model of a Gemma 3 alone, under the names and the config that it has then."""
    whole = transformers.Gemma3ForConditionalGeneration.from_pretrained(directory)
    text = transformers.Gemma3ForCausalLM(whole.config.text_config)
    text.model.load_state_dict(whole.model.language_model.state_dict())
    text.tie_weights()
    text.save_pretrained(target)
    make_tokenizer().save_pretrained(target)
    return target


def test_a_language_model_against_the_whole_it_was_taken_from(tmp_path):
    base = saved("gemma3", 1, tmp_path / "base")
    checkpoint = moved(base, tmp_path / "checkpoint-5")
    alone = language_model_of(checkpoint, tmp_path / "alone")
    kl = {"metrics": ["kl/all_tokens"], "texts": TEXTS}
    expected = mlflow_scalpel.compare(str(base), str(checkpoint), **kl)["value"].iloc[0]
    found = mlflow_scalpel.compare(str(base), [str(alone), str(checkpoint), str(base)], **kl)
    assert list(found["value"]) == pytest.approx([expected, expected, 0.0], rel=1e-5)
    back = mlflow_scalpel.compare(str(alone), [str(checkpoint)], **kl)
    assert list(back["value"]) == pytest.approx([0.0], abs=1e-9)


def test_a_checkpoint_of_the_language_model_alone_under_the_config_of_the_whole(tmp_path):
    base = saved("gemma3", 1, tmp_path / "base")
    checkpoint = moved(base, tmp_path / "checkpoint-5")
    tensors = load_file(checkpoint / "model.safetensors")
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    shutil.copy(checkpoint / "config.json", renamed)
    own = {
        name.replace("model.language_model.", "language_model.model.", 1).replace(
            "language_model.model.", "model.", 1
        ): one
        for name, one in tensors.items()
        if "language_model" in name
    }
    assert own
    save_file(own, renamed / "model.safetensors")
    kl = {"metrics": ["kl/all_tokens"], "texts": TEXTS}
    table = mlflow_scalpel.compare(str(base), [str(checkpoint), str(renamed)], **kl)
    assert set(table["status"]) == {"ok"}, table["reason"].dropna().iloc[0]
    assert table["value"].iloc[0] == pytest.approx(table["value"].iloc[1], rel=1e-6)
    assert table["value"].iloc[0] > 0.001


def test_an_encoder_with_a_decoder_is_a_row_with_its_reason(tmp_path):
    config = transformers.T5Config(
        vocab_size=96, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    base = tmp_path / "base"
    transformers.T5ForConditionalGeneration(config).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    table = mlflow_scalpel.compare(
        str(base), str(base), metrics=["kl/all_tokens"], texts=TEXTS, cache=False
    )
    assert list(table["status"]) == ["not supported"]
    assert "encoder" in table["reason"].iloc[0]


def test_code_of_the_models_own_is_never_run_and_nobody_is_asked(tmp_path, monkeypatch):
    base = saved("gemma3", 1, tmp_path / "base")
    said = json.loads((base / "config.json").read_text())
    said |= {"model_type": "another", "auto_map": {"AutoConfig": "code.Other"}}
    (base / "config.json").write_text(json.dumps(said))
    (base / "code.py").write_text("raise SystemExit('it was run')\n")

    def asked(*_):
        raise AssertionError("somebody was asked")

    monkeypatch.setattr("builtins.input", asked)
    checks = ["kl/all_tokens", "attention/js", "kl_paper_compat"]
    table = mlflow_scalpel.compare(
        str(base), str(base), metrics=["weights/update_rms", *checks], texts=TEXTS, cache=False
    )
    rows = table[~table["metric"].str.startswith("weights/")]
    assert len(rows) == 3
    assert set(rows["status"]) <= {"not supported", "not measured"}
    assert "\n" not in rows["reason"].iloc[0]
    assert (table[table["metric"] == "weights/update_rms"]["status"] == "ok").any()
