"""Weights that a recipe freezes: which ones they are, and that a change of them is found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mlflow_scalpel.errors import RecipeError, ScalpelError
from mlflow_scalpel.recipes import load_recipe
from mlflow_scalpel.recipes.trainers import Freeze
from mlflow_scalpel.tensors.names import parse_layers, select
from mlflow_scalpel.training.freezing import (
    apply_freeze,
    changed_elements,
    complaint,
    elements,
)
from tests.tensors.tiny_families import tiny_model

SFT = Path(__file__).parents[2] / "projects" / "sft" / "recipes"


def freeze(mode="freeze", *, ends=("trained", "trained"), **fields) -> Freeze:
    return Freeze(mode=mode, embeddings=ends[0], lm_head=ends[1], **fields)


def test_layers_are_read_with_both_ends():
    assert parse_layers("19-25") == [19, 20, 21, 22, 23, 24, 25]
    assert parse_layers("0-1, 7,7") == [0, 1, 7]
    for wrong in ("", "a", "3-", "-3", "5-3", "1,,2"):
        with pytest.raises(ValueError, match="write"):
            parse_layers(wrong)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("train.freeze={mode: freeze, layers: 1}", "train.freeze.embeddings.*field required"),
        (
            "train.freeze={mode: only, layers: 3-1, embeddings: frozen, lm_head: frozen}",
            "train.freeze.layers = '3-1': ends before it begins; write 1-3",
        ),
        (
            "train.freeze={mode: only, modules: [], embeddings: frozen, lm_head: frozen}",
            "train.freeze.modules",
        ),
        ("train.freeze={mod: only}", "Did you mean mode"),
    ],
)
def test_a_mistake_in_the_field_is_told(settings, said):
    with pytest.raises(RecipeError, match=f"(?s){said}"):
        load_recipe("tiny", SFT, stage="sft", settings=f"'{settings}'")


def test_one_layer_may_be_written_as_a_number():
    fields = "train.freeze={mode: freeze, layers: 1, embeddings: frozen, lm_head: trained}"
    recipe = load_recipe("tiny", SFT, stage="sft", settings=f"'{fields}'")
    assert recipe.train.freeze.layers == "1"


def test_the_papers_frozen_mlps(first_model):
    model = AutoModelForCausalLM.from_pretrained(first_model)
    mlp = ["gate_proj", "up_proj", "down_proj"]
    trained = apply_freeze(model, freeze(layers="1", modules=mlp))
    assert trained.frozen_names == [f"model.layers.1.mlp.{name}.weight" for name in mlp]
    assert trained.frozen == 3 * 32 * 32
    assert trained.trainable + trained.frozen == model.num_parameters()
    assert apply_freeze(model, freeze(layers="1", modules=["mlp"])) == trained


def test_the_papers_queries_and_keys(first_model):
    model = AutoModelForCausalLM.from_pretrained(first_model)
    setting = freeze("only", modules=["q_proj", "k_proj"], ends=("frozen", "trained"))
    apply_freeze(model, setting)
    still = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert still == {
        "lm_head.weight",
        *(f"model.layers.{n}.self_attn.{m}_proj.weight" for n in (0, 1) for m in "qk"),
    }


def test_all_is_trained_without_the_field(first_model):
    model = AutoModelForCausalLM.from_pretrained(first_model)
    trained = apply_freeze(model, None)
    assert (trained.frozen, trained.frozen_names) == (0, [])
    assert trained.params()["parameters_trained"] == model.num_parameters()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (freeze(modules=["q_prj"]), "no module 'q_prj'; they have .*q_proj"),
        (freeze(layers="1-2"), "no layer 2; its layers are 0 to 1"),
        (freeze(ends=("frozen", "frozen"), mode="freeze"), None),
    ],
)
def test_what_the_model_does_not_have_is_an_error(first_model, setting, said):
    model = AutoModelForCausalLM.from_pretrained(first_model)
    if said is None:  # all layers frozen and both ends: the last norm is left
        assert apply_freeze(model, setting).trainable == 32
        return
    with pytest.raises(ScalpelError, match=said):
        apply_freeze(model, setting)


def test_a_module_that_only_other_layers_have():
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.experts.up_proj.weight"]
    assert select(names, None, ["mlp"]) == names[:1]
    with pytest.raises(ScalpelError, match="mlp: is in none of the layers 1"):
        select(names, "1", ["mlp"])
    with pytest.raises(ScalpelError, match=r"no tensor under layers\."):
        select(["wte.weight"], None, None)


def test_tied_embeddings_have_one_state(make_model):
    model = AutoModelForCausalLM.from_pretrained(make_model(3, tied=True))
    with pytest.raises(ScalpelError, match="ties them"):
        apply_freeze(model, freeze(ends=("frozen", "trained")))
    trained = apply_freeze(model, freeze(layers="0", ends=("frozen", "frozen")))
    assert "model.embed_tokens.weight" in trained.frozen_names


def test_frozen_stays_bit_for_bit_while_the_others_move(first_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(first_model, dtype=torch.bfloat16)
    trained = apply_freeze(model, freeze(layers="1", ends=("frozen", "trained")))
    # Weight decay moves every weight that the optimizer has, without any gradient.
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=1e-2, weight_decay=1.0
    )
    ids = torch.arange(8)[None]  # (1, T)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    assert changed_elements(first_model, tmp_path, trained.frozen_names) == {}
    moved = [name for name, _ in model.named_parameters() if name not in trained.frozen_names]
    assert set(changed_elements(first_model, tmp_path, moved)) == set(moved)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_neox", "gpt_oss", "hy_v3"])
def test_names_on_disk_are_not_those_in_memory(family, tmp_path):
    base, checkpoint = tmp_path / "base", tmp_path / "checkpoint"
    tiny_model(family).save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    trained = apply_freeze(model, freeze(layers="1", ends=("frozen", "frozen")))
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.5 * weight.requires_grad
    model.save_pretrained(checkpoint)
    before, after = (load_file(one / "model.safetensors") for one in (base, checkpoint))
    same = {name for name in before if torch.equal(before[name], after[name])}
    floats = {name for name in same if before[name].is_floating_point()}
    assert set(trained.frozen_names) <= floats
    assert sum(before[name].numel() for name in trained.frozen_names) == trained.frozen
    assert changed_elements(base, checkpoint, trained.frozen_names) == {}
    name = trained.frozen_names[-1]
    after[name].view(-1)[:3] += 1
    save_file(after, checkpoint / "model.safetensors")
    assert changed_elements(base, checkpoint, trained.frozen_names) == {name: 3}


def test_what_is_joined_with_others_keeps_its_name():
    """HRM stores queries, keys, values and gates as one tensor, and only queries are frozen."""
    trained = apply_freeze(tiny_model("hrm_text"), freeze(modules=["q_proj"]))
    assert all(name.endswith("q_proj.weight") for name in trained.frozen_names)


def test_a_shard_counts_as_the_whole_parameter():
    class Shard:  # as ZeRO-3 leaves a parameter between two uses
        ds_numel = 12

        def numel(self) -> int:
            return 0

    assert elements(Shard()) == 12
    assert elements(torch.zeros(3, 2)) == 6


def test_one_bit_is_found(first_model, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(first_model / "model.safetensors")
    tensors[name] = tensors[name].clone()
    tensors[name].view(torch.int32)[3, 5] ^= 1
    save_file(tensors, tmp_path / "model.safetensors")
    changed = changed_elements(first_model, tmp_path, [name, "lm_head.weight"])
    assert changed == {name: 1}
    assert re.search(f"step 7: 1 frozen .*{name} in 1 elements", complaint(changed, 7))


def test_a_frozen_tensor_that_is_missing_is_an_error(first_model, tmp_path):
    save_file({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ScalpelError, match=r"has no tensor a\.weight, which is frozen"):
        changed_elements(first_model, tmp_path, ["a.weight"])
    with pytest.raises(ScalpelError, match=r"checkpoint's has \(2, 2\)"):
        changed_elements(first_model, tmp_path, ["lm_head.weight"])
