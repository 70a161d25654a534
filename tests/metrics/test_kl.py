"""KL against a direct computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from mlflow_scalpel.metrics.kl import kl_divergence


def test_against_scipy_in_float64():
    torch.manual_seed(0)
    before, after = torch.randn(5, 1001) * 4, torch.randn(5, 1001) * 4
    log_p = log_softmax(before.double().numpy(), axis=-1)
    log_q = log_softmax(after.double().numpy(), axis=-1)
    direct = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    assert kl_divergence(before, after).numpy() == pytest.approx(direct, rel=1e-12)


def test_of_a_model_with_itself_is_exactly_zero():
    logits = torch.randn(7, 50)
    assert torch.equal(kl_divergence(logits, logits), torch.zeros(7, dtype=torch.float64))


def test_small_divergences_are_not_lost_in_rounding():
    """To second order KL is half the variance of the change of the logits under p."""
    torch.manual_seed(1)
    before = torch.randn(1, 5000)
    change = 1e-3 * torch.randn(1, 5000)
    after = before + change
    p = before.double().softmax(-1)
    moved = (after - before).double()
    expected = 0.5 * float((p * moved**2).sum() - (p * moved).sum() ** 2)
    assert float(kl_divergence(before, after)) == pytest.approx(expected, rel=1e-2)


def test_two_coins():
    fair = torch.tensor([[0.0, 0.0]])
    biased = torch.log(torch.tensor([[0.9, 0.1]]))
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert float(kl_divergence(fair, biased)) == pytest.approx(expected, rel=1e-6)
