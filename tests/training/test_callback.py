"""What a training run logs: each metric once a step, and the checkpoints that it lost."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mlflow_scalpel.checkpoints.logging.uploader import Outcome
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.training.callback import CheckpointCallback
from mlflow_scalpel.training.journal import Journal
from mlflow_scalpel.training.resume_point import ResumePoint


def ended(outcomes: dict[int, Outcome], resumed: ResumePoint) -> dict[str, str]:
    """The warnings at the end of a training whose uploads came out so."""
    said: dict[str, str] = {}
    journal = SimpleNamespace(
        uploader=SimpleNamespace(drain=lambda: None),
        warnings=lambda messages, run_id: said.update(messages),
    )
    callback = object.__new__(CheckpointCallback)
    vars(callback).update(
        _journal=journal, _resumed=resumed, _run_id="r", _unidentified=False, _lost={},
        _uploads={
            step: SimpleNamespace(job=step, uploader=SimpleNamespace(outcome=outcomes.__getitem__))
            for step in outcomes
        },
    )  # fmt: skip
    callback.on_train_end(None, SimpleNamespace(is_world_process_zero=True), None)
    return said


READY = Outcome(status="READY")
FAILED = Outcome(status="FAILED", reason="model.safetensors: is missing")


def test_all_stored_says_nothing():
    assert ended({5: READY, 10: READY}, ResumePoint()) == {}


def test_one_lost_is_a_warning():
    (said,) = ended({5: READY, 10: FAILED}, ResumePoint()).values()
    assert said.startswith("the checkpoints of step 10 are not stored; 1 other is")


def test_all_lost_fails_unless_an_earlier_process_stored_some():
    with pytest.raises(ScalpelError, match="step 5, 10 are not stored; no other is: model"):
        ended({5: FAILED, 10: FAILED}, ResumePoint())
    assert ended({10: FAILED}, ResumePoint(stored={5: ("m-1", "sha256:1")}))


def test_what_the_trainers_summary_says_again_is_logged_once():
    entries = []
    journal = Journal(SimpleNamespace(add=entries.append))
    journal.metrics({"loss": 1.0, "epoch": 0.5}, 7)
    journal.metrics({"loss": 0.9, "epoch": 1.0}, 8)
    journal.metrics({"epoch": 1.0, "train_loss": 0.95}, 8)
    journal.metrics({"epoch": 1.0}, 8)
    told = [(m.key, m.step, m.value) for entry in entries for m in entry.metrics]
    assert told == [
        ("loss", 7, 1.0),
        ("epoch", 7, 0.5),
        ("loss", 8, 0.9),
        ("epoch", 8, 1.0),
        ("train_loss", 8, 0.95),
    ]
