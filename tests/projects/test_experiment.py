"""The whole experiment by `mlflow run`, small: real trainers, a real store, a real report."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlflow_scalpel.checkpoints.reading.pull import resolve
from mlflow_scalpel.checkpoints.search import checkpoints_of_run
from mlflow_scalpel.comparison.run_store import (
    stored_ledger,
    stored_table,
    stored_tokens,
    token_steps,
)
from mlflow_scalpel.comparison.table import COLUMNS
from mlflow_scalpel.run_warnings import FAILURE_TAG
from mlflow_scalpel.runs.resume import RESUMED_TAG
from tests.projects.small_experiment import (
    Hub,
    command,
    environment,
    project,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Iterator[dict]:
    """An experiment that was killed in its second arm, and resumed."""
    folder = tmp_path_factory.mktemp("experiment")
    made = {"folder": folder, "copy": project(folder), "hub": Hub()}
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    process = begin(made, "small")
    assert process.stdout is not None
    before = ""
    for line in process.stdout:
        before += line
        if line.startswith("[sft] step 2/4"):
            break
    os.killpg(process.pid, signal.SIGKILL)
    before += process.stdout.read()
    experiment_id = mlflow.get_experiment_by_name("small").experiment_id
    (parent,) = MlflowClient().search_runs([experiment_id], "attributes.run_name = 'small-main'")
    made["killed"] = below(parent.info.run_id)
    done = subprocess.run(
        command(made["copy"], "main", f"resume={parent.info.run_id}"),
        cwd=made["copy"],
        env=environment(folder, made["hub"]),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, before + done.stdout + done.stderr
    runs = MlflowClient().search_runs([experiment_id])
    yield made | {
        "resumed": done.stdout,
        "output": before + done.stdout + done.stderr,
        "runs": {run.info.run_name: run for run in runs},
    }
    mlflow.set_tracking_uri(None)


def below(run_id: str) -> dict[str, Run]:
    """The stages of an experiment, by name."""
    experiment_id = mlflow.get_experiment_by_name("small").experiment_id
    runs = MlflowClient().search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    return {run.info.run_name: run for run in runs if "resumption" not in run.info.run_name}


def whole(run):
    """The run with its inputs: a search leaves out those that are models."""
    return MlflowClient().get_run(run.info.run_id)


def test_the_ui_shows_one_tree_of_finished_runs(experiment):
    parent = experiment["runs"]["small-main"]
    runs = below(parent.info.run_id)
    assert set(runs) == {"base", "grpo", "sft", "evaluate grpo", "evaluate sft", "compare"}
    assert {run.info.status for run in [parent, *runs.values()]} == {"FINISHED"}
    found = MlflowClient().search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    names = [run.info.run_name for run in found if "resumption" not in run.info.run_name]
    assert len(names) == len(set(names))


def test_what_had_finished_is_not_done_again_and_the_killed_arm_goes_on(experiment):
    killed = experiment["killed"]
    assert set(killed) == {"base", "grpo", "evaluate grpo", "sft"}
    for name in ("base", "grpo", "evaluate grpo"):
        assert f"[{name}] has finished before" in experiment["resumed"]
    for name, run in killed.items():
        assert experiment["runs"][name].info.run_id == run.info.run_id
    sft = experiment["runs"]["sft"]
    assert sft.data.tags[RESUMED_TAG].startswith("from step 2")
    steps = [one.step for one in checkpoints_of_run(sft.info.run_id)[1]]
    assert steps == [2, 4]


def test_nobody_called_the_hub(experiment):
    assert experiment["hub"].calls == 0
    assert "huggingface" not in experiment["output"].lower()


@pytest.mark.parametrize("arm", ["grpo", "sft"])
def test_checkpoints_are_ready_registered_and_open(experiment, arm):
    run = experiment["runs"][arm]
    base, found = checkpoints_of_run(run.info.run_id)
    assert base is not None
    assert [(c.step, c.status) for c in found] == [(2, "READY"), (4, "READY")]
    versions = MlflowClient().search_model_versions(f"name = 'tiny-{arm}'")
    tags = {(v.tags["run_id"], v.tags["step"]) for v in versions}
    assert {(run.info.run_id, "2"), (run.info.run_id, "4")} <= tags
    for checkpoint in (base, *found):
        directory = resolve(checkpoint.uri)
        AutoModelForCausalLM.from_pretrained(directory)
        assert AutoTokenizer.from_pretrained(directory).chat_template
        assert not [f for f in directory.iterdir() if f.suffix in {".pt", ".pth", ".bin"}]


def test_the_base_is_logged_once_and_is_every_runs_input(experiment):
    arms = [whole(experiment["runs"][name]) for name in ("grpo", "sft")]
    inputs = {entry.model_id for run in arms for entry in run.inputs.model_inputs}
    assert len(inputs) == 1
    made = experiment["runs"]["base"].data.tags["scalpel.model_id"]
    assert inputs == {made}


@pytest.mark.parametrize("arm", ["grpo", "sft"])
def test_curves_grow_with_the_training_step_and_belong_to_their_models(experiment, arm):
    run = whole(experiment["runs"][arm])
    client = MlflowClient()
    for metric in (
        "weights/relative_frobenius/q_proj",
        "kl/all_tokens/base_style",
        "kl/answer_tokens/teacher_style",
        "cost/flops",
    ):
        history = client.get_metric_history(run.info.run_id, metric)
        values = {point.step: point.value for point in history}
        assert sorted(values) == [0, 2, 4], metric
        assert values[0] == 0.0, metric
        # A base of 24 steps may earn no reward, and then GRPO leaves it as it is.
        assert values[4] > 0.0 or (arm == "grpo" and values[4] == 0.0), metric
    _, found = checkpoints_of_run(run.info.run_id)
    logged = client.get_logged_model(found[-1].model_id).metrics
    assert {"kl/all_tokens/base_style", "cost/flops"} <= {metric.key for metric in logged}
    probed = {metric.key: metric.dataset_name for metric in logged if metric.key.startswith("kl/")}
    assert set(probed.values()) == {"base_style", "teacher_style"}
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == set(probed.values())
    trained = ["loss", "entropy", "learning_rate", "grad_norm"]
    if arm == "grpo":
        trained += ["reward", "rewards/accuracy/mean", "completions/mean_length"]
    for metric in trained:
        assert len(client.get_metric_history(run.info.run_id, metric)) == 4, metric
    assert run.data.metrics["cost/measuring_seconds"] < run.data.metrics["cost/wall_seconds"]
    summaries = [key for key in run.data.metrics if key.startswith(("weights/", "kl/"))]
    assert len(summaries) <= 20
    assert run.data.params.get("loss_type") == ("dr_grpo" if arm == "grpo" else None)
    images = client.list_artifacts(run.info.run_id, "images")
    pictured = [re.search(r"step\+(\d+)", f.path)[1] for f in images if f.path.endswith(".png")]
    if arm == "grpo":
        assert sorted(pictured) == ["0", "2", "4"]
    else:  # killed between the picture of step 2 and its table: it is drawn again
        assert sorted(set(pictured)) == ["0", "2", "4"]
    assert len(run.data.params) < 50
    assert token_steps(run.info.run_id) == [0, 2, 4]
    tokens = stored_tokens(run.info.run_id, 4)
    assert set(tokens["model_id"]) == {found[-1].model_id}
    assert len(set(tokens["texts"])) == 2
    assert tokens["rank"].notna().sum() == 200
    arguments = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/training_arguments.json")
    assert arguments["max_grad_norm"] == 0.2


def test_scores_stand_at_their_step_on_their_model_with_an_error(experiment):
    run = experiment["runs"]["evaluate grpo"]
    history = MlflowClient().get_metric_history(run.info.run_id, "eval/in/add/sampled")
    assert sorted(point.step for point in history) == [0, 4]
    assert "eval/in/add/sampled_stderr" in run.data.metrics
    rows = pd.read_parquet(
        mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/scalpel/samples.parquet")
    )
    assert set(rows["domain"]) == {"in", "out"}
    assert set(rows["step"]) == {0, 4}
    ledger = stored_ledger(experiment["runs"]["grpo"].info.run_id)
    assert set(ledger["step"]) == {4}
    assert set(ledger["status"]) <= {"kept", "gained", "lost", "never"}
    assert len(ledger) == len(rows[(rows["step"] == 4) & (rows["sample"] == 0)])


def test_the_comparison_has_everything_in_one_table_and_one_file(experiment):
    run_id = experiment["runs"]["compare"].info.run_id
    files = Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/scalpel"))
    table = pd.read_parquet(files / "table.parquet")
    assert tuple(table.columns) == COLUMNS
    groups = set(table["metric"].str.split("/").str[0])
    assert groups == {
        "weights", "histograms", "spectra", "kl", "attention", "kl_on_base_samples",
        "weights_paper_compat", "pairs", "kl_paper_compat", "eval", "cost", "capabilities",
    }  # fmt: skip
    assert table["run_id"].nunique() == 2
    report = (files / "report.html").read_text()
    assert not re.search(r"""<(script|link|img|iframe)[^>]*(src|href)=["']https?://""", report)
    assert {"norms_over_training.png", "weight_heatmaps.png", "cost.png"} <= {
        file.name for file in (files / "figures").iterdir()
    }
    assert str(experiment["copy"] / "outputs" / run_id / "report.html") in experiment["output"]


def test_an_experiment_that_nobody_interrupts_ends_with_a_report_and_the_same_numbers(experiment):
    done = subprocess.run(
        command(experiment["copy"], "main", "recipe=shortest"),
        cwd=experiment["copy"],
        env=environment(experiment["folder"], experiment["hub"]),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    experiment_id = mlflow.get_experiment_by_name("small").experiment_id
    (parent,) = MlflowClient().search_runs([experiment_id], "attributes.run_name = 'shortest-main'")
    runs = below(parent.info.run_id)
    assert set(runs) == {"sft", "sft-again", "compare"}
    assert {run.info.status for run in [parent, *runs.values()]} == {"FINISHED"}
    assert f"outputs/{runs['compare'].info.run_id}/report.html" in done.stdout
    # With the same seed, and as if nobody had killed the other.
    keys = ["step", "metric", "layer", "head", "matrix", "bin", "texts"]
    timed = {"cost/wall_seconds", "cost/measuring_seconds"}

    def values(run: Run) -> pd.Series:
        table = stored_table(run.info.run_id)
        return table[~table["metric"].isin(timed)].set_index(keys)["value"].sort_index()

    for other in (runs["sft-again"], experiment["runs"]["sft"]):
        pd.testing.assert_series_equal(values(runs["sft"]), values(other))


def test_a_second_run_in_the_same_directory_works_and_shares_the_base(experiment, training_python):
    base = experiment["runs"]["base"]
    settings = (
        "train.steps=24 text.sequences=400 train.batch_size=32 threads=1 "
        "architecture.hidden_size=48 architecture.num_hidden_layers=3 "
        "architecture.intermediate_size=96"
    )
    done = training_python.run(
        ["projects/base/base.py", "--set", settings],
        cwd=experiment["copy"],
        env=environment(experiment["folder"], experiment["hub"])
        | {"MLFLOW_EXPERIMENT_NAME": "small"},
    )
    assert done.returncode == 0, done.stderr
    assert f"models:/{base.data.tags['scalpel.model_id']}" in done.stdout


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (["learning_rate=-1"], 'learning_rate is not a parameter.*set="train.learning_rate=-1'),
        (["set=model=models:/nothing/latest"], "no version of nothing is registered"),
    ],
)
def test_what_is_refused_is_said_and_leaves_no_run_running(experiment, parameters, said):
    done = subprocess.run(
        command(experiment["copy"], "sft", *parameters),
        cwd=experiment["copy"],
        env=environment(experiment["folder"], experiment["hub"]),
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert re.search(said, done.stdout + done.stderr)
    (run,) = MlflowClient().search_runs(
        [mlflow.get_experiment_by_name("small").experiment_id], max_results=1
    )
    assert run.info.status == "FAILED"
    assert re.search(said, run.data.tags[FAILURE_TAG])


def begin(experiment: dict, recipe: str) -> subprocess.Popen[str]:
    """An experiment as somebody at a terminal starts it: in a process group of its own."""
    return subprocess.Popen(
        command(experiment["copy"], "main", f"recipe={recipe}"),
        cwd=experiment["copy"],
        env=environment(experiment["folder"], experiment["hub"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_interrupting_the_experiment_leaves_no_run_running(experiment):
    began = int(time.time() * 1000)
    process = begin(experiment, "long")
    assert process.stdout is not None
    training = set()
    for line in process.stdout:
        training |= {arm for arm in ("sft", "grpo") if line.startswith(f"[{arm}] step 0/20000")}
        if training == {"sft", "grpo"}:  # at the same time
            break
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    process.stdout.read()
    assert process.wait(60) != 0
    deadline = time.monotonic() + 20
    client = MlflowClient()
    experiment_id = mlflow.get_experiment_by_name("small").experiment_id
    while time.monotonic() < deadline:
        running = client.search_runs([experiment_id], "status = 'RUNNING'")
        if not running:
            break
        time.sleep(0.5)
    assert running == []
    wanted = {"long-main", "sft", "grpo"}
    killed: set[str] = set()
    while time.monotonic() < deadline and not wanted <= killed:
        found = client.search_runs([experiment_id], "status = 'KILLED'")
        killed = {run.info.run_name for run in found}
    assert wanted <= killed
    runs = client.search_runs([experiment_id], f"attributes.start_time >= {began}")
    ends = {run.info.run_name: run.info.status for run in runs}
    assert set(ends.values()) <= {"KILLED", "FINISHED"}, ends
