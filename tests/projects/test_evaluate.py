"""The stage `evaluate` on a run: scores, ledger, and what `compare` finds of them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import mlflow
import pandas as pd
import psutil
import pytest
import yaml

import mlflow_scalpel
from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
from mlflow_scalpel.checkpoints.reading.pull import resolve
from mlflow_scalpel.checkpoints.search import checkpoints_of_run
from mlflow_scalpel.comparison.run_queries import ClientSource, evaluations_of
from mlflow_scalpel.comparison.run_store import get_run, stored_ledger, stored_samples, stored_table
from mlflow_scalpel.evaluation.harness import Evaluator
from mlflow_scalpel.evaluation.suite import load_suite
from mlflow_scalpel.runs.resume import RESUMED_TAG
from tests.interpreters import Interpreter

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2] / "projects" / "evaluate"


def suite_of(folder: Path, problems: list[dict[str, str]]) -> Path:
    data = folder / "problems.jsonl"
    data.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    task = {
        "task": "tiny_problem",
        "label": "say",
        "domain": "out",
        "kind": "greedy",
        "metric": "exact_match",
        "generation": {"max_new_tokens": 6},
        "data": {"file": str(data)},
    }
    sampled = {
        **task,
        "kind": "sampled",
        "samples": 4,
        "generation": {"do_sample": True, "temperature": 0.5, "max_new_tokens": 6},
    }
    file = folder / "say.yaml"
    file.write_text(
        yaml.safe_dump({"tasks_folder": str(PROJECT / "tasks"), "tasks": [task, sampled]})
    )
    return file


# Runs the stage, and ends its process without a word once the second result is stored.
KILLER = """
import os, runpy, signal, sys
from mlflow_scalpel.evaluation.results import Results

store, stored = Results.store, []

def store_and_die(self, model):
    result = store(self, model)
    stored.append(model)
    if len(stored) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

Results.store = store_and_die
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT.parents[1])}


def evaluate(python: Interpreter, folder: Path, *words: str, killed: bool = False) -> str:
    """Run the stage as a process, killed after two models or to its end; what it printed."""
    before = ["-c", KILLER] if killed else []
    script = str(PROJECT / "evaluate.py")
    done = python.run([*before, script, *words], cwd=folder, env=environment())
    assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr[-4000:]
    return done.stdout


@pytest.fixture
def trained(tracking, make_model, tmp_path) -> tuple[str, Path]:
    """A run with a base and three checkpoints, and a suite to evaluate them with."""
    asked = [{"problem": f"{i}+{i}=?", "answer": "0"} for i in range(12)]
    with mlflow.start_run() as run:
        logged = log_base(str(make_model(1)))
        for step in (5, 10, 15):
            log_checkpoint(str(make_model(step)), step=step, base=logged.model_id).wait()
    return run.info.run_id, suite_of(tmp_path, asked)


def newest(run_id: str) -> str:
    runs = evaluations_of(ClientSource(), get_run(run_id))
    return max(runs, key=lambda run: run.info.start_time).info.run_id


def unfinished(run_id: str, status: str = "RUNNING") -> str:
    """The evaluation whose process was killed, or that failed, in the experiment of a run."""
    experiment = get_run(run_id).info.experiment_id
    (run,) = mlflow.MlflowClient().search_runs([experiment], f"attributes.status = '{status}'")
    return str(run.info.run_id)


def points(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every point of every metric of an evaluation, by step."""
    client = mlflow.MlflowClient()
    names = [name for name in client.get_run(run_id).data.metrics if name.startswith("eval/")]
    return {
        name: sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))
        for name in names
    }


def test_a_killed_evaluation_goes_on_and_ends_as_if_nobody_had_killed_it(
    trained, training_python, tmp_path
):
    run_id, suite = trained
    settings = f"suite={suite} run={run_id} checkpoints=all threads=1"
    evaluate(training_python, tmp_path, "--set", settings)
    whole = newest(run_id)
    evaluate(training_python, tmp_path, "--set", settings, killed=True)
    killed = unfinished(run_id)
    said = evaluate(training_python, tmp_path, "--resume", killed)
    assert "2 models to measure" in said
    assert mlflow.MlflowClient().get_run(killed).info.status == "FINISHED"
    assert (
        mlflow.MlflowClient().get_run(killed).data.tags[RESUMED_TAG] == "2 of 4 models were there"
    )
    pd.testing.assert_frame_equal(stored_samples(killed), stored_samples(whole))
    assert points(killed) == points(whole)
    assert all(len(history) == 4 for history in points(whole).values())
    pd.testing.assert_frame_equal(
        stored_table(killed).drop(columns="run_id"), stored_table(whole).drop(columns="run_id")
    )


def test_two_workers_find_what_one_finds_and_a_damaged_checkpoint_is_a_gap(
    trained, training_python, tmp_path
):
    run_id, suite = trained
    _, found = checkpoints_of_run(run_id)
    os.truncate(resolve(found[1].uri) / "model.safetensors", 500)
    evaluations = []
    for workers in (1, 2):
        settings = f"suite={suite} run={run_id} checkpoints=all threads=1 workers={workers}"
        said = evaluate(training_python, tmp_path, "--set", settings)
        assert ("2 worker(s)" in said) == (workers == 2)
        assert "WARNING: step 10 is left out: " in said
        evaluated = newest(run_id)
        table = stored_table(evaluated)
        missing = table[table["metric"].str.startswith("eval/") & (table["step"] == 10)]
        assert set(missing["metric"]) == {"eval/out/say/greedy", "eval/out/say/sampled"}
        assert set(missing["status"]) == {"not measured"}
        assert missing["reason"].str.contains("model.safetensors").all()
        assert missing["value"].isna().all()
        assert {step for step, _ in points(evaluated)["eval/out/say/greedy"]} == {0, 5, 15}
        assert set(stored_ledger(run_id)["step"]) == {5, 15}
        evaluations.append(evaluated)
    alone, shared = evaluations
    assert shared != alone
    pd.testing.assert_frame_equal(stored_samples(shared), stored_samples(alone))
    assert points(shared) == points(alone)


def test_a_worker_that_dies_fails_the_run_which_is_then_taken_up(
    trained, training_python, tmp_path
):
    run_id, suite = trained
    settings = f"suite={suite} run={run_id} checkpoints=all threads=1 workers=2"
    process = training_python.start(
        [PROJECT / "evaluate.py", "--set", settings],
        cwd=tmp_path,
        env=environment(),
    )
    for line in process.stdout:
        if "2 worker(s)" in line:
            break
    workers: list[psutil.Process] = []
    while len(workers) < 2:  # which then import for seconds
        assert process.poll() is None
        children = psutil.Process(process.pid).children()
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    workers[0].kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "one of 2 worker processes died" in errors
    psutil.wait_procs(workers, timeout=20)
    assert not any(child.is_running() for child in workers)
    failed = unfinished(run_id, "FAILED")
    evaluate(training_python, tmp_path, "--resume", failed)
    assert all(len(history) == 4 for history in points(failed).values())


def test_ctrl_c_ends_the_workers_without_a_word_of_theirs(trained, training_python, tmp_path):
    run_id, suite = trained
    settings = f"suite={suite} run={run_id} checkpoints=all threads=1 workers=2"
    process = training_python.start(
        [PROJECT / "evaluate.py", "--set", settings],
        cwd=tmp_path,
        env=environment(),
        start_new_session=True,  # a terminal's Ctrl-C reaches all of it
    )
    for line in process.stdout:
        if line.startswith("step "):  # of the first model: both workers are at work
            break
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    killed = unfinished(run_id, "KILLED")
    assert errors.strip() == f"tiny-evaluate: interrupted; run {killed} is KILLED"
    psutil.wait_procs(family, timeout=20)
    assert not any(one.is_running() for one in family)


def test_a_suite_that_has_changed_is_not_gone_on_with(trained, training_python, tmp_path):
    run_id, suite = trained
    evaluate(
        training_python, tmp_path, "--set", f"suite={suite} run={run_id} threads=1", killed=True
    )
    killed = unfinished(run_id)
    suite.write_text(suite.read_text().replace("max_new_tokens: 6", "max_new_tokens: 7"))
    with pytest.raises(AssertionError, match=r"has changed since.*start a new evaluation"):
        evaluate(training_python, tmp_path, "--resume", killed)


def test_an_evaluation_ends_in_a_ledger(tracking, make_model, training_python, tmp_path):
    """The base is right where the gold answers are what it says; another model loses them."""
    base, same, other = make_model(1), make_model(1), make_model(2)
    asked = [{"problem": f"{i}+{i}=?", "answer": "0"} for i in range(12)]
    said = Evaluator(base, load_suite(str(suite_of(tmp_path, asked)), PROJECT)).run().samples
    said = said[said["kind"] == "greedy"]
    golds = dict(zip(said["problem"], said["completion"].str.strip(), strict=True))
    asked = [{**one, "answer": golds[one["problem"]] or "0"} for one in asked[:9]] + asked[9:]
    suite = suite_of(tmp_path, asked)
    with mlflow.start_run() as run:
        logged = log_base(str(base))
        for step, directory in ((5, same), (10, other)):
            log_checkpoint(str(directory), step=step, base=logged.model_id).wait()
    evaluate(
        training_python,
        tmp_path,
        "--set",
        f"suite={suite} run={run.info.run_id} checkpoints=all threads=1",
    )

    ledger = stored_ledger(run.info.run_id)
    greedy = ledger[ledger["kind"] == "greedy"]
    unchanged, changed = greedy[greedy["step"] == 5], greedy[greedy["step"] == 10]
    assert set(unchanged["status"]) <= {"kept", "never"}
    assert (changed["status"] == "lost").sum() >= 8  # two random models hardly ever agree
    assert len(ledger) == 2 * 2 * 12
    lost = changed[changed["status"] == "lost"]
    assert (lost["gold_loglik"] < lost["gold_loglik_base"]).mean() > 0.5
    assert lost["gold_loglik_after_opening"].notna().all()
    assert unchanged["gold_loglik"].isna().all()
    sampled = ledger[ledger["kind"] == "sampled"]
    assert set(sampled["k"]) == {4}

    rows = stored_samples(evaluations_of(ClientSource(), get_run(run.info.run_id))[0].info.run_id)
    draws = {
        step: list(part["completion"])
        for step, part in rows[rows["kind"] == "sampled"].groupby("step")
    }
    assert draws[0] != draws[5]  # the same weights, another seed

    _, (first, second) = checkpoints_of_run(run.info.run_id)
    table = mlflow_scalpel.compare(
        f"models:/{logged.model_id}", f"models:/{second.model_id}", metrics=["capabilities"]
    )
    counts = table[table["metric"] == "capabilities/lost"].set_index("texts")["value"]
    assert counts.index.str.startswith(("out/say/greedy", "out/say/sampled")).all()
    assert counts.iloc[0] == len(lost)
    gathered = mlflow_scalpel.gather([run.info.run_id])
    both = gathered[gathered["metric"] == "capabilities/lost"]
    assert set(both["model_id"]) == {first.model_id, second.model_id}
    pd.testing.assert_series_equal(
        both.loc[both["step"] == 10, "value"].reset_index(drop=True),
        counts.reset_index(drop=True),
        check_names=False,
    )
