"""Which files are read: as Transformers does, and refused where that cannot be told."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.files import TensorFiles, read_headers, weight_files
from mlflow_scalpel.tensors.steps import step_of_name


def _save(directory: Path, name: str, **tensors: torch.Tensor) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / name)


def _index(directory: Path, **places: str) -> None:
    content = {"metadata": {}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(content))


def test_shards_that_the_index_does_not_name_are_not_read(tmp_path: Path) -> None:
    _save(tmp_path, "model-00001-of-00002.safetensors", a=torch.ones(2))
    _save(tmp_path, "model-00002-of-00002.safetensors", b=torch.ones(3))
    _save(tmp_path, "model-00001-of-00003.safetensors", a=torch.zeros(2))
    _save(tmp_path, "model_ema.safetensors", a=torch.zeros(2), b=torch.zeros(3))
    _index(tmp_path, a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors")
    tensors = TensorFiles(tmp_path)
    assert tensors.headers.keys() == {"a", "b"}
    assert torch.equal(tensors.read("a"), torch.ones(2))
    assert tensors.unread == ["model-00001-of-00003.safetensors", "model_ema.safetensors"]


def test_shards_without_their_index_are_not_a_model(tmp_path: Path) -> None:
    _save(tmp_path, "model-00001-of-00002.safetensors", a=torch.ones(2))
    with pytest.raises(ScalpelError, match=r"the shards 2 of 2 is missing"):
        weight_files(tmp_path)


def test_a_missing_shard_and_a_missing_tensor_are_named(tmp_path: Path) -> None:
    _save(tmp_path, "one.safetensors", a=torch.ones(2))
    _index(tmp_path, a="one.safetensors", b="two.safetensors")
    with pytest.raises(ScalpelError, match=r"two.safetensors: is missing"):
        TensorFiles(tmp_path)
    _index(tmp_path, a="one.safetensors", b="one.safetensors")
    with pytest.raises(ScalpelError, match=r"has no tensor b"):
        TensorFiles(tmp_path)


def test_one_name_in_two_files_names_both(tmp_path: Path) -> None:
    _save(tmp_path, "one.safetensors", a=torch.ones(2), c=torch.ones(1))
    _save(tmp_path, "two.safetensors", **{"module.a": torch.zeros(2), "b": torch.ones(1)})
    _index(tmp_path, a="one.safetensors", c="one.safetensors", b="two.safetensors")
    with pytest.raises(ScalpelError, match=r"two.safetensors.*one.safetensors"):
        TensorFiles(tmp_path)


def test_a_single_file_beside_an_index_of_others_is_refused(tmp_path: Path) -> None:
    _save(tmp_path, "model.safetensors", a=torch.ones(2))
    _save(tmp_path, "model-00001-of-00001.safetensors", a=torch.zeros(2))
    _index(tmp_path, a="model-00001-of-00001.safetensors")
    with pytest.raises(ScalpelError, match=r"delete those that are not current"):
        TensorFiles(tmp_path)


@pytest.mark.parametrize(
    "stored",
    [
        "_orig_mod.model.layers.0.mlp.up_proj.weight",
        "pretrained_model.model.layers.0.mlp.up_proj.weight",
        "module.model.layers.0.mlp.up_proj.weight",
        "module._orig_mod.model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight",
        "base_model.model.model.layers.0.mlp.up_proj.weight",
    ],
)
def test_what_wrappers_add_to_a_name_is_taken_off(tmp_path: Path, stored: str) -> None:
    _save(tmp_path, "model.safetensors", **{stored: torch.ones(2)})
    tensors = TensorFiles(tmp_path)
    assert list(tensors.headers) == ["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(tensors.read("model.layers.0.mlp.up_proj.weight"), torch.ones(2))


def test_an_unmerged_adapter_within_a_model_is_refused(tmp_path: Path) -> None:
    _save(tmp_path, "model.safetensors", **{"model.q_proj.base_layer.weight": torch.ones(2)})
    with pytest.raises(ScalpelError, match=r"merge it first"):
        TensorFiles(tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"weight_map": null}', '{"weight_map": {"a": 5}}', "{"])
def test_a_damaged_index_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    _save(tmp_path, "one.safetensors", a=torch.ones(2))
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ScalpelError, match=r"model.safetensors.index.json"):
        TensorFiles(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":' + b"[" * 99999 + b"]" * 99999 + b"}",
        b'{"a":{"dtype":"F32","shape":[1]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"",
    ],
)
def test_a_damaged_header_is_an_error_that_names_the_file(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
    with pytest.raises(ScalpelError, match=r"model.safetensors: is not a complete"):
        read_headers(file)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-400", 400),
        ("checkpoint_400", 400),
        ("global_step_20", 20),
        ("global_step20_hf", 20),
        ("step_7", 7),
        ("epoch_0", 0),
        ("iter_0000400", 400),
        ("400", 400),
        ("my-checkpoint-400", None),
        ("checkpoint-", None),
        ("runs", None),
    ],
)
def test_the_step_in_the_name_of_a_directory(name: str, step: int | None) -> None:
    assert step_of_name(name) == step
