"""KL the authors' way: bfloat16, and problems with NaN left out, which is said."""

from __future__ import annotations

import math

import pytest
import torch

from mlflow_scalpel.metrics import choose_metrics
from mlflow_scalpel.metrics.kl.tokens import token_divergence
from mlflow_scalpel.metrics.kl_paper_compat.all_tokens import bfloat16_divergence


def estimate(*problems: list[float]):
    (one,) = choose_metrics(["kl_paper_compat"])
    (found,) = one.function([torch.tensor(problem).bfloat16() for problem in problems])
    return found


def test_problems_with_nan_are_left_out_and_counted():
    found = estimate([1.0, 3.0], [math.nan, 1.0], [4.0], [math.inf])
    assert (found.value, found.n, found.bad) == (3.0, 2, 0)
    assert "2 of 4 problems gave NaN or infinity" in found.note
    assert found.columns()["reason"] == found.note
    assert "status" not in found.columns()
    assert estimate([1.0], [2.0]).note is None


def test_it_has_no_value_where_no_problem_has():
    assert math.isnan(estimate([math.nan]).value)


def test_it_is_the_kl_up_to_what_bfloat16_can_hold():
    torch.manual_seed(0)
    before = torch.randn(50, 3000) * 3
    after = before + torch.randn_like(before)
    exact = token_divergence(before, after, torch.arange(50)).forward.mean()
    ours = bfloat16_divergence(before.bfloat16(), after.bfloat16())
    assert ours.dtype == torch.bfloat16
    assert float(ours.float().mean()) == pytest.approx(float(exact), rel=0.05)
