"""Checkpoints of other trainers: logged when they are done, or watched while they are made."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mlflow_scalpel.checkpoints.external.external_run import ExternalRun, lost_steps
from mlflow_scalpel.checkpoints.external.watch import watch
from mlflow_scalpel.checkpoints.logging.log import log_checkpoint
from mlflow_scalpel.checkpoints.reading.pull import resolve
from mlflow_scalpel.checkpoints.search import checkpoints_of_run
from mlflow_scalpel.cli import main
from mlflow_scalpel.errors import ScalpelError

WEIGHTS = "model.safetensors"


@pytest.fixture
def finished(make_model, tmp_path) -> Path:
    """What a Transformers trainer leaves, two of its checkpoints damaged or foreign."""
    output = tmp_path / "my-run"
    for step in (5, 10, 15):
        directory = output / f"checkpoint-{step}"
        shutil.copytree(make_model(step), directory)
        history = [{"step": s, "loss": 1 / s, "learning_rate": 1e-5} for s in range(1, step + 1)]
        (directory / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    os.truncate(output / "checkpoint-10" / WEIGHTS, 1000)
    (output / "runs").mkdir()
    return output


def runs():
    experiment = mlflow.get_experiment_by_name("tests").experiment_id
    return MlflowClient().search_runs([experiment])


def test_a_finished_run_is_logged_and_what_is_damaged_is_a_gap(
    tracking, finished, first_model, capsys
):
    arguments = ["log", str(finished), "--base", str(first_model), "--register-as", "mine"]
    arguments += ["--algorithm", "grpo", "--param", "learning_rate=1e-5"]
    assert main(["log", str(finished), "--experiment", "tests", *arguments[2:]]) == 1
    printed = capsys.readouterr()
    assert "step 10: FAILED: " in printed.err
    assert "step 15: models:/m-" in printed.out
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "my-run"
    losses = MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in losses] == [(s, 1 / s) for s in range(1, 16)]
    base, found = checkpoints_of_run(run.info.run_id)
    assert base is not None
    states = {checkpoint.step: checkpoint.status for checkpoint in found}
    assert states == {5: "READY", 10: "FAILED", 15: "READY"}
    model = MlflowClient().get_logged_model(found[0].model_id)
    assert (model.params["algorithm"], model.params["learning_rate"]) == ("grpo", "1e-5")

    # once it is fixed, only what is missing is logged
    shutil.copy(finished / "checkpoint-5" / WEIGHTS, finished / "checkpoint-10")
    assert main(["log", str(finished), "--experiment", "tests", *arguments[2:]]) == 0
    assert "1 checkpoints that it did not have" in capsys.readouterr().out
    (run,) = runs()
    assert len(MlflowClient().get_metric_history(run.info.run_id, "loss")) == 15
    assert len(MlflowClient().search_model_versions("name = 'mine'")) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["log", "nowhere"], "nowhere: there is no such directory"),
        (["log", "."], "holds no directory named after a step, as checkpoint-N"),
        (["log", ".", "--param", "lr"], "--param lr: is not KEY=VALUE"),
        (["log", ".", "--run-id", "0" * 32], "holds no directory named"),
        (["upload", "."], "holds no spool"),
    ],
)
def test_wrong_input_is_answered_with_a_remedy(tracking, arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_watching_a_run_that_goes_on(tracking, first_model, make_model, tmp_path):
    """They are taken in when whole, before the trainer removes them; Ctrl-C sends the rest."""
    output = tmp_path / "other-run"
    output.mkdir()
    watcher = subprocess.Popen(
        [
            sys.executable, "-X", "faulthandler", "-m", "mlflow_scalpel.cli",
            "watch", str(output), "--interval", "0.2",
            "--base", str(first_model), "--experiment", "tests",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    assert watcher.stdout.readline().startswith("watching")
    try:
        for step in (1, 2):
            source, directory = make_model(step), output / f"global_step_{step}"
            directory.mkdir()
            for name in sorted(os.listdir(source)):
                content = (source / name).read_bytes()
                with (directory / name).open("wb") as file:  # slowly, as a trainer writes
                    file.write(content[: len(content) // 2])
                    file.flush()
                    time.sleep(0.1)
                    file.write(content[len(content) // 2 :])
            assert watcher.stdout.readline() == f"step {step}: complete; uploading\n"
            shutil.rmtree(directory)
        broken = output / "global_step_3"
        shutil.copytree(first_model, broken)
        os.truncate(broken / WEIGHTS, 500)
        time.sleep(1)
        watcher.send_signal(signal.SIGINT)
        try:
            told, _ = watcher.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            watcher.send_signal(signal.SIGABRT)  # says where each thread is
            pytest.fail(watcher.communicate()[0])
    finally:
        watcher.kill()
    assert "step 3: is not logged: " in told
    assert watcher.returncode == 1
    (run,) = runs()
    _, found = checkpoints_of_run(run.info.run_id)
    assert [(c.step, c.status) for c in found] == [(1, "READY"), (2, "READY")]


LOOP = """
import mlflow, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
import mlflow_scalpel

base = {base!r}
model = AutoModelForCausalLM.from_pretrained(base)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with mlflow.start_run():
    for step in range(1, 4):
        loss = sum((weight**2).sum() for weight in model.parameters()) * 1e-4
        loss.backward()
        optimizer.step()
        model.config.step = step
        model.save_pretrained("out")
        mlflow_scalpel.log_checkpoint("out", step=step, base=base)
"""


def test_a_plain_loop_needs_no_more_than_a_line(tracking, first_model, make_model, tmp_path):
    """One directory, written again and again: every step's weights are kept, and the exit waits."""
    (tmp_path / "loop.py").write_text(LOOP.format(base=str(first_model)))
    subprocess.run(
        [sys.executable, "loop.py"],
        env=dict(os.environ, MLFLOW_EXPERIMENT_NAME="tests"),
        check=True,
        cwd=tmp_path,
    )
    (run,) = runs()
    base, found = checkpoints_of_run(run.info.run_id)
    assert base is not None
    assert [(c.step, c.status) for c in found] == [(1, "READY"), (2, "READY"), (3, "READY")]
    assert len({c.digest for c in found} | {base.digest}) == 4
    configs = [json.loads((resolve(c.uri) / "config.json").read_text()) for c in found]
    assert [config["step"] for config in configs] == [1, 2, 3]
    assert not (tmp_path / ".scalpel").exists()


def test_a_loop_that_writes_into_the_file_itself_is_found_out(tracking, first_model, tmp_path):
    """The link shares the file: writing into it changes what is stored, and verify says so."""
    directory = tmp_path / "out"
    shutil.copytree(first_model, directory)
    with mlflow.start_run() as run:
        log_checkpoint(directory, step=1, link="hard").wait()
    assert main(["verify", run.info.run_id]) == 0
    tensors = load_file(directory / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "new")
    with (directory / WEIGHTS).open("r+b") as file:
        file.write((tmp_path / "new").read_bytes())
    assert main(["verify", run.info.run_id]) == 1


def test_a_refused_base_leaves_no_run_running(tracking, finished, capsys):
    assert main(["log", str(finished), "--base", "no/such", "--experiment", "tests"]) == 2
    assert "no/such" in capsys.readouterr().err
    assert [run.info.status for run in runs()] == ["FAILED"]


def test_models_without_a_step_and_other_steps_are_said(tracking, first_model, tmp_path, capsys):
    output = tmp_path / "run"
    for name in ("checkpoint-5", "merged"):
        shutil.copytree(first_model, output / name)
    config = output / "merged" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"merged": True}))
    (output / "checkpoint-5" / "trainer_state.json").write_text('{"global_step": 50}')
    assert main(["log", str(output), "--experiment", "tests"]) == 0
    printed = capsys.readouterr()
    assert "its trainer_state.json is of step 50; " in printed.out + printed.err
    (run,) = runs()
    told = f"log it with: mlflow-scalpel log --step N --run-id {run.info.run_id} {output}/merged"
    assert told in printed.out
    assert "scalpel.warning.step_5" in run.data.tags

    told = told.removeprefix("log it with: mlflow-scalpel ").replace(" N ", " 7 ")
    assert main(told.split()) == 0
    assert main(["log", str(output), "--experiment", "tests"]) == 0
    assert "holds a model too" not in capsys.readouterr().out
    _, found = checkpoints_of_run(run.info.run_id)
    assert [one.step for one in found] == [5, 7]


def test_a_layout_without_steps_names_its_converter(tracking, tmp_path, capsys):
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "consolidated.00.pth").write_bytes(b"x")
    for directory in (tmp_path, tmp_path / "llama"):
        assert main(["log", str(directory)]) == 2
        assert "convert_llama_weights_to_hf.py --input_dir" in capsys.readouterr().err


def test_watching_writes_nothing_before_the_trainer_does(tracking, first_model, tmp_path):
    """Trainers refuse an output directory that is not empty."""
    output = tmp_path / "run"
    for _ in watch(output, ExternalRun(), interval=0.1, idle=0.3):
        pytest.fail("there is nothing")
    assert not output.exists()


def test_watching_says_what_was_removed_too_early(tracking, first_model, tmp_path):
    output, told, gone = tmp_path / "run", [], {}
    shutil.copytree(first_model, output / "checkpoint-5")
    weights = output / "checkpoint-5" / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:500])

    def say(line: str) -> None:
        told.append(line)
        shutil.rmtree(output / "checkpoint-5", ignore_errors=True)

    external = ExternalRun()
    for _ in watch(output, external, interval=0.1, idle=0.5, report=say, gone=gone):
        pytest.fail("there is nothing whole")
    assert told[0].startswith("step 5: waits: ")
    assert told[1].startswith("step 5: is lost: its directory was removed before")
    assert "save_total_limit" in gone[5]
    (run,) = runs()
    assert lost_steps(output, external, run.info.run_id, (), gone) == gone


def test_watching_a_file_is_refused(tracking, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert main(["watch", str(tmp_path / "config.json"), "--until-idle", "1"]) == 2
    assert "config.json: is a file; give the directory" in capsys.readouterr().err


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize(
    ("wrapper", "file"),
    [
        ("_orig_mod.", WEIGHTS),
        ("module.", WEIGHTS),
        ("pretrained_model.", WEIGHTS),  # TRL's models with a value head
        ("", "weights.safetensors"),
    ],
)
def test_what_from_pretrained_would_not_read_is_noted(
    tracking, first_model, tmp_path, wrapper, file, with_base
):
    directory = tmp_path / "run" / "checkpoint-5"
    shutil.copytree(first_model, directory)
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    named = {f"{wrapper}{name}": tensor for name, tensor in tensors.items()}
    save_file(named, directory / file, metadata={"format": "pt"})
    base = str(first_model) if with_base else None
    with mlflow.start_run():
        model = log_checkpoint(directory, step=5, base=base).wait()
    # Transformers itself does not: every weight is new, or there is none
    try:
        _, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
        assert info["missing_keys"]
    except OSError:
        assert file != WEIGHTS
    assert model.status == "READY"
    assert "from_pretrained" in model.tags["scalpel.note"]
    assert (wrapper or file) in model.tags["scalpel.note"]


def test_a_base_among_a_runs_artifacts_is_stored(tracking, first_model, make_model, tmp_path):
    shutil.copytree(make_model(5), tmp_path / "run" / "checkpoint-5")
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(first_model), "some/model")
        model = log_checkpoint(
            tmp_path / "run" / "checkpoint-5", step=5, base=f"runs:/{run.info.run_id}/some/model"
        ).wait()
    stored = load_file(resolve(model.params["base"]) / WEIGHTS)
    wanted = load_file(first_model / WEIGHTS)
    assert stored.keys() == wanted.keys()
    assert all(stored[name].equal(wanted[name]) for name in wanted)


def test_another_base_for_what_is_logged_is_told(
    tracking, first_model, make_model, tmp_path, capsys
):
    output = tmp_path / "run"
    shutil.copytree(make_model(5), output / "checkpoint-5")
    arguments = ["log", str(output), "--experiment", "tests", "--base"]
    for base in (first_model, first_model, make_model(2)):
        assert main([*arguments, str(base)]) == 0
        printed = capsys.readouterr()
        told = "checkpoints of step 5 are stored with the base models:/m-"
        assert (told in printed.out + printed.err) == (base != first_model)
    (run,) = runs()
    assert "scalpel.warning.other_base" in run.data.tags


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"step": -1}, "step -1: is not from 0 to"),
        ({"step": 2**70}, "is not from 0 to"),
        ({"step": 1.5}, "step 1.5: is not a whole number"),
        ({"step": "3"}, "step '3': is not a whole number"),
        ({"step": 3, "register_as": "a/b"}, "registered model 'a/b': MLflow takes no"),
        ({"step": 3, "link": "soft"}, "link 'soft': is not one of reflink, hard, copy"),
    ],
)
def test_what_no_store_could_keep_is_refused_at_once(tracking, first_model, given, said):
    with mlflow.start_run() as run:
        with pytest.raises(ScalpelError, match=said):
            log_checkpoint(first_model, **given)
        log_checkpoint(first_model, step=np.int64(4)).wait()
    _, found = checkpoints_of_run(run.info.run_id)
    assert [one.step for one in found] == [4]


def test_a_step_that_somebody_else_wrote_does_not_end_the_table(tracking, first_model, capsys):
    with mlflow.start_run():
        log_checkpoint(first_model, step=4).wait()
        for step in ("9" * 30, str(2**63), "-1", "x"):
            mlflow.create_external_model(
                name="other", model_type="checkpoint", params={"step": step}
            )
    assert main(["checkpoints", "--experiment", "tests"]) == 0
    assert " READY " in capsys.readouterr().out
