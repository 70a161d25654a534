"""The evaluator plugin, through MLflow's own API."""

from __future__ import annotations

import shutil

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from mlflow_scalpel.chat import DEFAULT_DATE, load_tokenizer
from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
from mlflow_scalpel.comparison.forward.probes import build_probe
from mlflow_scalpel.comparison.run_store import stored_table
from mlflow_scalpel.errors import ScalpelError

TEXTS = pd.DataFrame({"problem": ["1+1=?", "what"], "solution": ["2", "a long answer"]})


def evaluate(data: pd.DataFrame = TEXTS, **settings):
    return mlflow.models.evaluate(
        data=data, model_type="scalpel", evaluators="scalpel", evaluator_config=settings
    )


def test_two_models_are_measured_at_the_candidates_step(tracking, make_model):
    with mlflow.start_run():
        base = log_base(str(make_model(1)))
        params = {"learning_rate_sum": 0.5}
        candidate = log_checkpoint(make_model(2), step=30, params=params).wait()
    with mlflow.start_run() as run:
        result = evaluate(base=base.model_id, candidate=f"models:/{candidate.model_id}")
    assert result.metrics["weights/relative_frobenius/mean"] > 0.5
    assert result.metrics["kl/all_tokens/data"] > 0.0
    history = MlflowClient().get_metric_history(run.info.run_id, "kl/all_tokens/data")
    assert [point.step for point in history] == [30]
    on_model = {m.key for m in MlflowClient().get_logged_model(candidate.model_id).metrics}
    assert "kl/all_tokens/data" in on_model
    table = stored_table(run.info.run_id)
    assert set(table["step"]) == {30}
    assert set(table["base"]) == {base.model_id}


def test_texts_are_rendered_as_everywhere_else(tracking, first_model, tmp_path, capsys):
    """On the stated date whatever the day is, and not beyond the model's context."""
    model = shutil.copytree(first_model, tmp_path / "dated")
    template = (model / "chat_template.jinja").read_text(encoding="utf-8")
    dated = "{{ strftime_now('%Y-%m-%d') }}\n" + template
    (model / "chat_template.jinja").write_text(dated, encoding="utf-8")
    texts = pd.concat([TEXTS, pd.DataFrame({"problem": ["long"], "solution": ["1" * 9000]})])
    with mlflow.start_run() as run:
        evaluate(texts, base=str(model), candidate=str(model))
    assert "1 of 3 texts of probe data are longer than the model's context" in (
        capsys.readouterr().out
    )
    table = stored_table(run.info.run_id)
    rows = table[table["metric"] == "kl/all_tokens"]
    assert set(rows["status"]) == {"ok", "too long"}
    tokenizer = load_tokenizer(model, DEFAULT_DATE)
    pairs = list(texts.itertuples(index=False, name=None))
    assert rows["texts"].iloc[0] == build_probe("data", pairs, tokenizer).texts
    turns = [{"role": "user", "content": "?"}]
    assert "2024-07-26" in tokenizer.apply_chat_template(turns, tokenize=False)


def test_directories_do_too_and_a_model_is_at_zero_from_itself(tracking, first_model):
    with mlflow.start_run():
        result = evaluate(base=str(first_model), candidate=str(first_model))
    assert result.metrics["weights/relative_frobenius/mean"] == 0.0
    assert result.metrics["kl/all_tokens/data"] == 0.0


def test_what_is_missing_or_unknown_is_told(tracking, first_model):
    model = str(first_model)
    with mlflow.start_run():
        with pytest.raises(ScalpelError, match="no 'candidate'"):
            evaluate(base=model)
        with pytest.raises(ScalpelError, match="'bas', which is unknown"):
            evaluate(base=model, candidate=model, bas=model)
        with pytest.raises(ScalpelError, match="no column 'solution'"):
            evaluate(TEXTS[["problem"]], base=model, candidate=model)
