"""A warning is said once, kept on the run, and read back in words."""

from __future__ import annotations

import mlflow

from mlflow_scalpel.run_warnings import warn, warnings_of


def test_a_warning_is_printed_once_and_kept_on_the_run(tmp_path, monkeypatch, capsys):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/m.db")
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


def test_alarms_come_after_warnings():
    tags = {"scalpel.alarm.kl_runaway": "step 3: KL is 2", "scalpel.warning.b": "B", "other": "no"}
    assert warnings_of(tags) == ["B", "kl runaway at step 3: KL is 2"]
