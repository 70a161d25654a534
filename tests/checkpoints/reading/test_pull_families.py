"""Every causal family of Transformers that can be made small: logged, pulled and opened again."""

from __future__ import annotations

import contextlib
import inspect

import mlflow
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from mlflow_scalpel.checkpoints.logging.log import log_checkpoint
from mlflow_scalpel.checkpoints.reading.pull import pull

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "n_embd": 32, "d_model": 32, "embedding_dim": 32,
    "word_embed_proj_dim": 32, "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48, "d_ff": 48,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "num_attention_heads": 4,
    "n_head": 4, "num_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4,
    "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64,
}  # fmt: skip
LARGEST = 3_000_000  # parameters


def small(config_class):
    """A small model of the family; None where these sizes do not make one."""
    names = set(inspect.signature(config_class.__init__).parameters)
    with contextlib.suppress(Exception):
        names |= set(vars(config_class()))
        config = config_class(**{key: value for key, value in SMALL.items() if key in names})
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        if sum(p.numel() for p in model.parameters()) <= LARGEST:
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(config)
    return None


@pytest.mark.slow
def test_what_was_logged_opens_as_it_was(tracking, tmp_path):
    opened, failed = [], {}
    with mlflow.start_run():
        for step, config_class in enumerate(MODEL_FOR_CAUSAL_LM_MAPPING, start=1):
            model = small(config_class)
            if model is None:
                continue
            name = config_class.model_type
            directory = tmp_path / f"checkpoint-{step}"
            try:
                model.save_pretrained(directory)
                expected = AutoModelForCausalLM.from_pretrained(directory).state_dict()
            except Exception:  # noqa: BLE001 - Transformers cannot open what it wrote
                continue
            logged = log_checkpoint(directory, step=step).wait()
            here = pull(logged.model_id, tmp_path / f"{name}-{step}")
            found = AutoModelForCausalLM.from_pretrained(here).state_dict()
            same = expected.keys() == found.keys() and all(
                torch.equal(expected[key], found[key]) for key in expected
            )
            if same:
                opened.append(name)
            else:
                failed[name] = "other weights"
    assert failed == {}
    assert len(opened) > 60, opened
