"""What is taken from a trainer's own notes, against sums over every step of known schedules."""

from __future__ import annotations

import json
import math

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_scalpel.checkpoints.external.history import (
    log_notes,
    metric_names,
    params_of,
    rate_sum,
    read_notes,
)
from mlflow_scalpel.errors import ScalpelError


def constant(step):
    return 3e-5


def linear(step):
    return 1e-3 * (1 - step / 200)


def cosine(step):
    return 1e-3 * 0.5 * (1 + math.cos(math.pi * step / 200))


@pytest.mark.parametrize(
    ("schedule", "every", "tolerance"),
    [(constant, 10, 1e-12), (linear, 7, 1e-12), (cosine, 10, 2e-3), (cosine, 1, 1e-12)],
)
def test_the_sum_of_rates_is_that_of_every_step(schedule, every, tolerance):
    rates = {step: schedule(step) for step in range(every, 101, every)}
    summed, exact = rate_sum(rates, 100)
    assert summed == pytest.approx(sum(map(schedule, range(1, 101))), rel=tolerance)
    assert exact == (every == 1)


def test_a_rate_is_never_negative():
    summed, exact = rate_sum({10: 1e-3, 20: 0.0}, 40)
    assert not exact
    assert summed == pytest.approx(1e-4 * sum(20 - step for step in range(1, 21)))


def test_names_that_mlflow_refuses_are_translated_apart(tracking):
    names = metric_names(["loss", "eval_pass@1", "eval_pass(1", "timing(s)/gen", "/x/../y"])
    assert names["timing(s)/gen"] == "timing_s_/gen"
    assert len(set(names.values())) == 5
    with mlflow.start_run() as run:
        for name in names.values():
            mlflow.log_metric(name, 1.0)
    assert set(MlflowClient().get_run(run.info.run_id).data.metrics) == set(names.values())


def state(directory, steps, **more):
    directory.mkdir(parents=True, exist_ok=True)
    history = [{"step": s, "loss": 1 / s, "learning_rate": 1e-5, "pass@1": 0.5} for s in steps]
    told = {"global_step": steps[-1], "max_steps": 9, "train_batch_size": 4, "log_history": history}
    (directory / "trainer_state.json").write_text(json.dumps(told | more))
    return directory


def test_a_second_call_finishes_what_the_first_left(tracking, tmp_path, capsys):
    newest = state(tmp_path / "checkpoint-5", [1, 2, 3, 4, 5])
    with mlflow.start_run() as run:
        mlflow.log_metric("loss", 1.0, step=1)
    for _ in range(2):
        log_notes(run.info.run_id, read_notes(tmp_path, newest, None, None))
    assert capsys.readouterr().out.count("pass@1 as pass_1") == 1
    client = MlflowClient()
    for name in ("loss", "pass_1"):
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted(point.step for point in history) == [1, 2, 3, 4, 5]
    params = client.get_run(run.info.run_id).data.params
    assert (params["max_steps"], params["train_batch_size"]) == ("9", "4")
    assert params_of([newest], 5)["learning_rate_sum"] == repr(math.fsum([1e-5] * 5))


@pytest.mark.parametrize("named", [True, False])
def test_the_trainers_own_run_gives_rates_and_settings(tracking, tmp_path, named):
    with mlflow.start_run() as run:
        mlflow.log_params({"output_dir": str(tmp_path), "learning_rate": "2e-05", "seed": "7"})
        for step in range(1, 6):
            mlflow.log_metric("learning_rate", 2e-5 * step, step=step)
            mlflow.log_metric("loss", 1 / step, step=step)
    notes = read_notes(tmp_path, None, run.info.run_id if named else None, None)
    assert notes.settings["seed"] == "7"
    params = params_of([tmp_path], 4, notes)
    assert params["learning_rate"] == "2e-05"
    assert float(params["learning_rate_sum"]) == pytest.approx(2e-5 * (1 + 2 + 3 + 4))
    assert [step for step, _ in notes.history] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("content", ["[]", "{", "null"])
def test_a_state_that_is_none_is_named(tmp_path, content):
    (tmp_path / "trainer_state.json").write_text(content)
    with pytest.raises(ScalpelError, match=r"trainer_state\.json"):
        params_of([tmp_path], 5)


@pytest.mark.parametrize("content", ['{"log_history": 5}', '{"log_history": [5, {"step": "x"}]}'])
def test_an_odd_history_says_nothing(tmp_path, content):
    (tmp_path / "trainer_state.json").write_text(content)
    assert params_of([tmp_path], 5) == {}


def test_numbers_written_as_texts_are_numbers(tmp_path):
    rates = [{"step": step, "learning_rate": "2e-5", "note": "a text"} for step in (1, 2, 3)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": rates}))
    assert float(params_of([tmp_path], 3)["learning_rate_sum"]) == pytest.approx(6e-5)
