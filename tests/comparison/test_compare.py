"""`compare`, in Python and on the command line, on real checkpoints in a real store."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

import mlflow_scalpel
from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
from mlflow_scalpel.cli import main
from mlflow_scalpel.comparison import engine
from mlflow_scalpel.comparison.forward import divergence
from mlflow_scalpel.comparison.gather import gather
from mlflow_scalpel.comparison.run_store import stored_tokens, token_steps
from mlflow_scalpel.comparison.weights import files as weights
from mlflow_scalpel.errors import ScalpelError

TEXTS = [("1+1=?", "2"), ("what is the capital", "a long answer of many letters"), ("a", "b")]


@pytest.fixture
def models(make_model, tmp_path, empty_cache) -> list[str]:
    """A base and two checkpoints in directories whose names tell their steps."""
    found = []
    for seed, name in ((1, "base"), (2, "checkpoint-5"), (3, "checkpoint-10")):
        directory = tmp_path / name
        shutil.copytree(make_model(seed), directory)
        found.append(str(directory))
    return found


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"problem": p, "solution": s}) + "\n" for p, s in TEXTS))
    return file


def changed(directory: str, change) -> None:
    file = Path(directory) / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_many_checkpoints_give_what_single_ones_do(models, texts):
    base, *checkpoints = models
    every = ["weights", "kl"]
    together = mlflow_scalpel.compare(base, checkpoints, metrics=every, texts=texts, cache=False)
    alone = [
        mlflow_scalpel.compare(base, one, metrics=every, texts=TEXTS, cache=False)
        for one in checkpoints
    ]
    drop = "texts"  # named after the file, or not
    pd.testing.assert_frame_equal(
        together.drop(columns=drop),
        pd.concat(alone, ignore_index=True).drop(columns=drop),
        check_exact=True,
    )
    assert sorted(set(together["step"])) == [5, 10]
    names = set(together["metric"])
    for name in ("kl/all_tokens", "kl/reverse/answer_tokens", "kl/gini/all_tokens"):
        assert name in names
    floor = together[together["metric"] == "kl/floor/all_tokens"]
    assert list(floor["value"]) == [0.0, 0.0]
    ok = together[together["status"] == "ok"]
    assert (ok[ok["metric"] == "kl/all_tokens"]["value"] > 0).all()


def test_bfloat16_stands_above_its_floor(models):
    base, checkpoint, _ = models
    table = mlflow_scalpel.compare(
        base, [base, checkpoint], metrics=["kl"], texts=TEXTS, dtype="bfloat16"
    )
    value = table.set_index(["model_id", "metric"])["value"]
    assert value[base, "kl/all_tokens"] == 0.0
    assert 0.0 < value[base, "kl/floor/all_tokens"] < value[checkpoint, "kl/all_tokens"]
    assert set(table["dtype"]) == {"bfloat16"}


def test_the_floor_stands_beside_every_kl_that_is_not_in_float32(models, monkeypatch):
    base, checkpoint, _ = models
    ask = {"metrics": ["kl/answer_tokens", "kl/js/answer_tokens"], "texts": TEXTS}
    table = mlflow_scalpel.compare(base, checkpoint, dtype="bfloat16", **ask)
    floor = table.set_index("metric").loc["kl/floor/answer_tokens"]
    assert len(table) == 3
    assert floor["value"] > 0.0
    assert "kl/floor/answer_tokens" not in set(
        mlflow_scalpel.compare(base, checkpoint, **ask)["metric"]
    )
    of_samples = "kl_on_base_samples/answer_tokens", "kl_on_base_samples/floor/answer_tokens"
    ask["metrics"] = [of_samples[0]]
    sampled = mlflow_scalpel.compare(base, checkpoint, dtype="bfloat16", **ask)
    values = sampled.set_index("metric")["value"]
    assert set(values.index) == set(of_samples)
    assert 0.0 < values[of_samples[1]] < values[of_samples[0]]
    assert sampled["texts"].nunique() == 1  # the floor is of the same samples
    monkeypatch.setattr(divergence, "ForwardModel", None)  # in float32 no model is run for a floor
    exact = mlflow_scalpel.compare(base, checkpoint, metrics=["kl_on_base_samples"], texts=TEXTS)
    assert exact.set_index("metric")["value"][of_samples[1]] == 0.0


def test_asking_again_costs_nothing_and_one_more_costs_one(models, texts, monkeypatch):
    base, first, second = models
    read = []
    real = weights.StoredWeights.__init__

    def counting(self, directory, **more):
        read.append(str(directory))
        real(self, directory, **more)

    monkeypatch.setattr(weights.StoredWeights, "__init__", counting)
    once = mlflow_scalpel.compare(base, first, metrics=["weights", "kl"], texts=texts)
    assert read == [base, first]
    monkeypatch.setattr(engine, "Divergence", None)  # nothing may be run
    again = mlflow_scalpel.compare(base, first, metrics=["weights", "kl"], texts=texts)
    assert read == [base, first]
    pd.testing.assert_frame_equal(once, again, check_exact=True)
    mlflow_scalpel.compare(base, [first, second])
    assert read[2:] == [base, second]
    changed(second, lambda tensors: tensors["model.norm.weight"].mul_(2))
    mlflow_scalpel.compare(base, [first, second])
    assert read[4:] == [base, second]
    mlflow_scalpel.compare(base, first, cache=False)
    assert read[6:] == [base, first]


def test_every_tensor_is_a_row(models):
    base, checkpoint, _ = models
    table = mlflow_scalpel.compare(base, checkpoint, metrics=["weights"])
    norms = table[table["metric"] == "weights/relative_frobenius"]
    stored = load_file(Path(base) / "model.safetensors")
    assert len(norms) == len(stored)
    assert norms["n"].sum() == sum(tensor.numel() for tensor in stored.values())
    parts = norms.set_index("matrix")["part"].to_dict()
    assert (parts["q_proj"], parts["up_proj"]) == ("attention", "mlp")
    assert (parts["embed_tokens"], parts["norm"]) == ("embeddings", "norm")
    outside = set(norms[norms["layer"].isna()]["matrix"])
    assert {"embed_tokens", "norm"} <= outside
    assert "input_layernorm" in set(norms["matrix"])


def test_fused_projections_are_split(models, tmp_path):
    base, checkpoint, _ = models
    apart = mlflow_scalpel.compare(base, checkpoint, metrics=["weights"])

    def fuse(tensors):
        for layer in range(2):
            for block, parts, fused in (
                ("self_attn", ("q_proj", "k_proj", "v_proj"), "qkv_proj"),
                ("mlp", ("gate_proj", "up_proj"), "gate_up_proj"),
            ):
                names = [f"model.layers.{layer}.{block}.{part}.weight" for part in parts]
                joined = torch.cat([tensors.pop(name) for name in names])
                tensors[f"model.layers.{layer}.{block}.{fused}.weight"] = joined

    for directory in (base, checkpoint):
        changed(directory, fuse)
        config = Path(directory) / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "phi3"}))
    together = mlflow_scalpel.compare(base, checkpoint, metrics=["weights"])
    keys = ["metric", "layer", "matrix"]
    values = [table.set_index(keys)["value"].sort_index() for table in (apart, together)]
    pd.testing.assert_series_equal(*values, rtol=1e-6)


def test_another_tokenizer_is_refused_and_the_rest_goes_on(models):
    base, odd, fine = models
    file = Path(odd) / "tokenizer.json"
    vocabulary = json.loads(file.read_text())
    words = vocabulary["model"]["vocab"]
    first, second = list(words)[20:22]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(vocabulary))
    table = mlflow_scalpel.compare(
        base, [odd, fine], metrics=["weights", "kl/all_tokens"], texts=TEXTS
    )
    kl = table[table["metric"] == "kl/all_tokens"].set_index("model_id")
    assert kl.loc[odd, "status"] == "refused"
    assert "2 differ" in kl.loc[odd, "reason"]
    assert kl.loc[fine, "status"] == "ok"
    assert (table[table["metric"] == "weights/update_rms"]["status"] == "ok").all()


def test_a_checkpoint_of_another_model_is_rows_with_a_reason(models):
    base, odd, fine = models
    changed(odd, lambda tensors: tensors.pop("model.norm.weight"))
    table = mlflow_scalpel.compare(base, [odd, fine], metrics=["kl/all_tokens"], texts=TEXTS)
    kl = table.set_index("model_id")
    assert kl.loc[odd, "status"] == "not comparable"
    assert "is missing the tensor model.norm.weight" in kl.loc[odd, "reason"]
    assert kl.loc[fine, "status"] == "ok"


def test_an_untied_checkpoint_of_a_tied_base_is_a_row_with_its_reason(make_model, tmp_path):
    base, same, untied = (tmp_path / name for name in ("base", "checkpoint-1", "checkpoint-2"))
    for directory in (base, same, untied):
        shutil.copytree(make_model(1, tied=True), directory)

    def untie(factor):
        def change(tensors):
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * factor

        return change

    changed(str(same), untie(1.0))  # both are stored, and are one
    changed(str(untied), untie(2.0))
    table = mlflow_scalpel.compare(
        str(base), [str(untied), str(same)], metrics=["kl/all_tokens"], texts=TEXTS
    ).set_index("model_id")
    assert table.loc[str(same), "value"] == 0.0
    assert table.loc[str(untied), "status"] == "not comparable"
    assert "lm_head.weight and model.embed_tokens.weight differ" in table.loc[str(untied), "reason"]


def test_wrong_questions_are_answered_with_a_remedy(models, tmp_path):
    base, checkpoint, _ = models
    with pytest.raises(ScalpelError, match="is measured on texts"):
        mlflow_scalpel.compare(base, checkpoint, metrics=["kl"])
    with pytest.raises(ScalpelError, match="did you mean weights"):
        mlflow_scalpel.compare(base, checkpoint, metrics=["weight"])
    turns = tmp_path / "turns.jsonl"
    turns.write_text('{"problem": "a", "solution": [{"role": "assistant", "content": "b"}]}')
    with pytest.raises(ScalpelError, match=r"turns.jsonl: line 1: solution holds a list of mess"):
        mlflow_scalpel.compare(base, checkpoint, texts=turns, metrics=["kl"])
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"problem": "a", "solution": "b"}\n{"problem": "a"}\n')
    with pytest.raises(ScalpelError, match="line 2 has no solution"):
        mlflow_scalpel.compare(base, checkpoint, metrics=["kl"], texts=bad)


def test_the_command_on_a_runs_checkpoints(tracking, models, texts, tmp_path, capsys):
    base, *checkpoints = models
    with mlflow.start_run() as run:
        logged = log_base(base)
        for step, directory in ((5, checkpoints[0]), (10, checkpoints[1])):
            params = {"learning_rate_sum": 0.1 * step}
            log_checkpoint(directory, step=step, base=logged.model_id, params=params).wait()
    out = tmp_path / "table.parquet"
    words = ["compare", f"models:/{logged.model_id}", f"runs:/{run.info.run_id}"]
    words += ["--texts", str(texts), "--out", str(out), "--log"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "step 5" in printed
    assert "kl/answer_tokens" in printed
    table = pd.read_parquet(out)
    assert sorted(set(table["step"])) == [5, 10]
    assert set(table["run_id"]) == {run.info.run_id}
    per_rate = table[table["metric"] == "weights/relative_frobenius_per_lr"]
    assert per_rate["value"].notna().all()
    compared = printed.rsplit("logged as run ", 1)[1].strip()
    history = MlflowClient().get_metric_history(compared, "kl/all_tokens/pairs")
    assert [point.step for point in history] == [5, 10]
    files = {file.path for file in MlflowClient().list_artifacts(compared, "scalpel")}
    assert files == {"scalpel/table.parquet", "scalpel/tokens", "scalpel/report.html"}
    assert token_steps(compared) == [5, 10]
    tokens = stored_tokens(compared, 10)
    (model,) = set(tokens["model_id"])
    assert model == table[table["step"] == 10]["model_id"].iloc[0]
    assert set(tokens["step"]) == {10}


def test_a_logged_comparison_is_found_again_with_its_runs(
    tracking, models, monkeypatch, capsys, tmp_path
):
    base, *checkpoints = models
    ids = []
    for directory in checkpoints:
        with mlflow.start_run() as run:
            logged = log_base(base)
            log_checkpoint(directory, step=5, base=logged.model_id).wait()
        ids.append(run.info.run_id)
    # What the views print is run in a shell where no experiment is set.
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    words = ["compare", f"models:/{logged.model_id}", *(f"runs:/{run_id}" for run_id in ids)]
    assert main([*words, "--metrics", "pairs", "histograms", "--log"]) == 0
    compared = capsys.readouterr().out.rsplit("logged as run ", 1)[1].strip()
    found = MlflowClient().get_run(compared)
    assert found.info.experiment_id == MlflowClient().get_run(ids[0]).info.experiment_id
    assert {found.data.params[f"run_{number}"] for number in (0, 1)} == set(ids)
    table = gather(ids)
    pairs = table[table["metric"] == "pairs/update_cosine"]
    assert set(pairs["run_id"]) == {ids[0]}
    assert set(table.loc[table["metric"] == "histograms/ulp_change", "run_id"]) == set(ids)
    assert not gather(ids[:1])["metric"].str.startswith("pairs/").any()
    # In a report too, which says where it is and draws no bar for each table that it reads.
    monkeypatch.delenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", raising=False)
    capsys.readouterr()
    assert main(["report", *ids, "--out", str(tmp_path / "report.html")]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("report: ")
    assert "Downloading" not in told.err
    assert "pair_cosines" in (tmp_path / "report.html").read_text()


def test_the_command_on_a_directory_whose_name_tells_no_step(models, tmp_path, capsys):
    base, checkpoint, _ = models
    Path(checkpoint).rename(tmp_path / "sft")
    out = tmp_path / "table.csv"
    words = ["compare", base, str(tmp_path / "sft"), "--metrics", "weights/update_rms"]
    assert main([*words, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "sft\n" in printed
    assert "step" not in printed
    assert len(pd.read_csv(out)) == 21


def test_metrics_are_listed_and_explained(capsys):
    assert main(["metrics"]) == 0
    assert "weights/relative_frobenius" in capsys.readouterr().out
    assert main(["metrics", "kl/all_tokens"]) == 0
    assert "sum_v p_t(v)" in capsys.readouterr().out
    assert main(["metrics", "nonsense"]) == 2


def test_two_processes_may_keep_results_at_once(models):
    base, checkpoint, _ = models
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(mlflow_scalpel.compare(base, checkpoint)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    pd.testing.assert_frame_equal(found[0], mlflow_scalpel.compare(base, checkpoint))


def test_groups_on_texts_in_one_call_run_nothing_again(models, texts, monkeypatch, capsys):
    groups = ["weights_paper_compat", "attention", "kl", "kl_paper_compat", "kl_on_base_samples"]
    words = ["compare", models[0], models[1], "--texts", str(texts), "--metrics", *groups]
    assert main(words) == 0
    printed = capsys.readouterr().out
    for name in ("attention/js", "kl_paper_compat/all_tokens", "kl_on_base_samples/answer_tokens"):
        assert f"  {name} " in printed
    once = mlflow_scalpel.compare(models[0], models[1], metrics=groups, texts=texts)
    assert {name.partition("/")[0] for name in once["metric"]} == set(groups)
    assert (once["status"] == "ok").all()
    monkeypatch.setattr(engine, "ForwardModel", None)  # nothing may be run
    again = mlflow_scalpel.compare(models[0], models[1], metrics=groups, texts=texts)
    pd.testing.assert_frame_equal(once, again, check_exact=True)


def test_texts_have_the_template_that_the_checkpoints_were_trained_with(models, texts, capsys):
    def of(*checkpoints):
        table = mlflow_scalpel.compare(
            models[0], checkpoints, metrics=["kl/all_tokens"], texts=texts, cache=False
        )
        (found,) = set(table["texts"])
        return found

    plain = of(*models[1:])
    template = Path(models[1]) / "chat_template.jinja"
    template.write_text(template.read_text().replace("{{ m['content'] }}", "({{ m['content'] }})"))
    trained = of(models[1])
    assert trained != plain
    assert "chat templates" not in capsys.readouterr().out
    assert of(*models[1:]) == plain  # with two templates, the base's
    assert "the checkpoints have 2 chat templates" in capsys.readouterr().out
    (Path(models[0]) / "chat_template.jinja").unlink()  # of a base that was not tuned to chat
    assert of(models[1]) == trained


def test_what_the_views_say_to_run_is_a_command(monkeypatch, tmp_path):
    """Each printed command is read, names metrics that there are, and texts where they need any."""
    from mlflow_scalpel.comparison import compare as module
    from mlflow_scalpel.metrics.registry import choose_metrics
    from mlflow_scalpel.views.sections import SECTIONS

    asked = []

    def compared(base, checkpoints, *, metrics, texts, **settings):
        groups = {one.group for one in choose_metrics(metrics)}
        assert texts is not None or not groups & engine.TEXT_GROUPS.keys(), metrics
        asked.append(metrics)
        raise ScalpelError("enough")

    monkeypatch.setattr(module, "compare", compared)
    printed = {figure.remedy for one in SECTIONS for figure in one.figures.values()}
    commands = [one for one in printed if one.startswith("mlflow-scalpel compare")]
    assert len(commands) > 4
    for command in commands:
        assert main(command.split()[1:]) == 2
    assert len(asked) == len(commands)
