"""Checkpoints with some of their weights put back from the base."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlflow
import pytest
import torch
import transformers
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
from mlflow_scalpel.checkpoints.manifest import content_digest
from mlflow_scalpel.checkpoints.models.restore import restore
from mlflow_scalpel.checkpoints.search import checkpoints_of_run
from mlflow_scalpel.cli import main
from mlflow_scalpel.comparison.gather import gather
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.places import LAYER_PARTS
from tests.tensors.tiny_families import tiny_config, tiny_model

QK = ["q_proj", "k_proj"]


@pytest.fixture
def trained(first_model: Path, make_model, tmp_path: Path) -> Path:
    """A checkpoint in bfloat16 and several shards, with every weight another than the base's."""
    model = AutoModelForCausalLM.from_pretrained(make_model(2), dtype=torch.bfloat16)
    directory = tmp_path / "checkpoint-40"
    model.save_pretrained(directory, max_shard_size="8KB")
    AutoTokenizer.from_pretrained(first_model).save_pretrained(directory)
    assert len(list(directory.glob("*.safetensors"))) > 2
    return directory


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in directory.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def test_what_was_chosen_is_the_bases_and_all_else_the_checkpoints(first_model, trained, tmp_path):
    digest = content_digest(trained)
    restored = restore(str(trained), str(first_model), tmp_path / "out", modules=QK, layers="1")
    names = {f"model.layers.1.self_attn.{module}.weight" for module in QK}
    found, before, after = (tensors(d) for d in (tmp_path / "out", first_model, trained))
    assert found.keys() == after.keys()
    for name, tensor in found.items():
        wanted = before[name].to(torch.bfloat16) if name in names else after[name]
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, wanted), name
    assert (restored.tensors, restored.modules, restored.layers) == (2, "q_proj,k_proj", "1")
    assert 0 < restored.elements <= 2 * 32 * 32
    assert {f.name for f in (tmp_path / "out").iterdir()} == {f.name for f in trained.iterdir()}
    assert content_digest(trained) == digest
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_all_modules_of_a_layer_or_one_module_of_all_layers(first_model, trained, tmp_path):
    layer = restore(str(trained), str(first_model), tmp_path / "a", layers="0")
    module = restore(str(trained), str(first_model), tmp_path / "b", modules=["mlp"])
    assert (layer.tensors, layer.modules) == (9, "all")
    assert (module.tensors, module.layers) == (6, "all")


def test_quantised_numbers_are_not_mixed_with_plain_ones(first_model, tmp_path):
    quantised = tmp_path / "checkpoint-8"
    shutil.copytree(first_model, quantised)
    name = "model.layers.0.self_attn.q_proj.weight"
    own = load_file(quantised / "model.safetensors")
    own |= {name: own[name].to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(1, 1)}
    save_file(own, quantised / "model.safetensors", metadata={"format": "pt"})
    for pair in ((quantised, first_model), (first_model, quantised)):
        with pytest.raises(ScalpelError, match="is quantised"):
            restore(*map(str, pair), tmp_path / "out", modules=["q_proj"], layers="0")
    restored = restore(str(quantised), str(quantised), tmp_path / "o", modules=["q_proj"])
    assert restored.elements == 0


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "llava", "qwen2_5_vl", "gpt_neox"])
@pytest.mark.parametrize("as_saved", [True, False])
def test_the_base_may_be_stored_as_another_version_does_it(family, as_saved, tmp_path):
    """Names and experts on disk are not those in memory; Transformers translates between them."""
    names = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    model = (
        getattr(transformers, names[family])(tiny_config(family))
        if family in names
        else tiny_model(family)
    )
    layouts: dict[str, list[dict[str, torch.Tensor]]] = {"saved": [], "held": []}
    for step in (0, 1):
        saved, held = tmp_path / f"saved-{step}", tmp_path / f"held-{step}"
        model.save_pretrained(saved)
        shutil.copytree(saved, held)
        save_file(model.state_dict(), held / "model.safetensors", metadata={"format": "pt"})
        layouts["saved"].append(tensors(saved))
        layouts["held"].append(tensors(held))
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(1 + torch.rand_like(weight))
    mine, its = ("saved", "held") if as_saved else ("held", "saved")
    restored = restore(
        str(tmp_path / f"{mine}-1"), str(tmp_path / f"{its}-0"), tmp_path / "out", layers="1"
    )
    before, after = layouts[mine]
    found = tensors(tmp_path / "out")
    put_back = {name for name in after if ".layers.1." in name and "vision" not in name}
    assert restored.tensors == len(put_back) > 2
    for name, tensor in found.items():
        assert torch.equal(tensor, (before if name in put_back else after)[name]), name


def test_restoring_from_itself_changes_nothing(trained, tmp_path):
    restored = restore(str(trained), str(trained), tmp_path / "out", layers="0-1")
    assert restored.elements == 0
    assert content_digest(tmp_path / "out") == content_digest(trained)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "neither modules nor layers"),
        ({"modules": ["q_prj"]}, "no module 'q_prj'"),
        ({"layers": "2"}, "no layer 2; its layers are 0 to 1"),
        ({"layers": "b"}, "layers = b: names no layers"),
    ],
)
def test_what_cannot_be_chosen_is_told_and_nothing_is_written(
    first_model, trained, tmp_path, fields, said
):
    with pytest.raises(ScalpelError, match=said):
        restore(str(trained), str(first_model), tmp_path / "out", **fields)
    assert not list(tmp_path.glob("*out*"))


def test_a_base_of_another_model_and_a_directory_that_is_there(
    first_model, trained, make_model, tmp_path
):
    with pytest.raises(ScalpelError, match=r"shape \(64, 64\).*\(32, 32\).*training began with"):
        restore(str(trained), str(make_model(1, hidden=64)), tmp_path / "out", modules=QK)
    with pytest.raises(ScalpelError, match="exists, and is not written over"):
        restore(str(trained), str(first_model), trained, modules=QK)


def test_a_write_that_fails_leaves_nothing(first_model, trained, tmp_path, monkeypatch):
    def full(source, target):
        shutil.copyfile(source, target)
        raise ScalpelError("the disk is full")

    monkeypatch.setattr("mlflow_scalpel.checkpoints.models.restore.copy_out", full)
    with pytest.raises(ScalpelError, match="disk is full"):
        restore(str(trained), str(first_model), tmp_path / "out", modules=QK)
    assert not list(tmp_path.glob("*out*"))


def test_the_command_logs_a_model_that_says_what_was_restored(
    tracking, first_model, trained, tmp_path, capsys
):
    with mlflow.start_run() as run:
        log_base(str(first_model))
        params = {"algorithm": "sft", "learning_rate_sum": "0.5"}
        logged = log_checkpoint(trained, step=40, base=str(first_model), params=params).wait()
    uri = f"models:/{logged.model_id}"
    words = ["--base", str(first_model), "--modules", "q_proj,k_proj", "--layers", "0-1"]
    assert main(["restore", uri, *words, "--out", str(tmp_path / "out"), "--log"]) == 0
    told, made = capsys.readouterr().out.strip().splitlines()[-2:]
    assert "4 tensors as in" in told
    model = MlflowClient().get_logged_model(made.removeprefix("models:/"))
    assert str(model.status) == "READY"
    assert model.source_run_id != run.info.run_id
    assert model.params["restored_from"] == uri
    assert model.params["restored_modules"] == "q_proj,k_proj"
    assert model.params["restored_layers"] == "0-1"
    assert (model.params["step"], model.params["algorithm"]) == ("40", "sft")
    base, (checkpoint,) = checkpoints_of_run(model.source_run_id)
    assert base is not None
    assert checkpoint.step == 40
    # Like any run, it can be measured: the restored matrices have not moved (but for rounding).
    table = gather([model.source_run_id])
    norms = table[table["metric"] == "weights/relative_frobenius"]
    norms = norms[norms["part"].isin(LAYER_PARTS)]
    back = norms["matrix"].isin(QK)
    assert (norms[back]["value"] < 0.004).all()
    assert (norms[~back]["value"] > 1).all()
