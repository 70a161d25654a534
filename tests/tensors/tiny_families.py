"""Every causal family that the installed Transformers has, as a model of a few thousand weights."""

from __future__ import annotations

from typing import Any

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
_ODD: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "dbrx": {},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "reformer": {"is_decoder": True},
    "zamba2": {},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(family: str) -> PretrainedConfig:
    """A configuration of the family with every size that it names made small."""
    config = CONFIG_MAPPING[family]
    return config(**{**_sizes(config), **_ODD.get(family, {})})


def _sizes(config: type[PretrainedConfig]) -> dict[str, Any]:
    default = config()
    known = {*default.to_dict(), *config.attribute_map}
    found = {name: size for name, size in _SMALL.items() if name in known}
    for name in config.sub_configs:
        inner = getattr(default, name, None)
        if isinstance(inner, PretrainedConfig):
            found[name] = _sizes(type(inner)) | _ODD.get(inner.model_type, {})
    return found


def tiny_model(family: str) -> Any:
    """The model of `tiny_config`, with weights drawn anew."""
    return AutoModelForCausalLM.from_config(tiny_config(family))


# Families that the installed Transformers cannot make here, and why.
LEFT_OUT: dict[str, str] = {}
