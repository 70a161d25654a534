"""Pruning frees what no rule keeps, says so first, and can be cut off anywhere."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_scalpel.checkpoints.artifact_store import LocalStore, local_directory
from mlflow_scalpel.checkpoints.listing import list_checkpoints
from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
from mlflow_scalpel.checkpoints.prune import Plan, plan_prune, prune
from mlflow_scalpel.checkpoints.search import checkpoints_of_run
from mlflow_scalpel.checkpoints.verify import verify
from mlflow_scalpel.cli import main
from mlflow_scalpel.errors import ScalpelError

STEPS = [20, 40, 60, 80]
LOSS = [0.5, 0.9, 0.1, 0.7]


@pytest.fixture
def run_id(tracking: str, first_model: Path, make_model: Callable[..., Path]) -> str:
    """A run with four checkpoints that share no file with anything else; none is registered."""
    with mlflow.start_run() as run:
        base = log_base(str(first_model))
        for step, loss in zip(STEPS, LOSS, strict=True):
            model = log_checkpoint(make_model(step), step=step, base=base.model_id, link="copy")
            mlflow.log_metric("loss", loss, step=step, model_id=model.wait().model_id)
    return run.info.run_id


def steps(plan: Plan) -> tuple[list[int], list[int]]:
    return [checkpoint.step for checkpoint in plan.to_delete], [kept.step for kept in plan.to_keep]


def directories(run_id: str) -> dict[int, Path]:
    client = MlflowClient()
    _, found = checkpoints_of_run(run_id)
    located = {c.step: client.get_logged_model(c.model_id).artifact_location for c in found}
    return {step: Path(str(local_directory(location))) for step, location in located.items()}


def bytes_under(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def test_rules_unite(run_id):
    for rules, to_delete in (
        ({"keep": 1}, [20, 40, 60]),
        ({"keep": 9}, []),
        ({"keep_every": 40}, [20, 60]),
        ({"keep_best": "loss"}, [20, 60, 80]),
        ({"keep_best": "loss", "minimize": True}, [20, 40, 80]),
        ({"keep": 1, "keep_every": 60, "keep_best": "loss"}, [20]),
    ):
        to_keep = [step for step in STEPS if step not in to_delete]
        assert steps(plan_prune(run_id, **rules)) == (to_delete, to_keep), rules


def test_rules_that_say_nothing_are_refused(run_id):
    for rules, said in (
        ({}, "no rule says what to keep"),
        ({"keep": 0}, "keep = 0: has to be 1 or more"),
        ({"keep_every": -5}, "keep-every = -5"),
        ({"keep": 1, "minimize": True}, "minimize is given without a metric"),
        ({"keep_best": "accuracy"}, "keep-best = accuracy: .*there are loss$"),
    ):
        with pytest.raises(ScalpelError, match=said):
            plan_prune(run_id, **rules)


def test_bytes_are_freed_and_everything_else_stays(run_id, tmp_path):
    before = list_checkpoints(run_id=run_id)
    base, _ = checkpoints_of_run(run_id)
    content = {f.name: f.read_bytes() for f in directories(run_id)[80].iterdir()}
    on_disk = bytes_under(tmp_path / "artifacts")
    plan = plan_prune(run_id, keep=1)
    assert plan.bytes == plan.bytes_free == before["bytes"][:3].sum()
    assert bytes_under(tmp_path / "artifacts") == on_disk
    assert [checkpoint.step for checkpoint in prune(plan)] == [20, 40, 60]
    assert bytes_under(tmp_path / "artifacts") == on_disk - plan.bytes_free
    left = directories(run_id)
    assert {f.name: f.read_bytes() for f in left.pop(80).iterdir()} == content
    for directory in left.values():
        assert {file.name for file in directory.iterdir()} == {"MLmodel", "manifest.json"}

    after = list_checkpoints(run_id=run_id)
    assert list(after["state"]) == ["PRUNED"] * 3 + ["READY"]
    same = [column for column in before.columns if column != "state"]
    assert after[same].equals(before[same])
    assert checkpoints_of_run(run_id)[0] == base
    assert [c.status for c in checkpoints_of_run(run_id)[1]] == list(after["state"])
    assert list(verify(run_id)["result"]) == ["ok", "pruned", "pruned", "pruned", "ok"]
    assert plan_prune(run_id, keep=1).to_delete == ()


def test_what_has_an_alias_stays_even_if_it_got_it_a_moment_ago(run_id):
    client = MlflowClient()
    table = list_checkpoints(run_id=run_id)
    # Registered by hand, so that the version does not know the run.
    mlflow.register_model(table["uri"][0], "chosen")
    client.set_registered_model_alias("chosen", "paper", "1")
    plan = plan_prune(run_id, keep=1)
    assert steps(plan) == ([40, 60], [20, 80])
    assert plan.to_keep[0].reasons == ("has the alias paper",)
    mlflow.register_model(table["uri"][1], "chosen")
    client.set_registered_model_alias("chosen", "late", "2")
    assert [checkpoint.step for checkpoint in prune(plan)] == [60]
    assert list(list_checkpoints(run_id=run_id)["state"]) == ["READY", "READY", "PRUNED", "READY"]


def test_hard_links_are_not_counted_as_free(tracking, first_model, tmp_path, capsys):
    with mlflow.start_run() as run:
        for step in (20, 40, 60):
            log_checkpoint(first_model, step=step, link="copy").wait()
    run_id = run.info.run_id
    stored = directories(run_id)
    output = tmp_path / "output"  # as the trainer's directory, whose files the store shares
    output.mkdir()
    for file in stored[20].iterdir():
        if file.name not in ("MLmodel", "manifest.json"):
            os.link(file, output / file.name)
            (stored[40] / file.name).unlink()
            os.link(file, stored[40] / file.name)
    plan = plan_prune(run_id, keep=1)
    assert plan.bytes == 2 * bytes_under(output)
    assert plan.bytes_free == 0
    assert main(["prune", run_id, "--keep", "1", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"({plan.bytes} bytes) in 2 checkpoint(s)" in printed
    assert "only 0 B (0 bytes) become free" in printed
    shutil.rmtree(output)
    assert plan_prune(run_id, keep=1).bytes_free == plan.bytes // 2


def test_a_prune_that_is_cut_off_says_pruned_and_is_ended_by_the_next(run_id, monkeypatch):
    plan = plan_prune(run_id, keep=3)
    (checkpoint,) = plan.to_delete
    delete = LocalStore.delete
    left = [2]

    def fail(self, name):
        left[0] -= 1
        if left[0] < 0:
            raise OSError("the disk went away")
        delete(self, name)

    monkeypatch.setattr(LocalStore, "delete", fail)
    with pytest.raises(ScalpelError, match=r"step 20.*the disk went away.*is PRUNED already"):
        prune(plan)
    monkeypatch.undo()
    assert list(list_checkpoints(run_id=run_id)["state"]) == ["PRUNED"] + ["READY"] * 3
    assert "is still there" in verify(run_id)["problem"][1]
    again = plan_prune(run_id, keep=3)
    assert [d.step for d in again.to_delete] == [20]
    assert len(again.to_delete[0].files) == len(checkpoint.files) - 2
    prune(again)
    assert {f.name for f in directories(run_id)[20].iterdir()} == {"MLmodel", "manifest.json"}


def test_what_is_under_way_or_failed_is_left_alone(run_id):
    client = MlflowClient()
    experiment_id = client.get_run(run_id).info.experiment_id
    for step, end in (("5", "FAILED"), ("10", None)):
        model = client.create_logged_model(
            experiment_id, source_run_id=run_id, params={"step": step}, model_type="checkpoint"
        )
        if end:
            client.finalize_logged_model(model.model_id, end)
    plan = plan_prune(run_id, keep=1)
    assert steps(plan) == ([20, 40, 60], [5, 10, 80])
    assert [kept.reasons for kept in plan.to_keep[:2]] == [("is FAILED",), ("is PENDING",)]


def test_the_command_asks_and_refuses_without_a_terminal(run_id, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["prune", run_id, "--keep", "1"]) == 2
    printed = capsys.readouterr()
    assert "give --yes to agree" in printed.err
    assert "  keep    step 80      one of the 1 newest" in printed.out
    assert "  delete  step 20 " in printed.out
    assert main(["prune", run_id, "--keep", "1", "--dry-run"]) == 0
    assert set(list_checkpoints(run_id=run_id)["state"]) == {"READY"}
    assert main(["prune", run_id, "--keep", "1", "--yes"]) == 0
    assert "of steps 20, 40, 60" in capsys.readouterr().out
    assert list(list_checkpoints(run_id=run_id)["state"]) == ["PRUNED"] * 3 + ["READY"]
    assert main(["prune", run_id, "--keep", "1", "--yes"]) == 0
    assert "nothing to delete" in capsys.readouterr().out


def test_at_a_terminal_the_answer_counts(run_id, monkeypatch):
    for answer, left in (("n", 4), ("", 4), ("y", 3)):
        leader, follower = os.openpty()
        os.write(leader, f"{answer}\n".encode())
        with os.fdopen(follower) as terminal:
            monkeypatch.setattr("sys.stdin", terminal)
            assert main(["prune", run_id, "--keep", "3"]) == (0 if answer == "y" else 1)
        os.close(leader)
        assert list(list_checkpoints(run_id=run_id)["state"]).count("READY") == left


def test_a_remote_store_is_freed_through_the_server(mlflow_server, track_at, make_model):
    track_at(mlflow_server.uri)
    with mlflow.start_run() as run:
        models = [log_checkpoint(make_model(s), step=s).wait() for s in (20, 40)]
    stored = [
        next(mlflow_server.artifacts.glob(f"*/models/{model.model_id}/artifacts"))
        for model in models
    ]
    before = bytes_under(stored[0])
    plan = plan_prune(run.info.run_id, keep=1)
    assert plan.bytes_free == plan.bytes == int(models[0].params["bytes"])
    prune(plan)
    assert bytes_under(stored[0]) == before - plan.bytes
    assert {file.name for file in stored[0].iterdir()} == {"MLmodel", "manifest.json"}
    assert len(list(stored[1].iterdir())) > 2
