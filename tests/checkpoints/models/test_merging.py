"""LoRA adapters: found base, merged once, and the same answers as PEFT gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlflow_scalpel.checkpoints.artifact_store import open_store
from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
from mlflow_scalpel.checkpoints.models.merging import merge_adapter
from mlflow_scalpel.checkpoints.reading.pull import pull, resolve
from mlflow_scalpel.errors import ScalpelError

IDS = torch.arange(5, 25).reshape(2, 10)


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Save a LoRA adapter with random weights, as a trainer does."""

    def make(base: Path, name: str = "adapter", *, tokenizer: bool = False, **options) -> Path:
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_pretrained(base)
        targets = {"target_modules": ["q_proj", "v_proj"], **options}
        together = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **targets))
        for parameter_name, parameter in together.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        together.save_pretrained(tmp_path / name)
        if tokenizer:
            AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def logits(model) -> torch.Tensor:
    """In float64: products in float32 are rounded in another order on every kind of processor."""
    with torch.inference_mode():
        return model.eval().double()(IDS).logits


def by_peft(base: Path, adapter: Path) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter))


def opened(directory: Path) -> torch.Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(directory))


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"], ["embed_tokens"]])
def test_the_merged_model_says_what_pefts_says(make_model, make_adapter, tied, targets):
    base = make_model(1, tied=tied)
    adapter = make_adapter(base, target_modules=targets)
    expected = by_peft(base, adapter)
    assert not same(expected, opened(base))
    directory = merge_adapter(adapter, base)
    assert same(opened(directory), expected)
    assert AutoTokenizer.from_pretrained(directory)("1+1").input_ids
    before = (directory / "model.safetensors").stat()
    assert merge_adapter(adapter, base) == directory
    assert (directory / "model.safetensors").stat().st_ino == before.st_ino


def test_the_dtype_is_the_bases(first_model, make_adapter, tmp_path):
    base = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(first_model, dtype=torch.bfloat16).save_pretrained(base)
    # What the configuration says is not what is stored.
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    adapter = make_adapter(first_model, tokenizer=True)
    directory = merge_adapter(adapter, base)
    tensors = load_file(directory / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert (directory / "tokenizer.json").is_file()  # the adapter's: this base has none


def test_pull_merges_into_the_dtype_that_is_asked_for(first_model, make_adapter, tmp_path, capsys):
    base = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(first_model, dtype=torch.bfloat16).save_pretrained(base)
    adapter = make_adapter(base)
    tensors = load_file(adapter / "adapter_model.safetensors")
    small = {name: one * 0.01 if "lora_B" in name else one for name, one in tensors.items()}
    save_file(small, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    before = load_file(base / "model.safetensors")
    ratios: dict[str, list[float]] = {"bfloat16": [], "float32": []}
    for dtype, asked in (("bfloat16", None), ("float32", "float32")):
        whole = pull(str(adapter), tmp_path / dtype, merge=True, dtype=asked)
        after = load_file(whole / "model.safetensors")
        assert {str(one.dtype) for one in after.values()} == {f"torch.{dtype}"}
        for name, w0 in before.items():
            factors = f"base_model.model.{name}".replace(".weight", ".lora_{}.weight")
            if factors.format("A") not in small:
                assert torch.equal(after[name].double(), w0.double())
                continue
            b, a = (small[factors.format(one)].double() for one in "BA")
            true = w0.double() + 2.0 * b @ a
            # Rounded once, from float32.
            expected = true.to(after[name].dtype)
            assert torch.allclose(after[name], expected, rtol=1e-2 if asked is None else 1e-6)
            if asked is None:
                assert (after[name] == expected).double().mean() > 0.999
            stored = after[name].double() - w0.double()
            ratios[dtype].append(float(stored.norm() / (2.0 * b @ a).norm()))
    said = capsys.readouterr().out
    for dtype, found in ratios.items():
        assert f"merged in {dtype}: " in said
        assert f"{min(found):.4g} to {max(found):.4g}" in said
    assert max(abs(one - 1) for one in ratios["bfloat16"]) > 1e-3
    assert "--dtype float32 keeps them" in said
    with pytest.raises(ScalpelError, match="only merging has one"):
        pull(str(adapter), dtype="float32")
    with pytest.raises(ScalpelError, match="is not an adapter"):
        pull(str(base), merge=True, dtype="float32")


def test_resolve_gives_the_whole_model(tracking, first_model, make_adapter, tmp_path):
    adapter = make_adapter(first_model)
    expected = by_peft(first_model, adapter)
    with mlflow.start_run():
        base = log_base(str(first_model))
        model = log_checkpoint(adapter, step=3, base=base.model_id).wait()
    directory = resolve(model.model_id)
    assert same(opened(directory), expected)
    assert resolve(str(adapter)) == directory  # by content: made once
    assert pull(model.model_id, merge=True) == directory

    dst = pull(model.model_id, tmp_path / "adapter-only")
    assert same(by_peft(first_model, dst), expected)
    assert not (dst / "model.safetensors").exists()
    whole = pull(model.model_id, tmp_path / "whole", merge=True)
    assert same(opened(whole), expected)
    assert not (whole / "adapter_config.json").exists()
    assert not (whole / "model.safetensors").samefile(directory / "model.safetensors")


def test_the_base_is_the_logged_one_wherever_the_adapter_was_made(
    tracking, make_model, make_adapter, tmp_path
):
    made_with = tmp_path / "gone"
    shutil.copytree(make_model(1), made_with)
    adapter = make_adapter(made_with)
    expected = by_peft(made_with, adapter)
    with mlflow.start_run():
        base = log_base(str(made_with))
        model = log_checkpoint(adapter, step=3, base=base.model_id).wait()
    shutil.rmtree(made_with)
    assert same(opened(resolve(model.model_id)), expected)
    # What was pulled names its LoggedModel, and so its base.
    assert same(opened(resolve(str(pull(model.model_id, tmp_path / "pulled")))), expected)
    loaded = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
    assert len(loaded.predict(pd.DataFrame({"prompt": ["1+1=?"]}))) == 1

    # Another model that came to lie there is not taken for the base.
    MlflowClient().set_logged_model_tags(base.model_id, {"scalpel.pruned": "2026-01-02"})
    shutil.copytree(make_model(2), made_with)
    with pytest.raises(ScalpelError, match=r"pruned at 2026-01-02.*holds another model than"):
        resolve(model.model_id)
    shutil.rmtree(made_with)
    shutil.copytree(make_model(1), made_with)
    assert same(opened(resolve(model.model_id)), expected)


def test_bases_that_cannot_be_had(tracking, first_model, make_adapter):
    adapter = make_adapter(first_model)
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    for named, said in (
        (None, "neither its logged model nor its configuration names one"),
        (str(adapter), "named as its own base"),
        ("models:/none/1", "models:/none/1: .*set base_model_name_or_path"),
    ):
        path.write_text(json.dumps({**config, "base_model_name_or_path": named}))
        with pytest.raises(ScalpelError, match=f"its base cannot be had .*{said}"):
            resolve(str(adapter))
    path.write_text("[1]")
    with pytest.raises(ScalpelError, match=r"adapter_config\.json: is not the configuration"):
        resolve(str(adapter))


def test_another_base(make_model, first_model, make_adapter, tmp_path):
    adapter = make_adapter(first_model)
    with pytest.raises(ScalpelError, match=r"does not fit the base .*q_proj"):
        merge_adapter(adapter, make_model(2, hidden=64))

    # With layers that the base has not, or the base with layers that the adapter has not.
    deeper = shutil.copytree(adapter, tmp_path / "deeper")
    tensors = load_file(adapter / "adapter_model.safetensors")
    more = {name.replace("layers.1.", "layers.2."): tensor + 1 for name, tensor in tensors.items()}
    save_file({**tensors, **more}, deeper / "adapter_model.safetensors")
    with pytest.raises(ScalpelError, match=r"this base has no .*layers\.2"):
        merge_adapter(deeper, first_model)
    fewer = {name: tensor for name, tensor in tensors.items() if "layers.1." not in name}
    save_file(fewer, deeper / "adapter_model.safetensors")
    with pytest.raises(ScalpelError, match=r"this base wants a .*layers\.1"):
        merge_adapter(deeper, first_model)


def test_an_adapter_that_peft_merges_wrongly(make_model, make_adapter):
    base = make_model(1, tied=True)
    adapter = make_adapter(base, target_modules=["embed_tokens"], ensure_weight_tying=True)
    with pytest.raises(ScalpelError, match="the merged model gives other answers"):
        merge_adapter(adapter, base)


def test_adapters_that_cannot_be_merged(first_model, make_adapter, tmp_path):
    pickled = make_adapter(first_model)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(ScalpelError, match=r"no adapter_model\.safetensors, and nothing else"):
        merge_adapter(pickled, first_model)
    prefix = get_peft_model(
        AutoModelForCausalLM.from_pretrained(first_model),
        PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    )
    prefix.save_pretrained(tmp_path / "prefix")
    with pytest.raises(ScalpelError, match="PREFIX_TUNING cannot be merged"):
        merge_adapter(tmp_path / "prefix", first_model)


def test_an_adapter_behind_a_server(faulty, track_at, first_model, make_adapter):
    track_at(faulty.uri)
    adapter = make_adapter(first_model)
    expected = by_peft(first_model, adapter)
    with mlflow.start_run():
        base = log_base(str(first_model))
        model = log_checkpoint(adapter, step=3, base=base.model_id).wait()
    assert open_store(model.artifact_location).local is None
    faulty.forget()
    directory = resolve(model.model_id)
    assert same(opened(directory), expected)
    assert resolve(model.model_id) == directory
    weights = faulty.exchanges(r"^GET .*mlflow-artifacts/.*/model\.safetensors")
    assert len(weights) == 1
