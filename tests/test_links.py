"""Descriptions that lead from MLflow's pages to the views."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
from mlflow import MlflowClient

from mlflow_scalpel.links import DESCRIPTION_TAG, checkpoint_note, run_note
from mlflow_scalpel.views.controls import CONTROLS
from mlflow_scalpel.views.pages import page_named

RUN = "0" * 32


def address(note: str) -> str:
    return re.search(r"\]\((.*?)\)", note)[1]


@pytest.mark.parametrize("root", ["http://host/", "http://host/deep/prefix/"])
@pytest.mark.parametrize("note", [run_note(RUN, "text"), checkpoint_note(RUN, 40)])
def test_a_link_leads_to_a_page_behind_any_prefix(root, note):
    parts = urlsplit(urljoin(f"{root}#/experiments/1/runs/{RUN}", address(note)))
    assert f"{parts.scheme}://{parts.netloc}{parts.path}".startswith(f"{root}scalpel/")
    assert page_named(parts.path.rsplit("/", 1)[1]) is not None
    query = parse_qs(parts.query)
    assert query.pop("runs") == [RUN]
    assert set(query) <= {"at", *(control.name for control in CONTROLS)}


def test_a_description_keeps_what_was_said():
    assert run_note(RUN, "What it is.\n").startswith("What it is.\n\n[Views of this run](")


def test_logged_runs_and_checkpoints_carry_links(tracking, first_model, tmp_path):
    from mlflow_scalpel.checkpoints.external.external_run import ExternalRun, log_directory
    from mlflow_scalpel.checkpoints.logging.uploads import close_uploaders
    from mlflow_scalpel.checkpoints.search import made_by

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint-40").symlink_to(first_model)
    run_id, _ = log_directory(tmp_path / "out", ExternalRun(base=str(first_model)))
    close_uploaders()
    client = MlflowClient()
    run = client.get_run(run_id)
    assert run.data.tags[DESCRIPTION_TAG] == run_note(run_id)
    notes = {model.tags.get(DESCRIPTION_TAG) for model in made_by(client, run)}
    assert notes == {None, checkpoint_note(run_id, 40)}  # the base was logged, too
