"""Weights and KL the authors' way: bfloat16, and problems with NaN left out, which is said."""

from __future__ import annotations

import math

import pytest
import torch

from mlflow_scalpel.metrics import choose_metrics
from mlflow_scalpel.metrics.paper_compat import bfloat16_divergence
from mlflow_scalpel.metrics.token_divergence import token_divergence
from mlflow_scalpel.metrics.update_sums import update_sums
from mlflow_scalpel.metrics.weights import Training, relative_frobenius


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


def authors(base: torch.Tensor, checkpoint: torch.Tensor) -> torch.Tensor:
    """What the published script does with the bfloat16 logits (T, V) of one problem."""
    p = torch.nn.functional.softmax(base, dim=-1)
    q = torch.nn.functional.softmax(checkpoint, dim=-1)
    return torch.sum(p * (torch.log(p) - torch.log(q)), dim=-1)


@pytest.mark.parametrize(("spread", "noise"), [(3, 0.02), (3, 0.5), (6, 1.0), (8, 2.0)])
def test_it_is_bit_for_bit_what_the_published_script_gives(spread, noise):
    torch.manual_seed(1)
    problems, theirs = [], []
    for length in (7, 31, 64, 20, 5):
        base = (torch.randn(length, 2000) * spread).bfloat16()
        checkpoint = (base.float() + noise * torch.randn(length, 2000)).bfloat16()
        problems.append(bfloat16_divergence(base, checkpoint))
        theirs.append(authors(base, checkpoint))
        assert torch.equal(problems[-1].view(torch.int16), theirs[-1].view(torch.int16))
    (one,) = choose_metrics(["kl_paper_compat"])
    (found,) = one.function(problems)
    # torch.mean of the stacked means of the problems, all of them bfloat16.
    assert found.value == torch.mean(torch.stack([kl.mean() for kl in theirs])).item()
    assert one.version == 2


def test_a_logit_gap_of_100_loses_the_problem():
    base = torch.zeros(1, 8).bfloat16()
    base[0, 0] = 100.0
    checkpoint = base.clone()
    checkpoint[0, 0] = 99.0
    lost = bfloat16_divergence(base, checkpoint)
    assert lost.isnan().all()
    assert authors(base, checkpoint).isnan().all()
    found = estimate([0.5], lost.tolist(), [0.25])
    assert (found.value, found.n) == (0.375, 2)
    assert "1 of 3 problems" in found.note


def test_the_mean_over_problems_is_bfloat16():
    # In float64 it is 1.0052; bfloat16 has 1.0, 1.0078125 and nothing between.
    assert estimate([1.0], [1.0078125], [1.0078125]).value == 1.0078125


def test_it_is_the_kl_up_to_what_bfloat16_can_hold():
    torch.manual_seed(0)
    before = torch.randn(50, 3000) * 3
    after = before + torch.randn_like(before)
    exact = token_divergence(before, after, torch.arange(50)).forward.mean()
    ours = bfloat16_divergence(before.bfloat16(), after.bfloat16())
    assert ours.dtype == torch.bfloat16
    assert float(ours.float().mean()) == pytest.approx(float(exact), rel=0.05)


def test_the_norm_is_theirs_and_off_by_what_bfloat16_is():
    torch.manual_seed(0)
    w0 = (0.02 * torch.randn(513, 129)).bfloat16()
    wt = (w0.float() + 1e-3 * torch.randn(513, 129)).bfloat16()
    (compat,) = choose_metrics(["weights_paper_compat"])
    theirs = float(torch.norm(wt - w0) / torch.norm(w0))
    value = compat.function(w0, wt)
    assert value == theirs
    assert compat.function(w0.float(), wt.float()) == theirs
    exact = relative_frobenius(*update_sums(w0, wt), Training(None))
    assert value != exact
    assert value == pytest.approx(exact, rel=0.02)
    assert math.isnan(compat.function(torch.zeros(2, 2), torch.ones(2, 2)))


def test_the_norm_in_slices(monkeypatch):
    monkeypatch.setattr("mlflow_scalpel.metrics.paper_compat.SLICE", 100)
    torch.manual_seed(0)
    w0, wt = torch.randn(2, 37, 11).bfloat16()
    (compat,) = choose_metrics(["weights_paper_compat"])
    theirs = float(torch.norm(wt - w0) / torch.norm(w0))
    assert compat.function(w0, wt) == pytest.approx(theirs, rel=2**-7)
