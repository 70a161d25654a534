"""Evaluation rows become a ledger and tidy rows, and nothing is dropped in silence."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

import mlflow_scalpel
from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
from mlflow_scalpel.cli import main
from mlflow_scalpel.comparison.capabilities import capability_table, ledger
from mlflow_scalpel.comparison.gather import gather
from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.comparison.run_queries import EVALUATED_RUN_TAG
from mlflow_scalpel.comparison.run_store import stored_ledger, stored_samples
from mlflow_scalpel.comparison.table import COLUMNS, LEDGER_DTYPES
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.evaluation.record import log_results

BASE = MeasuredModel(Path("base"), "m-base", "sha256:b", 0)
AFTER = MeasuredModel(Path("after"), "m-after", "sha256:a", 40, "run", "grpo")


def rows(model: MeasuredModel, scores: dict[str, list[float]], **fields) -> pd.DataFrame:
    """A row a problem and sample, samples of all problems in turn as nobody sorts them."""
    width = max(len(found) for found in scores.values())
    made = [
        {
            "domain": "in",
            "label": "add",
            "kind": "sampled",
            "problem_id": problem,
            "sample": sample,
            "problem": f"{problem}?",
            "gold": "4",
            "completion": f"{model.model_id} {problem} {sample}",
            "score": found[sample],
            "tokens": 3,
            "finished": True,
            "step": model.step,
            "model_id": model.model_id,
            "model_digest": model.digest,
            **fields,
        }
        for sample in range(width)
        for problem, found in scores.items()
        if sample < len(found)
    ]
    return pd.DataFrame(made)


def value(table: pd.DataFrame, metric: str) -> float:
    (row,) = table[table["metric"] == f"capabilities/{metric}"].to_dict("records")
    assert row["status"] == "ok", row["reason"]
    return row["value"]


def test_problems_are_joined_whatever_their_order():
    before = rows(BASE, {"p": [1, 1], "q": [0, 1], "r": [1, 0], "s": [0, 0]})
    after = rows(AFTER, {"s": [0, 1], "r": [0, 1], "q": [1, 1], "p": [1, 0]})
    samples = pd.concat([after.sample(frac=1, random_state=1), before])
    found = ledger(samples, BASE, [AFTER]).set_index("problem_id")
    assert list(found.index) == ["p", "q", "r", "s"]
    assert list(found["status"]) == ["kept", "gained", "lost", "never"]
    assert list(found["k"]) == [2] * 4
    assert list(found["base_right"]) == [2, 1, 1, 0]
    assert list(found["right"]) == [1, 2, 1, 1]
    assert found.loc["r", "base_completion"] == "m-base r 0"
    assert found.loc["r", "completion"] == "m-after r 0"
    assert set(found["model_id"]) == {"m-after"}
    assert set(found["step"]) == {40}
    table = capability_table(samples, BASE, [AFTER], dtype="float32")
    assert tuple(table.columns) == COLUMNS
    assert [value(table, name) for name in ("kept", "gained", "lost", "never")] == [1] * 4
    assert value(table, "gained_null") == pytest.approx(2 * 1 / 2)
    assert value(table, "amplified") == 1.0
    assert value(table, "success_rate") == pytest.approx(5 / 8)
    curve = table[table["metric"] == "capabilities/base_pass_at_k"]
    assert list(curve["bin"]) == [1, 2]
    assert list(curve["value"]) == pytest.approx([0.5, 0.75])
    assert set(table["texts"].dropna().str.split().str[0]) == {"in/add/sampled"}
    assert set(table["dtype"]) == {"float32"}
    assert set(table["run_id"]) == {"run"}
    undefined = table[table["metric"] == "capabilities/out_of_domain_loss"]
    assert list(undefined["status"]) == ["not measured"]


def test_what_cannot_be_compared_is_counted_and_listed():
    nan = float("nan")
    before = rows(BASE, {"both": [1], "unread": [nan], "mine": [1], "half": [nan]})
    after = rows(AFTER, {"both": [1], "unread": [nan], "yours": [0], "half": [1]})
    samples = pd.concat([before, after])
    found = ledger(samples, BASE, [AFTER]).set_index("problem_id")
    assert dict(found["status"]) == {
        "both": "kept",
        "unread": "ungraded",
        "mine": "only base",
        "half": "ungraded",
        "yours": "only checkpoint",
    }
    table = capability_table(samples, BASE, [AFTER])
    (out,) = table[table["metric"] == "capabilities/left_out"].to_dict("records")
    assert (out["value"], out["n"]) == (4, 5)
    assert out["reason"].startswith("2 not graded")
    assert "1 answered by the base only; 1 answered by the checkpoint only" in out["reason"]
    (kept,) = table[table["metric"] == "capabilities/kept"].to_dict("records")
    assert (kept["value"], kept["n"]) == (1, 1)


def test_what_takes_too_long_is_told_from_unreadable_gold_answers():
    nan = float("nan")
    before = rows(BASE, {"fine": [1], "gold": [nan], "late": [1], "both": [nan]})
    after = rows(AFTER, {"fine": [1], "gold": [nan], "late": [nan], "both": [nan]})
    before["unscored"] = [None, "ungraded", None, "ungraded"]
    after["unscored"] = [None, "ungraded", "not graded", "not graded"]
    samples = pd.concat([before, after])
    found = ledger(samples, BASE, [AFTER]).set_index("problem_id")
    assert list(found["status"]) == ["kept", "ungraded", "not graded", "ungraded"]
    table = capability_table(samples, BASE, [AFTER])
    (out,) = table[table["metric"] == "capabilities/left_out"].to_dict("records")
    assert "2 not graded, because the gold answer cannot be read" in out["reason"]
    assert "1 not graded, because comparing an answer takes too long" in out["reason"]


def test_a_problem_asked_twice_is_two_problems():
    before = pd.concat([rows(BASE, {"p": [1]}), rows(BASE, {"p": [1]})])
    after = pd.concat([rows(AFTER, {"p": [1]}), rows(AFTER, {"p": [0]})])
    found = ledger(pd.concat([before, after]), BASE, [AFTER])
    assert sorted(found["status"]) == ["kept", "lost"]
    assert list(found["k"]) == [1, 1]


def test_a_part_of_a_score_is_not_right():
    samples = pd.concat([rows(BASE, {"p": [1 / 3]}), rows(AFTER, {"p": [1.0]})])
    assert list(ledger(samples, BASE, [AFTER])["status"]) == ["gained"]


def test_benchmarks_do_not_mix_and_gains_stand_against_losses():
    rng = np.random.default_rng(0)
    names = [f"p{i}" for i in range(40)]
    low = {name: list((rng.random(4) < 0.3).astype(float)) for name in names}
    high = {name: list((rng.random(4) < 0.9).astype(float)) for name in names}
    samples = pd.concat(
        [
            rows(BASE, low),
            rows(AFTER, high),
            rows(BASE, high, domain="out", label="facts"),
            rows(AFTER, low, domain="out", label="facts"),
        ]
    )
    table = capability_table(samples, BASE, [AFTER])
    lost = table[table["metric"] == "capabilities/lost"].set_index("texts")["value"]
    assert len(lost) == 2
    assert lost.index[0].split()[1] == lost.index[1].split()[1]  # the same problems
    assert value(table, "in_domain_gain") == pytest.approx(value(table, "out_of_domain_loss"))
    assert value(table, "gain_loss_ratio") == pytest.approx(1.0)
    assert value(table, "gain_loss_ratio_low") < 1.0 < value(table, "gain_loss_ratio_high")


def test_missing_rows_and_columns_are_said():
    samples = pd.concat([rows(BASE, {"p": [1]}), rows(AFTER, {"p": [1]})])
    other = MeasuredModel(Path("x"), "m-other", "sha256:x", 80)
    table = capability_table(samples, BASE, [AFTER, other])
    missing = table[table["model_id"] == "m-other"]
    assert set(missing["status"]) == {"not measured"}
    assert missing["reason"].str.contains("has no rows of this checkpoint").all()
    with pytest.raises(ScalpelError, match=r"has no rows of it.*-e evaluate"):
        capability_table(samples, other, [AFTER])
    with pytest.raises(ScalpelError, match="no column 'score'"):
        ledger(samples.drop(columns="score"), BASE, [AFTER])
    with pytest.raises(ScalpelError, match="did you mean capabilities/kept"):
        capability_table(samples, BASE, [AFTER], ["capabilities/kep"])


def test_a_model_is_known_by_its_digest_too():
    samples = pd.concat([rows(BASE, {"p": [1]}), rows(AFTER, {"p": [0]})])
    renamed = MeasuredModel(Path("here"), "/some/where", "sha256:b", 0)
    assert list(ledger(samples, renamed, [AFTER])["status"]) == ["lost"]


def test_no_checkpoint_is_an_empty_ledger():
    found = ledger(rows(BASE, {"p": [1]}), BASE, [])
    assert list(found.columns) == list(LEDGER_DTYPES)
    assert not len(found)


@pytest.fixture
def evaluated(tracking, make_model) -> dict:
    """A run with two checkpoints, the second one evaluated twice, and the base."""
    with mlflow.start_run() as run:
        base = log_base(str(make_model(1)))
        for step in (5, 10):
            log_checkpoint(str(make_model(step)), step=step, base=base.model_id).wait()
    _, found = mlflow_scalpel.checkpoints_of_run(run.info.run_id)
    before = MeasuredModel(Path("base"), base.model_id, "sha256:0", 0)
    after = MeasuredModel(Path("after"), found[1].model_id, "sha256:1", 10, run.info.run_id)
    for old in (True, False):
        with mlflow.start_run() as evaluation:
            mlflow.set_tag(EVALUATED_RUN_TAG, run.info.run_id)
            log_results(
                [],
                [rows(before, {"p": [1]}), rows(after, {"p": [float(old)]})],
                [before, after],
                "float32",
            )
    return {"run": run.info.run_id, "base": base.model_id, "evaluation": evaluation.info.run_id}


def test_compare_finds_the_newest_evaluation(evaluated, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "mlflow_scalpel.checkpoints.reading.pull.resolve", None
    )  # no model's files are needed
    base, run = f"models:/{evaluated['base']}", f"runs:/{evaluated['run']}"
    table = mlflow_scalpel.compare(base, run, metrics=["capabilities"])
    by_step = dict(list(table.groupby("step")))
    assert value(by_step[10], "lost") == 1
    assert set(by_step[5]["status"]) == {"not measured"}
    assert set(table["metric"].str.split("/").str[0]) == {"capabilities"}
    kept = mlflow_scalpel.compare(base, f"{run}#step=10", metrics=["capabilities/kept"])
    assert list(kept["metric"]) == ["capabilities/kept"]
    assert (
        len(mlflow_scalpel.stored_ledger(evaluated["run"]))
        == len(stored_ledger(evaluated["evaluation"]))
        == 1
    )
    logged = mlflow.MlflowClient().get_metric_history(
        evaluated["evaluation"], "capabilities/in_domain_gain"
    )
    assert [(point.step, point.value) for point in logged] == [(10, -1.0)]
    gathered = gather([evaluated["run"]])
    assert value(gathered[gathered["step"] == 10], "lost") == 1

    file = tmp_path / "samples.parquet"
    stored_samples(evaluated["evaluation"]).to_parquet(file)
    words = ["compare", base, f"{run}#step=10", "--metrics", "capabilities", "--samples", str(file)]
    assert main(words) == 0
    assert "capabilities/lost" in capsys.readouterr().out


def test_without_an_evaluation_compare_says_what_to_run(evaluated, make_model, tmp_path):
    base = f"models:/{evaluated['base']}"
    with mlflow.start_run() as run:
        log_checkpoint(str(make_model(3)), step=5, base=evaluated["base"]).wait()
    with pytest.raises(ScalpelError, match=r"no finished evaluation.*-e evaluate"):
        mlflow_scalpel.compare(base, f"runs:/{run.info.run_id}", metrics=["capabilities"])
    directory = str(make_model(4))
    with pytest.raises(ScalpelError, match="belongs to no MLflow run"):
        mlflow_scalpel.compare(base, directory, metrics=["capabilities"])
    with pytest.raises(ScalpelError, match="only the group capabilities"):
        mlflow_scalpel.compare(base, directory, samples="rows.parquet")
    with pytest.raises(ScalpelError, match="cannot be read as Parquet"):
        mlflow_scalpel.compare(
            base, directory, metrics=["capabilities"], samples=tmp_path / "no.parquet"
        )
    assert not len(stored_ledger(run.info.run_id))


def test_gold_logliks_are_of_lost_problems():
    before = rows(
        BASE, {"lost": [1], "kept": [1]}, gold_loglik=-1.0, gold_loglik_after_opening=-0.5
    )
    after = rows(AFTER, {"lost": [0], "kept": [1]}, gold_loglik=-3.0)
    samples = pd.concat([before, after])
    found = ledger(samples, BASE, [AFTER]).set_index("problem_id")
    assert found.loc["lost", ["gold_loglik_base", "gold_loglik"]].tolist() == [-1.0, -3.0]
    assert found.loc["lost", "gold_loglik_after_opening_base"] == -0.5
    assert found.loc["kept", ["gold_loglik_base", "gold_loglik"]].isna().all()
    table = capability_table(samples, BASE, [AFTER])
    assert value(table, "gold_loglik_change") == -2.0
    (unscored,) = table[table["metric"] == "capabilities/gold_loglik_change_after_opening"].to_dict(
        "records"
    )
    assert unscored["status"] == "not measured"
