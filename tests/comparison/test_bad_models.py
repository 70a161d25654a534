"""One bad checkpoint, text or base is rows with a reason, and the rest is measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mlflow_scalpel
from mlflow_scalpel.comparison.run_store import summarise

TEXTS = [("1+1=?", "2"), ("what is the capital", "a long answer of many letters"), ("a", "b")]


@pytest.fixture
def models(make_model, tmp_path) -> list[str]:
    found = []
    for seed, name in ((1, "base"), (2, "checkpoint-5"), (3, "checkpoint-10")):
        directory = tmp_path / name
        shutil.copytree(make_model(seed), directory)
        found.append(str(directory))
    return found


def test_a_file_cut_short_is_rows_of_its_checkpoint_alone(models):
    base, odd, fine = models
    file = Path(odd) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    groups = ["weights/update_rms", "pairs/update_cosine", "kl/all_tokens"]
    table = mlflow_scalpel.compare(base, [odd, fine], metrics=groups, texts=TEXTS)
    bad = table[(table["model_id"] == odd) | (table["other"] == odd)]
    assert sorted(bad["metric"]) == ["kl/all_tokens", "pairs/update_cosine", "weights/update_rms"]
    assert set(bad["status"]) == {"not readable", "not comparable"}
    assert bad["reason"].str.contains("model.safetensors: is not a complete").all()
    good = table.drop(bad.index)
    assert set(good["status"]) == {"ok"}
    assert set(good["metric"]) == {"kl/all_tokens", "weights/update_rms"}


def test_a_tokenizer_that_does_not_load_is_a_row_with_its_reason(models):
    base, odd, fine = models
    (Path(odd) / "tokenizer.json").write_text("{}")
    table = mlflow_scalpel.compare(base, [odd, fine], metrics=["kl/all_tokens"], texts=TEXTS)
    kl = table.set_index("model_id")
    assert kl.loc[odd, "status"] == "not readable"
    assert "its tokenizer cannot be loaded" in kl.loc[odd, "reason"]
    assert kl.loc[fine, "status"] == "ok"


def test_a_base_that_gives_nan_is_rows_with_that_reason(models):
    base, checkpoint, _ = models
    file = Path(base) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, file, metadata={"format": "pt"})
    groups = ["weights/update_rms", "kl/all_tokens", "kl_on_base_samples"]
    table = mlflow_scalpel.compare(base, checkpoint, metrics=groups, texts=TEXTS)
    rows = table.drop_duplicates("metric").set_index("metric")
    assert rows.loc["kl/all_tokens", "status"] == "not finite"
    assert rows.loc["kl_on_base_samples/answer_tokens", "status"] == "not measured"
    assert "NaN" in rows.loc["kl_on_base_samples/answer_tokens", "reason"]
    assert rows.loc["weights/update_rms", "status"] == "ok"


def test_a_problem_longer_than_the_context_is_a_row_and_the_rest_is_measured(models):
    base, checkpoint, _ = models
    config = Path(base) / "config.json"
    settings = json.loads(config.read_text())
    longest = 20  # of the problems with their template's tokens, two are shorter
    config.write_text(json.dumps(settings | {"max_position_embeddings": longest}))
    ask = {"metrics": ["kl_on_base_samples", "weights/update_rms"], "texts": TEXTS}
    table = mlflow_scalpel.compare(base, checkpoint, **ask)
    rows = table[table["metric"] == "kl_on_base_samples/answer_tokens"]
    assert list(rows["status"]) == ["ok", "too long"]
    assert rows["n"].iloc[0] == 2
    assert "('what is the capital') has 50 tokens" in rows["reason"].iloc[1]
    assert (table[table["metric"] == "weights/update_rms"]["status"] == "ok").all()


def test_what_was_not_supported_is_asked_again(models, monkeypatch):
    from mlflow_scalpel.comparison import engine
    from mlflow_scalpel.comparison.runner import UnsupportedModel

    def refuse(*_):
        raise UnsupportedModel("not by this version")

    base, checkpoint, _ = models
    ask = {"metrics": ["kl/all_tokens"], "texts": TEXTS}
    with monkeypatch.context() as patch:
        patch.setattr(engine, "Divergence", refuse)
        assert list(mlflow_scalpel.compare(base, checkpoint, **ask)["status"]) == ["not supported"]
    assert list(mlflow_scalpel.compare(base, checkpoint, **ask)["status"]) == ["ok"]


def with_tensor(directory: str, name: str) -> None:
    file = Path(directory) / "model.safetensors"
    save_file({**load_file(file), name: torch.ones(2)}, file, metadata={"format": "pt"})


def test_tensors_that_transformers_ignores_may_be_in_the_base(models):
    base, first, second = models
    with_tensor(base, "extra.weight")
    with_tensor(first, "extra.weight")
    groups = ["attention/js", "kl/all_tokens", "kl_on_base_samples"]
    table = mlflow_scalpel.compare(base, [first, second], metrics=groups, texts=TEXTS)
    assert set(table["status"]) == {"ok"}
    assert set(table["model_id"]) == {first, second}
    assert (table[table["metric"] == "kl/all_tokens"]["value"] > 0.1).all()


def test_a_tensor_that_the_base_lacks_is_refused(models):
    base, odd, fine = models
    with_tensor(odd, "extra.weight")
    table = mlflow_scalpel.compare(base, [odd, fine], metrics=["kl/all_tokens"], texts=TEXTS)
    kl = table.set_index("model_id")
    assert kl.loc[odd, "status"] == "not comparable"
    assert "extra.weight is none of LlamaForCausalLM's" in kl.loc[odd, "reason"]
    assert kl.loc[fine, "status"] == "ok"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda tensors, name: tensors.pop(name), "is missing the tensor"),
        (lambda tensors, name: tensors.update({name: torch.ones(3, 3)}), "has shape"),
    ],
)
def test_a_checkpoint_that_transformers_reads_is_checked_before_it_is_copied(models, harm, said):
    base, odd, _ = models
    with_tensor(base, "extra.weight")
    with_tensor(odd, "extra.weight")
    file = Path(odd) / "model.safetensors"
    tensors = load_file(file)
    harm(tensors, "model.layers.0.mlp.up_proj.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    table = mlflow_scalpel.compare(base, [odd, base], metrics=["kl/all_tokens"], texts=TEXTS)
    kl = table.set_index("model_id")
    assert kl.loc[odd, "status"] == "not comparable"
    assert said in kl.loc[odd, "reason"]
    assert kl.loc[base, "value"] == 0.0


def test_an_infinite_weight_is_a_row_with_its_reason_and_in_no_mean(models):
    base, checkpoint, _ = models
    file = Path(checkpoint) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] = float("inf")
    save_file(tensors, file, metadata={"format": "pt"})
    table = mlflow_scalpel.compare(base, checkpoint, metrics=["weights/relative_frobenius"])
    bad = table[table["status"] != "ok"]
    assert list(bad["matrix"]) == ["q_proj"]
    assert bad["value"].isna().all()
    assert set(bad["status"]) == {"not finite"}
    assert torch.isfinite(torch.tensor(list(summarise(table).values()))).all()
