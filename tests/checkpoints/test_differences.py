"""What is told apart by names and shapes: a right checkpoint's differences, and another model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mlflow_scalpel.checkpoints.differences import differences


def tensors(**shapes):
    return {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}


def model(layers=2, hidden=8, vocabulary=20, prefix="model.", head=True):
    shapes = {f"{prefix}embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        shapes[f"{prefix}layers.{layer}.self_attn.q_proj.weight"] = (hidden, hidden)
        shapes[f"{prefix}layers.{layer}.mlp.up_proj.weight"] = (3 * hidden, hidden)
        shapes[f"{prefix}layers.{layer}.input_layernorm.weight"] = (hidden,)
    shapes[f"{prefix}norm.weight"] = (hidden,)
    return shapes | ({"lm_head.weight": (vocabulary, hidden)} if head else {})


def experts(fused: bool):
    shapes = {"model.layers.0.self_attn.q_proj.weight": (8, 8)}
    if fused:
        return shapes | {
            "model.layers.0.mlp.experts.gate_up_proj": (4, 12, 8),
            "model.layers.0.mlp.experts.down_proj": (4, 8, 6),
        }
    for number in range(4):
        shapes[f"model.layers.0.mlp.experts.{number}.gate_proj.weight"] = (6, 8)
        shapes[f"model.layers.0.mlp.experts.{number}.up_proj.weight"] = (6, 8)
        shapes[f"model.layers.0.mlp.experts.{number}.down_proj.weight"] = (8, 6)
    return shapes


MTP = {"mtp.fc.weight": (8, 16)}
NEXTN = {
    "model.layers.2.eh_proj.weight": (8, 16),
    "model.layers.2.self_attn.q_proj.weight": (8, 8),
}
INV = {"model.layers.0.self_attn.rotary_emb.inv_freq": (4,)}


@pytest.mark.parametrize(
    ("base", "checkpoint", "said"),
    [
        (model(), model(), None),
        (model() | MTP, model(), "without multi-token prediction heads"),
        (model() | NEXTN, model(), "without multi-token prediction heads"),
        (model(), model(vocabulary=22), "the vocabulary has 22 rows, and the base's 20"),
        (experts(False), experts(True), "experts are stored as 2 tensors, and the base's as 12"),
        (experts(True), experts(False), "experts are stored as 12 tensors, and the base's as 2"),
        (
            model(prefix="language_model.model."),
            model(prefix="model.language_model."),
            "the prefix of the tensors' names differs",
        ),
        (model(), model() | INV, "buffers that are computed anew"),
        (model(), model() | {"v_head.summary.weight": (1, 8)}, "a value or reward head"),
        (model(), model(prefix="_orig_mod.model."), "the prefix of the tensors' names differs"),
        (model() | {"visual.blocks.0.attn.qkv.weight": (9, 3)}, model(), "without a vision tower"),
    ],
)
def test_differences_of_right_checkpoints_are_notes(base, checkpoint, said):
    found = differences(tensors(**base), tensors(**checkpoint))
    assert found.unrelated is None
    assert not found.missing
    assert (said is None and not found.notes) or any(said in note for note in found.notes)


def test_a_tied_head_may_be_stored_once():
    found = differences(tensors(**model()), tensors(**model(head=False)))
    assert (found.missing, found.heads, found.unrelated) == ((), ("lm_head.weight",), None)


def test_layers_that_are_missing_are_told():
    found = differences(tensors(**model(layers=4)), tensors(**model(layers=2)))
    assert found.unrelated is None
    assert len(found.missing) == 6
    assert found.missing[0].startswith("model.layers.2.")


def test_a_model_of_other_shapes_is_unrelated():
    found = differences(tensors(**model()), tensors(**model(hidden=16)))
    assert "has name and shape of one of the base's" in found.unrelated
