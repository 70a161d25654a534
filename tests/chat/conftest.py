"""Templates of the tests are not tried with their data: a process for each example takes long."""

from __future__ import annotations

import pytest

from mlflow_scalpel.chat import rendering


@pytest.fixture(autouse=True)
def without_trial_of_data(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.module.__name__.rsplit(".", 1)[-1] != "test_trial":
        monkeypatch.setattr(rendering, "check_bounded_with", lambda *_: None)
