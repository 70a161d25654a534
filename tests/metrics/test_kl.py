"""The group `kl` against direct computations in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import entropy

from mlflow_scalpel.metrics import choose_metrics
from mlflow_scalpel.metrics.compiling import compiled
from mlflow_scalpel.metrics.on_texts import Estimate
from mlflow_scalpel.metrics.token_divergence import TokenDivergence, token_divergence


def tokens(base: torch.Tensor, checkpoint: torch.Tensor) -> TokenDivergence:
    following = torch.arange(len(base)) % base.shape[1]
    following[-1] = -1
    return token_divergence(base, checkpoint, following)


@pytest.mark.parametrize("spread", [0.5, 4.0, 30.0, 200.0])
@pytest.mark.parametrize("change", [1e-5, 1e-3, 0.1, 10.0])
def test_against_scipy_in_float64(spread, change):
    torch.manual_seed(0)
    before = torch.randn(6, 1001) * spread
    after = before + change * torch.randn(6, 1001)
    log_p, log_q = (log_softmax(logits.double().numpy(), axis=-1) for logits in (before, after))
    p, q = np.exp(log_p), np.exp(log_q)
    found = tokens(before, after)

    def near(values):
        return pytest.approx(values, rel=1e-5, abs=1e-10)

    assert found.forward.numpy() == near((p * (log_p - log_q)).sum(-1))
    assert found.reverse.numpy() == near((q * (log_q - log_p)).sum(-1))
    log_m = np.logaddexp(log_p, log_q) - math.log(2.0)
    js = 0.5 * (p * (log_p - log_m) + q * (log_q - log_m)).sum(-1)
    assert found.js.numpy() == near(js)
    assert found.base_entropy.numpy() == pytest.approx(entropy(p, axis=-1), rel=1e-5, abs=1e-6)
    assert found.same_top.numpy() == pytest.approx((p.argmax(-1) == q.argmax(-1)).astype(float))
    right = [p[i, i] for i in range(5)], [q[i, i] for i in range(5)]
    assert found.base_right[:5].numpy() == pytest.approx(right[0], rel=1e-5)
    assert found.checkpoint_right[:5].numpy() == pytest.approx(right[1], rel=1e-5)
    assert math.isnan(found.base_right[5])


finite = st.floats(-300, 300, width=32)


@example([(63.0, 0.0), (65.0, 0.0)])  # all logits shift by more than the models differ
@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=30))
@example([(0.0, 0.0), (0.0, 0.0), (130.0, 1.0)])  # what the logits share is larger than d
@example([(0.1, 130.3), (0.2, 130.1), (0.4, 130.7)])
def test_divergences_are_never_negative_and_vanish_only_for_a_shift(pairs):
    before, after = torch.tensor(pairs).float().T[:, None].contiguous()
    found = tokens(before, after)
    assert float(found.forward) >= 0.0
    assert float(found.reverse) >= 0.0
    assert 0.0 <= float(found.js) <= math.log(2.0) * (1 + 1e-6)
    log_p, log_q = (log_softmax(logits.double().numpy()[0]) for logits in (before, after))
    exact = float((np.exp(log_p) * (log_p - log_q)).sum())
    assert float(found.forward) == pytest.approx(exact, rel=1e-5, abs=1e-8)


def test_of_a_model_with_itself_is_exactly_zero():
    logits = torch.randn(7, 50) * 20
    found = tokens(logits, logits)
    for values in (found.forward, found.reverse, found.js):
        assert torch.equal(values, torch.zeros(7, dtype=torch.float64))


def test_nan_is_not_hidden():
    logits = torch.randn(2, 50)
    broken = logits.clone()
    broken[0, 3] = math.nan
    found = tokens(logits, broken)
    assert math.isnan(found.forward[0])
    assert float(found.forward[1]) == 0.0
    (plain,) = choose_metrics(["kl/all_tokens"])
    (estimate,) = plain.function([found, tokens(logits, logits)])
    assert math.isnan(estimate.value)
    assert (estimate.bad, estimate.n) == (1, 2)


def made(values: list[float]) -> TokenDivergence:
    column = torch.tensor(values, dtype=torch.float64)
    return TokenDivergence(*[column] * 7)


def by_name(name: str, *texts: list[float]) -> list[Estimate]:
    (one,) = choose_metrics([name])
    return one.function([made(values) for values in texts])


def test_problems_weigh_the_same_however_long_they_are():
    (estimate,) = by_name("kl/all_tokens", [1.0], [2.0, 4.0, 6.0])
    assert estimate.value == 2.5
    assert estimate.stderr == pytest.approx(np.std([1.0, 4.0], ddof=1) / math.sqrt(2))


def test_gini_of_equal_and_of_single_tokens():
    assert by_name("kl/gini/all_tokens", [2.0, 2.0], [2.0])[0].value == 0.0
    assert by_name("kl/gini/all_tokens", [0.0] * 9, [5.0])[0].value == pytest.approx(0.9)
    assert math.isnan(by_name("kl/gini/all_tokens", [0.0], [0.0])[0].value)


def test_quantiles_pool_the_tokens_with_an_error_over_problems():
    texts = [[float(10 * text + token) for token in range(10)] for text in range(5)]
    found = {one.bin: one for one in by_name("kl/quantile/all_tokens", *texts)}
    assert found[0.5].value == pytest.approx(24.5)
    assert found[0.0].value == 0.0
    assert found[1.0].value == 49.0
    assert found[0.5].stderr > 1.0


def test_positions_fall_into_powers_of_two():
    found = by_name("kl/by_position/all_tokens", [1.0, 2.0, 3.0, 5.0, 7.0], [1.0])
    assert [(one.bin, one.value, one.n) for one in found] == [
        (0.0, 1.0, 2),
        (1.0, 2.0, 1),
        (2.0, 4.0, 1),
        (4.0, 7.0, 1),
    ]


def test_deciles_of_the_bases_entropy_hold_a_tenth_each():
    values = [float(value) for value in range(100)]
    found = by_name("kl/by_base_entropy/all_tokens", values)
    assert [one.bin for one in found] == [float(decile) for decile in range(1, 11)]
    assert [one.value for one in found] == pytest.approx([10 * d + 4.5 for d in range(10)])


@pytest.mark.slow
def test_compiled_numbers_are_the_same():
    torch.manual_seed(0)
    before = torch.randn(9, 2001) * 4
    after = before + 1e-3 * torch.randn(9, 2001)
    following = torch.arange(9)
    eager = token_divergence(before, after, following)
    fast = compiled(token_divergence)(before, after, following)
    for name in ("forward", "reverse", "js", "base_entropy", "same_top", "checkpoint_right"):
        assert getattr(fast, name).numpy() == pytest.approx(getattr(eager, name).numpy(), rel=1e-5)
    itself = compiled(token_divergence)(before, before.clone(), following)
    assert not itself.forward.any()
    assert not itself.js.any()
