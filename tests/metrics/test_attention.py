"""The group `attention` against direct computations in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from mlflow_scalpel.metrics import choose_metrics

NAMES = ["js", "entropy_change", "first_token_change", "distance_change"]


def rows(logits: torch.Tensor) -> torch.Tensor:
    """Causal attention rows, (H, T, T)."""
    size = logits.shape[-1]
    hidden = torch.ones(size, size, dtype=torch.bool).triu(1)
    return logits.masked_fill(hidden, -math.inf).softmax(-1)


def value(name: str, before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    (one,) = choose_metrics([f"attention/{name}"])
    return one.function(before, after).numpy()


def direct(name: str, before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    """One row at a time, over positions 0 to t."""
    found = []
    for head in range(len(before)):
        terms = []
        for t in range(before.shape[1]):
            p, q = (x[head, t, : t + 1].double().numpy() for x in (before, after))
            back = t - np.arange(t + 1)
            terms.append(
                {
                    # scipy gives the root of the divergence, and normalises.
                    "js": lambda p=p, q=q: jensenshannon(p, q) ** 2,
                    "entropy_change": lambda p=p, q=q: entropy(q) - entropy(p),
                    "first_token_change": lambda p=p, q=q: q[0] - p[0],
                    "distance_change": lambda p=p, q=q, back=back: ((q - p) * back).sum(),
                }[name]()
            )
        found.append(np.mean(terms))
    return np.array(found)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", [1e-3, 0.1, 3.0, 30.0])
def test_against_float64(name, change):
    torch.manual_seed(0)
    logits = torch.randn(3, 17, 17) * 2
    before, after = rows(logits), rows(logits + change * torch.randn_like(logits))
    expected = direct(name, before, after)
    assert value(name, before, after) == pytest.approx(expected, rel=2e-4, abs=1e-8)


def test_js_keeps_its_digits_where_rows_are_near():
    p = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    q = p.clone()
    step = 2.0**-20
    q[0, 1] = torch.tensor([0.5 + step, 0.5 - step])
    r = 2 * step / 2.0  # (q - p) / (q + p), about
    assert value("js", p, q)[0] == pytest.approx(0.5 * (0.5 * r * r * 4), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_of_a_model_with_itself_is_exactly_zero(name):
    p = rows(torch.randn(2, 9, 9) * 5)
    assert (value(name, p, p.clone()) == 0.0).all()


def test_heads_that_look_at_different_tokens():
    first, last = torch.zeros(1, 4, 4), torch.eye(4)[None]
    first[..., 0] = 1.0
    # Row 0 has one position to look at; the other three rows share none.
    assert value("js", last, first)[0] == pytest.approx(0.75 * math.log(2.0))
    assert value("first_token_change", last, first)[0] == 0.75
    assert value("distance_change", last, first)[0] == (1 + 2 + 3) / 4
    assert value("entropy_change", last, first)[0] == 0.0


numbers = st.lists(st.floats(-50, 50, width=32), min_size=16, max_size=16)


@settings(max_examples=100)
@given(numbers, numbers)
def test_bounds_and_symmetry(first, second):
    p, q = (rows(torch.tensor(one).view(1, 4, 4)) for one in (first, second))
    js = value("js", p, q)[0]
    assert 0.0 <= js <= math.log(2.0) * (1 + 1e-6)
    assert js == pytest.approx(value("js", q, p)[0], rel=1e-6, abs=1e-12)
    assert abs(value("first_token_change", p, q)[0]) <= 1.0
    assert abs(value("distance_change", p, q)[0]) <= 3.0
    assert abs(value("entropy_change", p, q)[0]) <= math.log(4.0)


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_not_hidden(name):
    p = rows(torch.randn(2, 5, 5))
    q = p.clone()
    q[1, 3] = math.nan
    found = value(name, p, q)
    assert found[0] == 0.0
    assert math.isnan(found[1])
