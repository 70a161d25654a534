"""What training tells MLflow: a metric has one value at a step."""

from __future__ import annotations

from types import SimpleNamespace

from mlflow_scalpel.training.journal import Journal


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
