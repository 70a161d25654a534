"""The tests and intervals behind verdicts, against enumeration, SciPy and published examples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import barnard_exact, binom, binomtest, permutation_test

from mlflow_scalpel.metrics.capabilities import exact_tests
from mlflow_scalpel.metrics.capabilities.exact_tests import (
    inverted,
    mcnemar,
    sign_flip_p,
    unchanged,
)
from mlflow_scalpel.metrics.capabilities.gain_and_loss import paired_change
from mlflow_scalpel.metrics.capabilities.intervals import combined, mover, unpaired_interval
from mlflow_scalpel.metrics.capabilities.overall import (
    overall_gained,
    overall_gained_p,
    overall_lost,
    overall_lost_null,
    overall_mcnemar_p,
)
from mlflow_scalpel.metrics.capabilities.rates import reversal
from tests.metrics.test_capabilities import benchmark

small = st.lists(st.integers(-3, 3), min_size=1, max_size=9)


def flips(values: list[float]) -> float:
    """Two-sided p of all 2^n flips of sign."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= abs(sum(values)) - 1e-9))


@given(small, small)
def test_sign_flips_are_those_of_every_flip(one, other):
    assert sign_flip_p([(np.array(one), 3 * len(one))]) == pytest.approx(flips(one))
    both = [(np.array(one), 4 * len(one)), (np.array(other), 6 * len(other))]
    values = [v / (4 * len(one)) for v in one] + [v / (6 * len(other)) for v in other]
    assert sign_flip_p(both) == pytest.approx(flips(values))


def test_sign_flips_are_scipys_and_mcnemars():
    rng = np.random.default_rng(3)
    changes = rng.integers(-6, 7, 12)
    theirs = permutation_test(
        (changes,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert sign_flip_p([(changes, 6 * 12)]) == pytest.approx(theirs)
    # One sample a problem: 25 gained and 9 lost of 100.
    single = np.array([1] * 25 + [-1] * 9 + [0] * 66)
    assert sign_flip_p([(single, 100)]) == pytest.approx(mcnemar(25, 9))
    assert sign_flip_p([(np.zeros(5, dtype=int), 5)]) == 1.0
    # Agresti, Categorical Data Analysis (2002), table 10.1: 150 against 86 changed their minds.
    assert mcnemar(150, 86) == pytest.approx(3.7e-5, rel=0.02)


def test_drawn_flips_agree_with_exact_ones(monkeypatch):
    changes = np.random.default_rng(4).integers(-6, 8, 40)
    exact = sign_flip_p([(changes, 6 * 40)])
    monkeypatch.setattr(exact_tests, "EXACT_TO", 1)
    assert sign_flip_p([(changes, 6 * 40)]) == pytest.approx(exact, abs=0.01)


def test_four_changed_problems_of_a_hundred_at_a_ceiling_decide_nothing():
    base = np.ones((100, 2), dtype=bool)
    base[:4, 0] = False
    found = paired_change([benchmark(base, np.ones((100, 2)))])
    assert found.value == pytest.approx(0.02)
    assert found.p == pytest.approx(0.125)  # 2 of the 16 flips
    assert found.low <= 0.0 < found.high
    base[:6, 0] = False
    found = paired_change([benchmark(base, np.ones((100, 2)))])
    assert found.p == pytest.approx(2 / 64)
    assert found.low > 0.0


def test_nothing_changed_is_an_interval_and_not_a_point():
    same = np.ones((20, 3), dtype=bool)
    found = paired_change([benchmark(same, same)])
    assert (found.value, found.stderr, found.p) == (0.0, 0.0, 1.0)
    high = binomtest(0, 20).proportion_ci(method="exact").high
    assert (found.low, found.high) == pytest.approx((-high, high))


cells = st.integers(2, 14).flatmap(
    lambda n: st.tuples(
        *[st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=n, max_size=n)] * 2
    )
)


@settings(deadline=None, max_examples=60)
@given(cells)
def test_interval_and_test_give_one_verdict(pair):
    found = paired_change([benchmark(*pair)])
    assert (found.p <= 0.05) == (not found.low <= 0.0 <= found.high)
    assert found.low <= found.value <= found.high


def test_the_inverted_test_is_that_of_every_shift():
    changes = np.array([3, 2, 2, 1, 1, 1, 0, -1])
    low, high = inverted([(changes, 3 * 8)])
    for end in (low, high):  # rejected a little outside, and not inside
        outside = end + (0.02 if end == high else -0.02)
        assert flips(list(changes / 3 - outside)) <= 0.08
        inside = end - (0.05 if end == high else -0.05)
        assert flips(list(changes / 3 - inside)) > 0.05


def test_unpaired_intervals_agree_with_independent_exact_tests():
    # (right, of) before and after; p of SciPy's Barnard's exact test, which is of two independent
    # shares as well. 10 of 10 against 6 of 10 looks like a change, and is not told from chance.
    for before, after in (((6, 10), (10, 10)), ((48, 80), (56, 70)), ((3, 10), (9, 10))):
        shares = [(k / n, math.sqrt(k * (n - k) / n**3), n) for k, n in (before, after)]
        low, high = unpaired_interval(*shares)
        assert low < shares[1][0] - shares[0][0] < high
        table = [[before[0], after[0]], [before[1] - before[0], after[1] - after[0]]]
        if low > 0:
            assert barnard_exact(table).pvalue < 0.05
    assert unpaired_interval((0.6, math.sqrt(0.024), 10), (1.0, 0.0, 10))[0] < 0
    # Newcombe (1998), table II, method 10, of Wilson intervals: 56/70 - 48/80 is 0.0524 to 0.3339;
    # of exact ones it is a little wider.
    shares = [(0.6, math.sqrt(0.24 / 80), 80), (0.8, math.sqrt(0.16 / 70), 70)]
    low, high = unpaired_interval(*shares)
    assert 0.0324 < low < 0.0524
    assert 0.3339 < high < 0.3539


def test_combined_intervals_of_normal_estimates_add_in_squares():
    low, high = combined(0.5, [(0.4, (0.1, 0.7)), (0.6, (0.2, 1.0))])
    assert (low, high) == pytest.approx((0.25, 0.75))
    assert mover(np.array([1.0] * 10 + [-1.0] * 10))[0] < 0 < mover(np.array([1.0, -1.0] * 10))[1]


def dealt(base, after, *, lost: bool) -> tuple[float, list[float]]:
    """The excess of changed problems over the base's own, and that of every way to deal anew."""

    def excess(before, later) -> float:
        total = 0.0
        for b, c in zip(before, later, strict=True):
            k = len(b)
            total += (b[0] and not c[0]) if lost else (c[0] and not b[0])
            total -= sum(b) * (k - sum(b)) / (k * (k - 1))
        return total

    ways = []
    for one in itertools.product(
        *[list(itertools.permutations([*b, *c])) for b, c in zip(base, after, strict=True)]
    ):
        k = len(base[0])
        ways.append(excess([row[:k] for row in one], [row[k:] for row in one]))
    return excess(base, after), ways


@settings(deadline=None, max_examples=15)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=3),
       st.booleans())  # fmt: skip
def test_the_unchanged_model_is_every_way_to_deal_the_samples(rows, lost):
    base, after = [row[:2] for row in rows], [row[2:] for row in rows]
    observed, ways = dealt(base, after, lost=lost)
    found = unchanged([benchmark(base, after)], lost=lost)
    tails = np.mean(np.array(ways) <= observed + 1e-9), np.mean(np.array(ways) >= observed - 1e-9)
    assert found.p == pytest.approx(min(1.0, 2 * min(tails)))
    assert np.mean(ways) == pytest.approx(0.0, abs=1e-9)
    assert found.scatter >= np.std(ways) - 1e-9
    count = observed + found.expected
    assert (found.p <= 0.05) == (not found.low - 1e-9 <= count <= found.high + 1e-9)


def test_overall_counts_are_sums_with_tests_of_their_own():
    rng = np.random.default_rng(6)
    base = rng.random((60, 3)) < 0.8
    gone = benchmark(base, np.zeros((60, 3)), domain="out", label="facts")
    better = benchmark(~base, np.ones((60, 3)))
    greedy = benchmark(~base, np.ones((60, 3)), kind="greedy")
    every = [better, greedy, gone]
    (lost,), (gained,) = overall_lost(every), overall_gained(every)
    assert (lost.value, gained.value) == (base[:, 0].sum(), base[:, 0].sum())
    assert lost.n == 120
    assert lost.texts.startswith("in+out/add+facts/sampled sha256:")
    assert overall_mcnemar_p(every)[0].value == 1.0  # as many gained as lost
    assert overall_gained_p(every)[0].value < 0.01  # and both beyond chance
    (null,) = overall_lost_null(every)
    assert lost.value > null.value + 2 * null.stderr
    assert "k = 3 samples" in null.reason


def test_no_crossing_where_one_lead_may_be_chance():
    # The checkpoint leads at k = 1; at k = 2 the base does by one problem of 30.
    differences = np.zeros((30, 2))
    differences[:20, 0] = 0.5
    differences[29, 1] = -1.0
    found = reversal(differences)
    assert math.isinf(found.k)
    assert found.leader == 1.0
    assert found.of_means == 2.0
    differences[10:, 1] = -1.0
    assert reversal(differences).k == 2.0


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_exact_binomial_test(up, down):
    p = mcnemar(up, down)
    if up + down:
        assert p == pytest.approx(binomtest(up, up + down, 0.5).pvalue)
        # Symmetric, so twice the smaller tail.
        assert p == pytest.approx(min(1.0, 2 * binom.cdf(min(up, down), up + down, 0.5)))
    else:
        assert p == 1.0
