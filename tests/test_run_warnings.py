"""A warning is said once, kept on the run, and read back in words."""

from __future__ import annotations

import mlflow

from mlflow_scalpel.checkpoints.logging.spool import Spool
from mlflow_scalpel.checkpoints.logging.uploader import Uploader
from mlflow_scalpel.run_warnings import warn, warnings_of, withdraw
from mlflow_scalpel.training.journal import Journal


def test_a_warning_is_printed_once_and_kept_on_the_run(tracking, capsys):
    with mlflow.start_run() as run:
        for _ in range(2):
            warn("not_graded", "3 of 4 gold answers cannot be read", run.info.run_id)
        warn("other", "x" * 9000, run.info.run_id)
        warn("not_graded", "of another process", "")
    printed = capsys.readouterr().out
    assert printed.count("WARNING: 3 of 4 gold answers cannot be read") == 1
    assert "of another process" not in printed
    tags = mlflow.get_run(run.info.run_id).data.tags
    assert tags["scalpel.warning.not_graded"] == "3 of 4 gold answers cannot be read"
    assert len(tags["scalpel.warning.other"]) == 5000


def test_a_code_may_hold_a_name_that_mlflow_refuses(tracking):
    with mlflow.start_run() as run:
        warn("probe_hard (AIME)_too_long", "too long", run.info.run_id)
    assert warnings_of(mlflow.get_run(run.info.run_id).data.tags) == ["too long"]
    withdraw("probe_hard (AIME)_too_long", run.info.run_id)
    assert warnings_of(mlflow.get_run(run.info.run_id).data.tags) == []


def test_a_warning_that_is_true_no_more_is_taken_back(tracking, capsys):
    ids = []
    for _ in range(2):
        with mlflow.start_run() as run:
            ids.append(run.info.run_id)
    warn("late", "too late", *ids)
    warn("long", "too long", *ids)
    assert capsys.readouterr().out.count("too late") == 1
    withdraw("late", *ids)
    withdraw("late", *ids)  # which is not there
    for run_id in ids:
        assert warnings_of(mlflow.get_run(run_id).data.tags) == ["too long"]


def test_training_takes_back_what_is_true_no_more(tracking, tmp_path, capsys):
    with mlflow.start_run() as run:
        run_id = run.info.run_id
    warn("no_reward", "of a process that was killed", run_id)
    uploader = Uploader(Spool(tmp_path / "spool", mlflow.get_tracking_uri(), run_id))
    journal = Journal(uploader)
    for steps in (1, 2):
        journal.warnings({"no_reward": None, "late": f"{steps} late"}, run_id)
    uploader.drain()
    assert warnings_of(mlflow.get_run(run_id).data.tags) == ["2 late"]
    journal.warnings({"late": None}, run_id)
    uploader.drain()
    assert warnings_of(mlflow.get_run(run_id).data.tags) == []
    printed = capsys.readouterr().out
    assert "1 late" in printed
    assert "2 late" not in printed


def test_alarms_come_after_warnings():
    tags = {"scalpel.alarm.kl_runaway": "step 3: KL is 2", "scalpel.warning.b": "B", "other": "no"}
    assert warnings_of(tags) == ["B", "kl runaway at step 3: KL is 2"]
