"""What cannot be opened or run is a row of its group, and all else is measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import mlflow_scalpel
from mlflow_scalpel.comparison.forward.model import ForwardModel
from mlflow_scalpel.comparison.run_store import unmeasured
from mlflow_scalpel.errors import ScalpelError
from tests.comparison.weights.test_quantised_models import own_kl
from tests.conftest import make_tokenizer

TEXTS = [("1+1=?", "2"), ("what is the capital", "a long answer of many letters"), ("a", "b")]
FORWARD = ["attention/js", "kl/all_tokens", "kl_paper_compat", "kl_on_base_samples/answer_tokens"]
EVERY = ["weights/update_rms", *FORWARD]


@pytest.fixture
def models(make_model, tmp_path) -> list[Path]:
    found = []
    for seed, name in ((1, "base"), (2, "checkpoint-5"), (3, "checkpoint-10")):
        directory = tmp_path / name
        shutil.copytree(make_model(seed), directory)
        found.append(directory)
    return found


def compared(base: Path, *checkpoints: Path, metrics=("kl/all_tokens",), **settings):
    return mlflow_scalpel.compare(
        str(base), [str(one) for one in checkpoints], metrics=list(metrics), texts=TEXTS, **settings
    )


def settings_of(directory: Path, **changes) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def opened(directory: Path):
    return AutoModelForCausalLM.from_pretrained(directory).eval()


def no_tokenizer(base: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (base / name).unlink()


def other_type(base: Path) -> None:
    settings_of(base, model_type="unheard_of")


def bad_value(base: Path) -> None:
    settings_of(base, hidden_act="unheard_of")


def lost_head(base: Path) -> None:
    file = base / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("harm", [no_tokenizer, other_type, bad_value, lost_head])
def test_a_base_that_cannot_be_run_leaves_the_weights(models, harm):
    base, first, second = models
    harm(base)
    table = compared(base, first, second, metrics=EVERY)
    weights = table["metric"] == "weights/update_rms"
    missing = {"missing"} if harm is lost_head else set()
    assert set(table[weights]["status"]) == {"ok"} | missing
    assert set(table[weights]["model_id"]) == {str(first), str(second)}
    failed = table[~weights]
    assert len(failed) == len(FORWARD) * 2
    assert set(failed["status"]) <= {"not supported", "not measured"}
    assert failed["reason"].str.len().gt(20).all()
    assert not failed["reason"].str.contains("\n").any()


def test_a_checkpoint_that_breaks_in_its_forward_is_a_row_of_its_own(models, monkeypatch):
    base, odd, fine = models
    real = ForwardModel.states

    def states(self, *given):
        if self._now == odd:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        return real(self, *given)

    monkeypatch.setattr(ForwardModel, "states", states)
    table = compared(base, odd, fine, metrics=EVERY, cache=False)
    bad = table[(table["model_id"] == str(odd)) & (table["metric"] != "weights/update_rms")]
    assert len(bad) == len(FORWARD)
    assert set(bad["status"]) == {"not measured"}
    assert bad["reason"].str.contains("OutOfMemoryError: CUDA out of memory. Tried").all()
    assert set(table.drop(bad.index)["status"]) == {"ok"}


def test_a_checkpoint_of_nan_is_not_finite_and_the_others_go_on(models):
    base, odd, fine = models
    file = odd / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"].fill_(float("nan"))
    save_file(tensors, file, metadata={"format": "pt"})
    table = compared(base, odd, fine, metrics=EVERY)
    assert set(table[table["model_id"] == str(fine)]["status"]) == {"ok"}
    rows = table[table["model_id"] == str(odd)].set_index("metric")
    assert rows.loc["kl/all_tokens", "status"] == "not finite"
    weights = rows.loc[["weights/update_rms"]]
    assert list(weights[weights["status"] != "ok"]["matrix"]) == ["up_proj"]


def grown(source: Path, directory: Path, by: int, added: Sequence[str] = ()) -> Path:
    model = opened(source)
    torch.manual_seed(4)
    model.resize_token_embeddings(model.config.vocab_size + by, mean_resizing=False)
    model.save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(list(added))
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    "break_it",
    [
        lambda directory: (directory / "config.json").write_text("[1,"),
        lambda directory: (directory / "config.json").unlink(),
        lambda directory: (directory / "model.safetensors").unlink(),
    ],
    ids=["config", "no config", "no weights"],
)
def test_a_directory_that_cannot_be_read_does_not_end_the_comparison(models, break_it):
    base, odd, fine = models
    break_it(odd)
    table = compared(base, odd, fine, metrics=["weights/update_rms", "kl/all_tokens"])
    assert set(table[table["model_id"] == str(fine)]["status"]) == {"ok"}
    rows = table[table["model_id"] == str(odd)]
    assert {"weights/update_rms", "kl/all_tokens"} == set(rows["metric"])
    assert set(rows["status"]) == {"not readable"}
    assert (rows["step"] == 5).all()
    with pytest.raises(ScalpelError):
        compared(base, odd.parent / "no such directory", fine)


def test_what_failed_of_a_run_is_told_in_one_warning(models):
    base, first, second = models
    settings_of(second, num_attention_heads=8)
    steps = compared(base, first, second, metrics=["weights/update_rms", *FORWARD])
    said = unmeasured(steps)
    assert "at step 10: kl: " in said
    assert "num_attention_heads = 8" in said
    assert "at step 5" not in said
    assert unmeasured(steps[steps["step"] == 5]) is None


def test_added_tokens_do_not_matter_to_texts_without_them(models, tmp_path):
    base, first, _ = models
    plain = grown(first, tmp_path / "plain", 2)
    larger = grown(first, tmp_path / "larger", 2, ["<think>", "zzz"])
    within = grown(first, tmp_path / "within", 2, ["<think>", TEXTS[1][1][:3]])
    table = compared(base, plain, larger, within).set_index("model_id")
    assert table.loc[str(larger), "value"] == table.loc[str(plain), "value"] > 0
    assert table.loc[str(within), "status"] == "refused"
    assert "tokens of the text" in table.loc[str(within), "reason"]


def test_a_grown_vocabulary(models, tmp_path):
    base, first, _ = models
    larger = grown(first, tmp_path / "larger", 7)
    kl = ["kl/all_tokens", "kl/reverse/all_tokens", "kl_paper_compat"]
    table = compared(base, larger, first, metrics=kl)
    rows = table[table["model_id"] == str(larger)].set_index("metric")
    first_rows = table[table["model_id"] == str(first)]
    p, q = opened(base), opened(larger)

    class OfOneVocabulary:
        """The larger model's probabilities of the tokens that the base has."""

        def __call__(self, input_ids):
            out = q(input_ids=input_ids)
            out.logits = out.logits.double().log_softmax(-1)[..., : p.config.vocab_size]
            return out

    expected = own_kl_unnormalised(p, OfOneVocabulary())
    assert rows.loc["kl/all_tokens", "value"] == pytest.approx(expected, rel=1e-4)
    assert rows.loc["kl/reverse/all_tokens", "status"] == "not finite"
    assert rows.loc["kl_paper_compat/all_tokens", "status"] == "not comparable"
    assert set(first_rows["status"]) == {"ok"}
    back = compared(larger, first)
    assert list(back["status"]) == ["not comparable"]
    assert "vocabulary" in back["reason"].iloc[0]


def own_kl_unnormalised(first, second) -> float:
    from mlflow_scalpel.comparison.forward.probes import build_probe

    found = []
    for item in build_probe("p", TEXTS, make_tokenizer()).items:
        ids = torch.tensor([item.ids])
        with torch.no_grad():
            p = first(input_ids=ids).logits[0].double().log_softmax(-1)
            q = second(input_ids=ids).logits[0]
        found.append(float((p.exp() * (p - q)).sum(-1).mean()))
    return sum(found) / len(found)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
        {"rms_norm_eps": 0.5},
        {"attention_bias": False, "hidden_act": "relu"},
    ],
)
def test_a_checkpoint_is_what_its_own_config_makes_of_it(models, changes):
    base, first, second = models
    settings_of(first, **changes)
    table = compared(base, first, second, base)
    expected = [own_kl(opened(base), opened(one)) for one in (first, second, base)]
    assert list(table["value"]) == pytest.approx(expected, rel=1e-4)
    assert expected[2] == 0.0


def test_untied_from_a_tied_base(make_model, tmp_path):
    base, untied = make_model(1, tied=True), make_model(2)
    table = compared(base, untied, base)
    assert list(table["value"]) == pytest.approx([own_kl(opened(base), opened(untied)), 0.0])


def test_tensors_that_no_forward_reads_are_no_hindrance(models):
    base, first, second = models
    file = first / "model.safetensors"
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "mtp.layers.0.weight": torch.ones(4, 4),
        "v_head.summary.weight": torch.ones(1, 32),
    }
    save_file({**load_file(file), **extra}, file, metadata={"format": "pt"})
    table = compared(base, first, second)
    assert set(table["status"]) == {"ok"}
    assert table["value"].iloc[0] == pytest.approx(own_kl(opened(base), opened(first)), rel=1e-4)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_prefixes_of_wrappers_on_either_side(models, prefix):
    base, first, _ = models
    expected = compared(base, first)["value"].iloc[0]
    for directory in (first, base):
        file = directory / "model.safetensors"
        tensors = {f"{prefix}{name}": one for name, one in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
        table = compared(base, first)
        assert list(table["status"]) == ["ok"], table["reason"].iloc[0]
        assert table["value"].iloc[0] == pytest.approx(expected, rel=1e-6)


def test_another_size_of_the_family_is_not_comparable(models, make_model, tmp_path):
    base, _, fine = models
    config = LlamaConfig(
        **json.loads((base / "config.json").read_text()) | {"num_hidden_layers": 3}
    )
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "deeper")
    table = compared(base, tmp_path / "deeper", make_model(1, hidden=16), fine)
    assert list(table["status"]) == ["not comparable", "not comparable", "ok"]
    assert "num_hidden_layers = 3" in table["reason"].iloc[0]
    assert "hidden_size = 16" in table["reason"].iloc[1]
