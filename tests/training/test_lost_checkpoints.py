"""A training that lost checkpoints says so on its run; one that lost all of them fails."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mlflow_scalpel.checkpoints.logging.uploader import Outcome
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.training.callback import CheckpointCallback
from mlflow_scalpel.training.resume_point import Past


def ended(outcomes: dict[int, Outcome], past: Past) -> dict[str, str]:
    """What the run is told at the end of a training whose uploads came out so."""
    said: dict[str, str] = {}
    journal = SimpleNamespace(
        uploader=SimpleNamespace(drain=lambda: None),
        warnings=lambda told, run_id: said.update(told),
    )
    callback = object.__new__(CheckpointCallback)
    vars(callback).update(
        _journal=journal, _past=past, _run_id="r", _unidentified=False, _lost={},
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
    assert ended({5: READY, 10: READY}, Past()) == {}


def test_one_lost_is_a_warning():
    (said,) = ended({5: READY, 10: FAILED}, Past()).values()
    assert said.startswith("the checkpoints of step 10 are not stored; 1 other is")


def test_all_lost_fails_unless_an_earlier_process_stored_some():
    with pytest.raises(ScalpelError, match="step 5, 10 are not stored; no other is: model"):
        ended({5: FAILED, 10: FAILED}, Past())
    assert ended({10: FAILED}, Past(stored={5: ("m-1", "sha256:1")}))
