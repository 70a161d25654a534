"""Layers are the language model's own, under the names of all versions."""

import pytest
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from mlflow_scalpel.comparison.weights.files import StoredWeights
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.names import Location, counterparts, located, select
from mlflow_scalpel.tensors.places import LAYER_PARTS
from tests.tensors.tiny_families import tiny_config

PREFIXES = (
    "model.layers",
    "layers",
    "language_model.model.layers",
    "model.language_model.layers",
    "model.text_model.layers",
    "transformer.h",
    "h",
    "gpt_neox.layers",
    "backbone.layers",
    "decoder.layers",
    "model.decoder.layers",
    "bert.encoder.layer",
    "transformer.blocks",
    "blocks",
)
TOWERS = (
    "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
    "model.visual.blocks.0.attn.qkv.weight",
    "audio_tower.layers.0.self_attn.q_proj.weight",
    "mtp.layers.0.self_attn.q_proj.weight",
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("beside", [(), TOWERS])
def test_one_tensor_has_one_location(prefix: str, beside: tuple[str, ...]) -> None:
    names = [f"{prefix}.{layer}.self_attn.q_proj.weight" for layer in (0, 11)]
    found = located([*beside, *names])
    assert [found[name] for name in names] == [
        Location(0, "self_attn.q_proj.weight"),
        Location(11, "self_attn.q_proj.weight"),
    ]
    assert [found[name].layer for name in beside] == [None] * len(beside)
    assert [found[name].kind for name in beside] == ["vision", "vision", "vision", "extra"][
        : len(beside)
    ]


def test_what_is_outside_of_the_layers_pairs_too() -> None:
    old = [
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "language_model.lm_head.weight",
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "multi_modal_projector.linear_1.weight",
    ]
    new = [
        "model.language_model.embed_tokens.weight",
        "model.language_model.layers.0.self_attn.q_proj.weight",
        "lm_head.weight",
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight",
        "model.multi_modal_projector.linear_1.weight",
    ]
    assert counterparts(old, new) == dict(zip(old, new, strict=True))
    gpt2 = ["wte.weight", "h.0.attn.c_attn.weight", "ln_f.weight"]
    assert counterparts(gpt2, [f"transformer.{name}" for name in gpt2]).keys() == set(gpt2)


def test_of_an_encoder_and_a_decoder_the_decoder_is_the_language_model() -> None:
    names = [f"model.{stack}.layers.0.fc1.weight" for stack in ("encoder", "decoder")]
    encoder, decoder = located(names).values()
    assert (encoder.layer, encoder.path) == (None, "encoder.layers.0.fc1.weight")
    assert (decoder.layer, decoder.path) == (0, "fc1.weight")


def test_layers_that_are_chosen_are_never_a_towers() -> None:
    own = [f"model.language_model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)]
    assert select([*TOWERS, *own], "0", None) == own[:1]
    assert select([*TOWERS, *own], None, ["q_proj"]) == own
    with pytest.raises(ScalpelError, match=r"no tensor under layers\."):
        select(TOWERS, "0", None)


@pytest.mark.parametrize(
    "family", ["granite_speech", "unlimited_ocr", "qianfan_ocr", "paddleocr_vl"]
)
def test_the_layers_own_matrices_are_in_layers(family, tmp_path):
    """What is in front of the language model moves no mean, whatever its stack is called."""
    names = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES | MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
    model = getattr(transformers, names[family])(tiny_config(family))
    model.save_pretrained(tmp_path)
    pieces = StoredWeights(tmp_path).pieces
    inside = sum(piece.elements for (layer, _), piece in pieces.items() if layer is not None)
    text = next(one for name, one in model.named_modules() if name.endswith("language_model"))
    layers = next(one for name, one in text.named_modules() if name.endswith("layers"))
    assert inside == sum(weight.numel() for weight in layers.parameters())
    outside = {piece.part for (layer, _), piece in pieces.items() if layer is None}
    assert not outside & set(LAYER_PARTS)
