"""The table of checkpoints, on real tracking stores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlRegisteredModel
from mlflow.store.tracking.dbmodels.models import (
    SqlLoggedModel,
    SqlLoggedModelMetric,
    SqlLoggedModelParam,
    SqlParam,
    SqlRun,
)
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from mlflow_scalpel.checkpoints.listing import COLUMNS, list_checkpoints
from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
from mlflow_scalpel.checkpoints.search import checkpoints_of_run
from mlflow_scalpel.cli import main
from mlflow_scalpel.errors import ScalpelError
from tests.servers import Proxy, Server


@pytest.fixture
def two_runs(tracking: str, first_model: Path, tmp_path: Path) -> tuple[str, str]:
    """A run `sft` with steps 10 (FAILED), 20 and 40 (registered), and a later run `grpo` with 7."""
    client = MlflowClient()
    with mlflow.start_run(run_name="sft") as sft:
        mlflow.log_params({"max_steps": 80, "algorithm": "sft", "weights_dtype": "bfloat16"})
        base = log_base(str(first_model), register_as="the-base")
        cut_off = tmp_path / "checkpoint-10"
        shutil.copytree(first_model, cut_off)
        weights = cut_off / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
        for step, directory in ((20, first_model), (40, first_model), (10, cut_off)):
            upload = log_checkpoint(
                directory,
                step=step,
                base=base.model_id,
                params={"learning_rate": 1e-4},
                register_as="tiny",
            )
            if step == 10:
                with pytest.raises(ScalpelError):
                    upload.wait()
                continue
            model_id = upload.wait().model_id
            now = int(time.time() * 1000)
            values = [("accuracy", step / 100, step), ("loss", 9.0, 0), ("step", 5.0, step)]
            values = [Metric(k, v, now, at, model_id=model_id) for k, v, at in values]
            # Later in time, but not at the model's step.
            values.append(Metric("accuracy", 0.99, now + 5, 0, model_id=model_id))
            client.log_batch(sft.info.run_id, metrics=values)
    with mlflow.start_run(run_name="grpo") as grpo:
        mlflow.log_param("max_steps", -1)
        log_checkpoint(first_model, step=7, base=base.model_id).wait()
    return sft.info.run_id, grpo.info.run_id


def test_a_row_says_all_that_is_known_of_a_checkpoint(two_runs):
    sft, grpo = two_runs
    table = list_checkpoints()
    assert list(table["step"]) == [10, 20, 40, 7]
    assert list(table["run_id"]) == [sft, sft, sft, grpo]
    assert list(table["run_name"]) == ["sft"] * 3 + ["grpo"]
    assert list(table["state"]) == ["FAILED", "READY", "READY", "READY"]
    assert "is cut off" in table["reason"][0]
    assert table["reason"][1:].isna().all()
    # Of the run's max_steps; -1 is Transformers' way of saying that it was not set.
    assert list(table["fraction"]) == [0.125, 0.25, 0.5, 1.0]
    assert list(table["version"].astype(object)) == [pd.NA, 1, 2, pd.NA]
    assert list(table["aliases"]) == ["", "", f"last-{sft}", ""]
    assert set(table["base"]) == {checkpoints_of_run(sft)[0].model_id}
    last = table.iloc[2]
    assert (last["algorithm"], last["dtype"], last["kind"]) == ("sft", "bfloat16", "model")
    assert (last["name"], last["learning_rate"]) == ("tiny", 1e-4)
    assert last["uri"] == f"models:/{last['model_id']}"
    assert last["bytes"] > 10_000
    assert last["digest"].startswith("sha256:")
    assert abs(last["created"] - pd.Timestamp.now("UTC")) < pd.Timedelta(minutes=5)
    # Metrics: at the model's step, else what there is; one that is named as a column keeps apart.
    assert list(table["accuracy"][1:3]) == [0.2, 0.4]
    assert list(table["loss"][1:3]) == [9.0, 9.0]
    assert list(table["metrics.step"][1:3]) == [5.0, 5.0]
    assert table[["accuracy", "loss"]].iloc[3].isna().all()


def test_the_newest_version_and_every_alias_are_shown(two_runs):
    table = list_checkpoints()
    # By hand, as the UI does: without the run's ID.
    mlflow.register_model(table["uri"][1], "shown")
    MlflowClient().set_registered_model_alias("tiny", "chosen", "1")
    MlflowClient().set_registered_model_alias("shown", "paper", "1")
    row = list_checkpoints().iloc[1]
    assert (row["name"], row["version"], row["aliases"]) == ("shown", 1, "chosen, paper")
    row = list_checkpoints(model="tiny").iloc[0]
    assert (row["name"], row["version"], row["aliases"]) == ("tiny", 1, "chosen")


def test_filters_choose(two_runs):
    sft, grpo = two_runs
    mlflow.set_experiment("another")
    assert list(list_checkpoints().columns) == list(COLUMNS)
    assert len(list_checkpoints()) == 0
    assert list(list_checkpoints("tests")["step"]) == [10, 20, 40, 7]
    tests = mlflow.get_experiment_by_name("tests").experiment_id
    assert list(list_checkpoints(tests)["step"]) == [10, 20, 40, 7]
    assert list(list_checkpoints(run_id=grpo)["step"]) == [7]
    assert list(list_checkpoints(run_id=[grpo, sft])["step"]) == [10, 20, 40, 7]
    assert list(list_checkpoints(model="tiny")["step"]) == [20, 40]
    assert list(list_checkpoints(model="the-base")["step"]) == []
    assert list(list_checkpoints(run_id=grpo, model="tiny")["step"]) == []


def test_the_environment_names_the_experiment_and_listing_never_makes_one(
    tracking, python, tmp_path
):
    def listed(**names: str) -> subprocess.CompletedProcess[str]:
        """As another process, in which no experiment was set."""
        kept = {k: v for k, v in os.environ.items() if k != "MLFLOW_EXPERIMENT_ID"}
        return python.run(
            ["-m", "mlflow_scalpel.cli", "checkpoints"], env=kept | names, cwd=tmp_path
        )

    mistyped = listed(MLFLOW_EXPERIMENT_NAME="testz")
    assert mistyped.returncode == 2
    assert "experiment 'testz': there is none of that name" in mistyped.stderr
    assert MlflowClient().get_experiment_by_name("testz") is None
    assert listed(MLFLOW_EXPERIMENT_NAME="tests").returncode == 0
    assert listed(MLFLOW_EXPERIMENT_ID="77").returncode == 2


def test_what_is_not_there_is_named(two_runs):
    for wanted, said in (
        ({"experiment": "test"}, "experiment 'test': .*did you mean tests?"),
        ({"run_id": "0" * 32}, "there is no such run at sqlite"),
        ({"run_id": "x' OR ''='"}, "is not a run ID, which has 32 hexadecimal digits"),
        ({"model": "tinny"}, "registered model 'tinny': .*did you mean tiny?"),
    ):
        with pytest.raises(ScalpelError, match=said):
            list_checkpoints(**wanted)


def test_the_command_prints_a_table_that_fits_and_the_reason_of_what_failed(
    two_runs, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["checkpoints"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["run_name", "run", "algorithm", "step", "state"]
    assert "uri" in header
    assert max(len(row) for row in [header, *rows[:4]]) <= 100
    first_digits = list_checkpoints()["run_id"][2][:8]
    assert rows[2].split()[:5] == ["sft", first_digits, "sft", "40", "READY"]
    assert rows[2].endswith(list_checkpoints()["uri"][2])
    assert rows[4].startswith("step 10 of run sft: ")
    assert main(["checkpoints", "--metrics", "acc*", "--columns", "step,accuracy"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["20", "0.2"]
    assert main(["checkpoints", "--columns", "stepp"]) == 2
    assert "--columns stepp: there is no such column" in capsys.readouterr().err


def test_csv_and_json_hold_everything(two_runs, capsys, tmp_path):
    table = list_checkpoints()
    assert main(["checkpoints", "--format", "json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["step"] for record in records] == [10, 20, 40, 7]
    assert records[0]["version"] is records[0]["accuracy"] is records[1]["reason"] is None
    assert set(records[2]) == set(table.columns)
    assert pd.Timestamp(records[2]["created"]) == table["created"][2]
    assert main(["checkpoints", "--format", "csv", "--metrics", "acc*"]) == 0
    (tmp_path / "table.csv").write_text(capsys.readouterr().out)
    read = pd.read_csv(tmp_path / "table.csv", parse_dates=["created"])
    assert list(read.columns) == [*COLUMNS, "accuracy"]
    assert list(read["created"]) == list(table["created"])


def test_an_empty_result_says_where_it_looked(tracking, capsys):
    assert main(["checkpoints", "--experiment", "tests"]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"no checkpoint found of the experiment tests at {tracking}\n"
    assert main(["checkpoints", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [",".join(COLUMNS)]
    assert main(["checkpoints", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def fill(store_uri: str, experiment: str, runs: int, steps: int, metrics: int) -> None:
    """Write runs with registered checkpoints straight into a store: 1000 in half a second."""
    store = SqlAlchemyStore(store_uri, "mlflow-artifacts:/")
    number = int(store.create_experiment(experiment))
    rows: dict[type, list[dict]] = {
        table: []
        for table in (SqlRun, SqlParam, SqlLoggedModel, SqlLoggedModelParam, SqlLoggedModelMetric)
    }
    rows |= {SqlRegisteredModel: [{"name": experiment}], SqlModelVersion: []}
    for index in range(runs):
        run_id = uuid.uuid4().hex
        rows[SqlRun].append(
            {
                "run_uuid": run_id,
                "name": f"run-{index}",
                "experiment_id": number,
                "status": "FINISHED",
                "source_type": "LOCAL",
                "user_id": "somebody",
                "lifecycle_stage": "active",
                "start_time": 1_700_000_000_000 + index,
                "artifact_uri": f"mlflow-artifacts:/{number}/{run_id}/artifacts",
            }
        )
        params = {f"argument_{i}": "some value" for i in range(60)} | {"max_steps": str(20 * steps)}
        rows[SqlParam] += [{"run_uuid": run_id, "key": k, "value": v} for k, v in params.items()]
        for step in range(20, 20 * steps + 1, 20):
            model_id = f"m-{uuid.uuid4().hex}"
            its = {"model_id": model_id, "experiment_id": number}
            rows[SqlLoggedModel].append(
                its
                | {
                    "name": f"step-{step}",
                    "artifact_location": f"mlflow-artifacts:/{number}/models/{model_id}/artifacts",
                    "creation_timestamp_ms": 1_700_000_000_000 + step,
                    "last_updated_timestamp_ms": 1_700_000_000_000 + step,
                    "status": 2,
                    "lifecycle_stage": "active",
                    "model_type": "checkpoint",
                    "source_run_id": run_id,
                }
            )
            params = dict.fromkeys(("digest", "bytes", "kind", "base", "recipe", "dtype"), "1")
            rows[SqlLoggedModelParam] += [
                its | {"param_key": key, "param_value": value}
                for key, value in (params | {"step": str(step), "learning_rate": "1e-5"}).items()
            ]
            rows[SqlLoggedModelMetric] += [
                its
                | {
                    "metric_name": f"eval/{i}",
                    "metric_timestamp_ms": 1,
                    "metric_step": step,
                    "metric_value": i / 7,
                    "run_id": run_id,
                }
                for i in range(metrics)
            ]
            rows[SqlModelVersion].append(
                {
                    "name": experiment,
                    "version": len(rows[SqlModelVersion]) + 1,
                    "source": f"models:/{model_id}",
                    "run_id": run_id,
                }
            )
    with store.ManagedSessionMaker() as session:
        for table, records in rows.items():
            session.execute(sa.insert(table), records)


@pytest.fixture
def filled(tmp_path: Path, track_at: Callable[[str], str]) -> Server:
    """A server with 50 runs of 5 checkpoints, and 50 of 20."""
    server = Server(tmp_path)
    fill(server.store_uri, "few", 50, 5, 15)
    fill(server.store_uri, "many", 50, 20, 15)
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
def test_a_thousand_checkpoints_are_listed_in_seconds_and_in_few_requests(filled):
    proxy = Proxy(filled.uri)
    mlflow.set_tracking_uri(proxy.uri)
    assert len(list_checkpoints("few")) == 250
    few = len(proxy.exchanges())
    proxy.forget()
    assert len(list_checkpoints("many")) == 1000
    many = len(proxy.exchanges())
    proxy.close()
    # Models come 500 a page; all else takes one request each.
    assert few <= 6
    assert many <= few + 1

    mlflow.set_tracking_uri(filled.uri)
    started = time.monotonic()
    table = list_checkpoints("many")
    seconds = time.monotonic() - started
    assert (table.shape, table["fraction"].iloc[-1]) == ((1000, len(COLUMNS) + 15), 1.0)
    assert seconds < 6  # 2.5 on two idle cores, most of them in the server
    print(f"{many} requests, {seconds:.1f} s")
