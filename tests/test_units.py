"""Costs in words."""

import pytest

from mlflow_scalpel.units import cost_words


@pytest.mark.parametrize(
    ("metric", "value", "words"),
    [
        ("cost/flops", 1.61484e12, "1.61 TFLOP"),
        ("cost/flops", 0.0, "0 FLOP"),
        ("cost/flops", 999.9e9, "1 TFLOP"),
        ("cost/flops", 3.2e22, "32 ZFLOP"),
        ("cost/tokens_trained", 842, "842 tokens"),
        ("cost/tokens_generated", 1234567, "1.23 M tokens"),
        ("cost/sequences", 7680, "7,680 sequences"),
        ("cost/unique_problems", 91000, "91 k problems"),
        ("cost/wall_seconds", 12.34, "12.3 s"),
        ("cost/measuring_seconds", 312, "5.2 min"),
        ("cost/wall_seconds", 8640, "2.4 h"),
        ("cost/wall_seconds", 3.6e7, "10,000 h"),
        ("cost/other", 1.5, "1.5"),
    ],
)
def test_a_cost_is_read_with_its_unit(metric, value, words):
    assert cost_words(metric, value) == words
