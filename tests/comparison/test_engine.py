"""Two versions in, one tidy table out, against direct computations."""

from __future__ import annotations

import datetime
import math
import shutil
from pathlib import Path

import mlflow
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlflow_scalpel.chat import load_tokenizer
from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
from mlflow_scalpel.comparison.engine import FROM_WEIGHTS, TEXT_GROUPS, Comparison
from mlflow_scalpel.comparison.forward.probes import build_probe
from mlflow_scalpel.comparison.gather import gather
from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.comparison.run_store import describe_runs, log_table, stored_table
from mlflow_scalpel.comparison.table import COLUMNS, read_table, tidy, write_table
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.registry import GROUPS
from mlflow_scalpel.tensors.places import CLASSICAL

PAIRS = [("1+1=?", "2"), ("what is the capital", "a long answer of many letters"), ("a", "b")]


@pytest.fixture(scope="module")
def probe(first_model):
    return build_probe("pairs", PAIRS, AutoTokenizer.from_pretrained(first_model))


@pytest.fixture
def moved(first_model: Path, tmp_path: Path) -> Path:
    """The first model with every weight moved a little."""
    directory = tmp_path / "moved"
    shutil.copytree(first_model, directory)
    torch.manual_seed(5)
    tensors = load_file(directory / "model.safetensors")
    changed = {name: w + 0.02 * torch.randn_like(w) for name, w in tensors.items()}
    save_file(changed, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def measured_model(directory: Path, step: int = 0, **more) -> MeasuredModel:
    return MeasuredModel(directory, f"model-{step}", f"sha256:{step}", step, **more)


def rows_of(table, metric: str):
    return table[table["metric"] == metric]


def test_weights_of_every_layer_and_matrix(first_model, moved, tmp_path):
    after = measured_model(moved, 10, run_id="r", algorithm="sft", learning_rate_sum=0.5)
    table = Comparison(measured_model(first_model), []).measure(after)
    norms = rows_of(table, "weights/relative_frobenius")
    before, now = (load_file(d / "model.safetensors") for d in (first_model, moved))
    assert len(norms) == len(before)
    norms = norms[norms["matrix"].isin(CLASSICAL)]
    assert len(norms) == 2 * 7
    for row in norms.itertuples():
        block = "self_attn" if row.matrix[0] in "qkvo" else "mlp"
        name = f"model.layers.{row.layer}.{block}.{row.matrix}.weight"
        change = torch.linalg.norm(now[name].double() - before[name].double())
        expected = float(change / torch.linalg.norm(before[name].double()))
        assert row.value == pytest.approx(expected, rel=1e-6)
    per_rate = rows_of(table, "weights/relative_frobenius_per_lr")
    per_rate = per_rate[per_rate["matrix"].isin(CLASSICAL)]
    assert list(per_rate["value"]) == pytest.approx([value / 0.5 for value in norms["value"]])
    assert set(table["run_id"]) == {"r"}
    assert set(table["base"]) == {"model-0"}


def test_without_learning_rates_the_rows_say_so(first_model, moved):
    table = Comparison(measured_model(first_model), []).measure(measured_model(moved, 10))
    per_rate = rows_of(table, "weights/relative_frobenius_per_lr")
    assert set(per_rate["status"]) == {"not known"}
    assert set(per_rate["reason"]) == {"the learning rates of this model's training are not known"}


def test_kl_against_the_models_own_logits(first_model, moved, probe):
    table = Comparison(measured_model(first_model), [probe]).measure(measured_model(moved, 10))
    base = AutoModelForCausalLM.from_pretrained(first_model).eval()
    checkpoint = AutoModelForCausalLM.from_pretrained(moved).eval()
    everywhere, answers = [], []
    for item in probe.items:
        ids = torch.tensor([item.ids])
        with torch.no_grad():
            log_p = base(input_ids=ids).logits[0].double().log_softmax(-1)
            log_q = checkpoint(input_ids=ids).logits[0].double().log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        everywhere.append(float(kl.mean()))
        answers.append(float(kl[item.answer].mean()))
    for metric, values in (("kl/all_tokens", everywhere), ("kl/answer_tokens", answers)):
        (row,) = rows_of(table, metric).itertuples()
        assert row.value == pytest.approx(sum(values) / 3, rel=1e-4)
        assert row.stderr == pytest.approx(
            float(torch.tensor(values).double().std()) / math.sqrt(3), rel=1e-4
        )
        assert (row.n, row.unit, row.dtype) == (3, "nats/token", "float32")
        assert row.texts == probe.texts


def test_a_model_is_at_kl_zero_from_itself(first_model, probe):
    table = Comparison(measured_model(first_model), [probe]).measure(measured_model(first_model))
    assert list(rows_of(table, "kl/all_tokens")["value"]) == [0.0]
    assert set(rows_of(table, "weights/relative_frobenius")["value"]) == {0.0}


def test_answer_positions_predict_the_answer_and_its_end(first_model):
    tokenizer = AutoTokenizer.from_pretrained(first_model)
    tokenizer.chat_template += "{% if not add_generation_prompt %}<|end|>{% endif %}"
    probe = build_probe("p", [("1+1=?", "2")], tokenizer, system_prompt="be brief")
    (item,) = probe.items
    predicted = [item.ids[position + 1] for position in range(len(item.ids) - 1)][item.answer]
    assert tokenizer.convert_ids_to_tokens(predicted) == ["2", "<|end|>"]
    assert tokenizer.decode(item.ids).startswith("<|system|>")


def test_what_a_template_puts_after_the_end_of_turn_is_no_part_of_the_answer(first_model):
    """ChatML ends each turn with a line break; a base's own end-of-text token is another one."""
    tokenizer = AutoTokenizer.from_pretrained(first_model)
    tokenizer.eos_token = "<|pad|>"
    tokenizer.chat_template += "{% if not add_generation_prompt %}<|end|> {% endif %}"
    (item,) = build_probe("p", [("1+1=?", "2")], tokenizer).items
    assert tokenizer.convert_ids_to_tokens(list(item.ids))[-2:] == ["<|end|>", " "]
    predicted = item.ids[item.answer.start + 1 : item.answer.stop + 1]
    assert tokenizer.convert_ids_to_tokens(list(predicted)) == ["2", "<|end|>"]


def test_texts_are_named_by_their_content(first_model):
    tokenizer = AutoTokenizer.from_pretrained(first_model)
    names = {
        build_probe("p", PAIRS, tokenizer).texts,
        build_probe("p", PAIRS[:2], tokenizer).texts,
        build_probe("p", PAIRS, tokenizer, system_prompt="x").texts,
    }
    assert len(names) == 3
    tokenizer.chat_template = None
    with pytest.raises(ScalpelError, match="no chat template"):
        build_probe("p", PAIRS, tokenizer)


def test_texts_are_named_by_what_was_rendered(first_model, tmp_path):
    """Not only by the template: it may write a date, or what a setting says."""
    tokenizer = load_tokenizer(first_model)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    plain = build_probe("p", PAIRS, tokenizer).texts
    assert build_probe("p", PAIRS, tokenizer).texts == plain
    tokenizer.save_pretrained(tmp_path)
    later = load_tokenizer(tmp_path, datetime.date(2025, 1, 1))
    assert build_probe("p", PAIRS, later).texts != plain
    assert build_probe("p", PAIRS, later).texts.split()[2] == plain.split()[2]  # the template's


def test_a_text_longer_than_the_context_is_a_row_with_its_reason(first_model, make_model):
    tokenizer = AutoTokenizer.from_pretrained(first_model)
    short, long = ("1+1=?", "2"), ("2+2=?", "4" * 95)  # the model has 96 positions
    both = build_probe("p", [short, long], tokenizer, context=96)
    alone = build_probe("p", [short], tokenizer, context=96)
    fitting = build_probe("p", [short, ("2+2=?", "4" * 89)], tokenizer, context=96)
    assert (len(both.items), len(both.left_out), len(fitting.left_out)) == (1, 1, 0)
    assert "1 of 2 texts of probe p are longer" in both.warnings["too_long"]
    other = measured_model(make_model(2), 1)
    tables = [
        Comparison(measured_model(first_model), [one]).measure(other) for one in (both, alone)
    ]
    for metric in ("kl/all_tokens", "kl/answer_tokens"):
        found, expected = (rows_of(table, metric) for table in tables)
        assert list(found["status"]) == ["ok", "too long"]
        assert found["value"].iloc[0] == expected["value"].iloc[0]
        assert found["n"].iloc[0] == 1
        assert "problem 1 of probe p ('2+2=?') has 102 tokens" in found["reason"].iloc[1]
    none = build_probe("p", [long], tokenizer, context=96)
    table = Comparison(measured_model(first_model), [none]).measure(other)
    assert list(rows_of(table, "kl/all_tokens")["status"]) == ["too long"]


def test_what_cannot_be_compared_is_a_row_that_says_why(first_model, make_model, tmp_path):
    directory = tmp_path / "odd"
    shutil.copytree(first_model, directory)
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-1].contiguous()
    tensors["model.layers.1.mlp.down_proj.weight"].fill_(float("nan"))
    save_file(tensors, directory / "model.safetensors")
    table = Comparison(measured_model(first_model), []).measure(measured_model(directory, 1))
    norms = rows_of(table, "weights/relative_frobenius").set_index(["layer", "matrix"])
    assert norms.loc[(0, "q_proj"), "status"] == "missing"
    assert norms.loc[(1, "up_proj"), "status"] == "shape mismatch"
    assert norms.loc[(1, "down_proj"), "status"] == "undefined"
    assert (norms["status"] == "ok").sum() == len(norms) - 3
    assert norms[norms["status"] != "ok"]["reason"].notna().all()


def test_the_table_survives_parquet_and_refuses_unknown_columns(tmp_path):
    table = tidy([{"metric": "a", "value": 1.5, "layer": 3}, {"metric": "b", "value": math.nan}])
    assert list(table.columns) == list(COLUMNS)
    assert list(table["status"]) == ["ok", "undefined"]
    again = read_table(write_table(table, tmp_path / "table.parquet"))
    assert again.equals(table)
    with pytest.raises(ValueError, match="no column 'colour'"):
        tidy([{"colour": 1}])


def test_checkpoints_far_away_are_on_this_machine_one_at_a_time(
    faulty, track_at, make_model, empty_cache, monkeypatch
):
    """Where the cache has room for base and one checkpoint, a run of three is measured."""
    track_at(faulty.uri)
    size = sum(file.stat().st_size for file in make_model(1).iterdir())
    monkeypatch.setenv("SCALPEL_CACHE_GB", str(2.5 * size / 1e9))
    with mlflow.start_run() as run:
        base = log_base(str(make_model(1)))
        for step in (1, 2, 3):
            log_checkpoint(make_model(step + 1), step=step, base=base.model_id).wait()
    measured = gather([run.info.run_id])
    assert set(measured["step"]) == {1, 2, 3}
    assert (rows_of(measured, "weights/relative_frobenius")["status"] == "ok").all()
    assert len(list((empty_cache / "entries").iterdir())) == 2


def test_tables_are_kept_in_mlflow_and_gathered(tracking, first_model, moved):
    with mlflow.start_run(run_name="one") as run:
        base = log_base(str(first_model))
        params = {"learning_rate_sum": 0.25}
        log_checkpoint(moved, step=5, base=base.model_id, params=params).wait()
        mlflow.log_params({"algorithm": "sft", "learning_rate": 0.05, "seed": 1})
        mlflow.log_metric("cost/flops", 1e12)
    run_id = run.info.run_id
    assert stored_table(run_id) is None
    measured = gather([run_id])  # nothing was logged, so the weights are measured now
    assert set(measured["step"]) == {5}
    assert len(rows_of(measured, "weights/relative_frobenius_per_lr")) == len(
        load_file(first_model / "model.safetensors")
    )
    extra = tidy([{"run_id": run_id, "step": 5, "metric": "kl/all_tokens", "value": 1.0}])
    log_table(extra, run_id)
    assert list(gather([run_id])["metric"]) == ["kl/all_tokens"]
    described = describe_runs([run_id]).loc[run_id]
    assert (described["name"], described["learning_rate"]) == ("one", "0.05")
    assert described["cost/flops"] == "1e+12"
    with pytest.raises(ScalpelError, match="no such run"):
        gather(["0" * 32])


def test_every_group_of_metrics_is_computed_in_one_way():
    computed = [*FROM_WEIGHTS, *TEXT_GROUPS, "capabilities"]
    assert sorted(computed) == sorted(GROUPS)
