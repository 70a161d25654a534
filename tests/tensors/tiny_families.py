"""Every causal family that the installed Transformers has, as a model of a few thousand weights."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

# Sizes by the names that configurations give them; a name that a configuration does not have is
# left out, so that one list serves all.
_SMALL: dict[str, Any] = {
    "vocab_size": 96,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "dim_ff", "feed_forward_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_encoder_layers", "num_blocks"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "kv_channels": 8,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_sequence_length"), 64),
    # mixtures of experts
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    # latent attention
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "v_head_dim"), 16),
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    **dict.fromkeys(("index_n_heads",), 2),
    "index_head_dim": 8,
    "index_topk": 8,
    # linear attention and state spaces
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
    "mamba_headdim": 16,
    # towers
    **dict.fromkeys(("image_size",), 28),
    "patch_size": 14,
}

# What a family wants beside or instead.
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
_BY_TURNS = ["conv", "full_attention", "conv", "full_attention"]
_ODD: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA,
    "blt": {"encoder_hash_byte_group_vocab": 32},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "ctrl": {"dff": 48},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "hidden_size": 32, "moe_num_experts": 4},
    },
    "deepseek_v3": {"head_dim": 4, "num_key_value_heads": 4},
    "deepseek_v4": {"o_groups": 2, "o_lora_rank": 8},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 96},
    "gemma4_text": {
        "enable_moe_block": True,
        "top_k_experts": 2,
        "vocab_size_per_layer_input": 96,
        "hidden_size_per_layer_input": 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": _MAMBA,
    "lfm2": {"layer_types": _BY_TURNS},
    "lfm2_moe": {"layer_types": _BY_TURNS},
    "lfm3": {"layer_types": _BY_TURNS},
    "longcat_flash": {"head_dim": 4, "num_key_value_heads": 4, "zero_expert_num": 2},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 8,
        "ngram_vocab_size_base": 64,
        "make_ngram_vocab_size_divisible_by": 8,
        "ple_embed_dim": 32,
    },
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_dt_rank": 4,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
        "adapter_rank": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}


# The causal class of these takes the configuration of their decoder.
_DECODERS = {"musicgen": "MusicgenDecoderConfig", "musicgen_melody": "MusicgenMelodyDecoderConfig"}


def tiny_config(family: str, **fields: Any) -> PretrainedConfig:
    """A configuration of the family with every size that it names made small."""
    odd = {**_ODD.get(family, {}), **fields}
    config = getattr(transformers, _DECODERS[family]) if family in _DECODERS else None
    config = config or CONFIG_MAPPING[family]
    return config(**{**_sizes(config), **odd})


def _sizes(config: type[PretrainedConfig]) -> dict[str, Any]:
    default = config()
    known = {*default.to_dict(), *config.attribute_map}
    found = {name: size for name, size in _SMALL.items() if name in known}
    for name in config.sub_configs:
        inner = getattr(default, name, None)
        if isinstance(inner, PretrainedConfig):
            found[name] = _sizes(type(inner)) | _ODD.get(inner.model_type, {})
    return found


def tiny_model(family: str, **fields: Any) -> Any:
    """The model of `tiny_config`, with weights drawn anew."""
    config = tiny_config(family, **fields)
    if family in _DECODERS:
        return getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])(config)
    return AutoModelForCausalLM.from_config(config)


# Families that the installed Transformers cannot make here, and why.
LEFT_OUT: dict[str, str] = {
    "gemma3n": "its vision tower needs the package timm; its language model is gemma3n_text",
    "gemma4_assistant": "its configuration without arguments is refused; it drafts for gemma4_text",
    "gemma4_unified_assistant": "as gemma4_assistant",
    "dots3_note": "its configuration cannot be shrunk; its language model is dots3_note_text",
}
