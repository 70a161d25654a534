"""The group `capabilities` against enumeration, simulation, and other people's tests."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from mlflow_scalpel.metrics import all_metrics
from mlflow_scalpel.metrics.capabilities.benchmark import Benchmark, digest_of, texts_of
from mlflow_scalpel.metrics.capabilities.exact_tests import changed_by_chance, mcnemar
from mlflow_scalpel.metrics.capabilities.gain_and_loss import (
    chosen,
    gain_loss_ratio,
    gain_loss_ratio_high,
    gain_loss_ratio_low,
    in_domain_gain,
    in_domain_gain_low,
    out_of_domain_loss,
    out_of_domain_loss_high,
)
from mlflow_scalpel.metrics.capabilities.intervals import (
    clustered_mean,
    exact_interval,
    ratio_interval,
    share_interval,
)
from mlflow_scalpel.metrics.capabilities.ledger import (
    amplified,
    gained,
    gained_null,
    gained_p,
    gold_loglik_change,
    gold_loglik_change_after_opening,
    kept,
    left_out,
    lost,
    lost_null,
    mcnemar_p,
    never,
    new,
    status_of,
)
from mlflow_scalpel.metrics.capabilities.rates import (
    base_pass_at_k,
    checkpoint_pass_at_k,
    crossing_k,
    crossing_k_high,
    crossing_k_low,
    pass_at_k,
    shown,
    success_rate,
    success_rate_high,
    success_rate_low,
)


def benchmark(base, checkpoint, **fields) -> Benchmark:
    """Of (P, k) right samples of each model."""
    before, after = np.asarray(base, dtype=bool), np.asarray(checkpoint, dtype=bool)
    unscored = np.full(len(before), math.nan)
    made = Benchmark(
        "in",
        "add",
        "sampled",
        "0123",
        before[:, 0],
        before.sum(axis=1),
        np.full(len(before), before.shape[1]),
        after[:, 0],
        after.sum(axis=1),
        np.full(len(after), after.shape[1]),
        *[unscored] * 4,
    )
    return dataclasses.replace(made, **fields)


def drawn(rates, k: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((len(rates), k)) < np.asarray(rates)[:, None]


pairs = st.integers(1, 12).flatmap(
    lambda n: st.tuples(*[st.lists(st.booleans(), min_size=n, max_size=n)] * 2)
)


@given(pairs)
def test_every_problem_has_one_status_and_the_counts_add_up(pair):
    before, after = (np.array(side) for side in pair)
    statuses = status_of(before, after)
    for base, right, status in zip(before, after, statuses, strict=True):
        expected = {(1, 1): "kept", (0, 1): "gained", (1, 0): "lost", (0, 0): "never"}
        assert status == expected[int(base), int(right)]
    made = benchmark(before[:, None], after[:, None])
    for name, function in (("kept", kept), ("gained", gained), ("lost", lost), ("never", never)):
        (found,) = function(made)
        assert found.value == (statuses == name).sum()
        assert found.n == len(before)
        share = found.value / found.n
        assert found.stderr == pytest.approx(math.sqrt(found.n * share * (1 - share)))


def test_several_samples_count_by_the_first():
    made = benchmark([[0, 1, 1], [1, 0, 0]], [[1, 0, 0], [0, 1, 1]])
    assert [one(made)[0].value for one in (kept, gained, lost, never)] == [0, 1, 1, 0]


def test_mcnemar_of_a_benchmark_takes_gained_and_lost():
    made = benchmark([[0]] * 8 + [[1]] * 12, [[1]] * 8 + [[0]] * 1 + [[1]] * 11)
    (found,) = mcnemar_p(made)
    assert found.value == pytest.approx(mcnemar(8, 1)) == pytest.approx(20 / 512)
    assert found.n == 20


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=6), min_size=1, max_size=8))
def test_the_null_is_the_mean_over_ordered_pairs_of_samples(rows):
    expected = sum(
        np.mean([(not a) and b for a, b in itertools.permutations(row, 2)]) for row in rows
    )
    right = np.array([sum(row) for row in rows])
    value = changed_by_chance(right, np.array([len(row) for row in rows])).sum()
    assert value == pytest.approx(expected)


def test_the_null_needs_two_samples_and_says_k():
    (found,) = gained_null(benchmark([[1], [0]], [[1], [1]]))
    assert (found.status, found.n) == ("not applicable", 2)
    assert "raise samples" in found.reason
    assert gained_p(benchmark([[1], [0]], [[1], [1]]))[0].status == "not applicable"
    made = benchmark([[1, 0, 0], [1, 1, 1]], [[1, 0, 0], [1, 1, 1]])
    for function in (gained_null, lost_null):
        (found,) = function(made)
        assert found.value == pytest.approx(1 * 2 / (3 * 2))
        assert "k = 3" in found.reason


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(case):
    right, n = case
    samples = [True] * right + [False] * (n - right)
    expected = [
        np.mean([any(subset) for subset in itertools.combinations(samples, k)])
        for k in range(1, n + 1)
    ]
    (found,) = pass_at_k(np.array([right]), np.array([n]), n)
    assert found == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_unbiased_where_the_plug_in_is_not():
    rng = np.random.default_rng(2)
    p, n, k = 0.15, 8, 4
    right = rng.binomial(n, p, size=40_000)
    truth = 1 - (1 - p) ** k
    ours = pass_at_k(right, np.full(len(right), n), k)[:, k - 1].mean()
    plug_in = (1 - (1 - right / n) ** k).mean()
    assert abs(ours - truth) < 0.006
    assert abs(plug_in - truth) > 0.02


def test_pass_at_k_of_many_samples_does_not_overflow():
    (found,) = pass_at_k(np.array([1]), np.array([4000]), 4000)
    assert found == pytest.approx(np.arange(1, 4001) / 4000)
    with pytest.raises(ValueError, match="pass@3 needs 3 samples"):
        pass_at_k(np.array([1]), np.array([2]), 3)


def test_the_curves_have_a_row_for_each_k_with_its_error():
    base, after = drawn([0.2, 0.5, 0.9, 0.0], 4, 3), drawn([0.6, 0.6, 0.6, 0.6], 4, 4)
    made = benchmark(base, after)
    for function, right in ((base_pass_at_k, base), (checkpoint_pass_at_k, after)):
        found = function(made)
        assert [one.bin for one in found] == [1, 2, 3, 4]
        assert found[0].value == pytest.approx(right.mean())
        means = right.mean(axis=1)
        assert found[0].stderr == pytest.approx(means.std(ddof=1) / 2)
        assert found[3].value == pytest.approx(right.any(axis=1).mean())
    assert shown(100) == [*range(1, 17), 32, 64, 100]
    assert shown(0) == []


def test_the_crossing_is_where_the_order_is_reversed():
    # The checkpoint is sure of half of the problems; the base knows all of them a little.
    base = np.array([[1, 0, 0, 0], [0, 1, 0, 0]] * 20)
    after = np.array([[1, 1, 1, 1], [0, 0, 0, 0]] * 20)
    (at,) = crossing_k(benchmark(base, after))
    curve = pass_at_k(base.sum(1), np.full(40, 4), 4).mean(0)
    assert list(curve) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert at.value == 3  # level at 2
    assert "the base comes to be ahead" in at.reason
    (low,), (high,) = (end(benchmark(base, after)) for end in (crossing_k_low, crossing_k_high))
    assert low.value == 2
    assert low.value <= at.value <= high.value <= 4
    (other,) = crossing_k(benchmark(after, base))
    assert other.value == 3
    assert "the checkpoint comes to be ahead" in other.reason


def test_no_crossing_is_none_found_up_to_k():
    better = benchmark(drawn([0.3] * 30, 4, 5), drawn([0.9] * 30, 4, 6))
    for function in (crossing_k, crossing_k_low, crossing_k_high):
        (found,) = function(better)
        assert found.status == "none found"
        assert "k = 4" in found.reason
        assert "the checkpoint is ahead beyond chance" in found.reason
    same = drawn([0.5] * 9, 4, 7)
    assert crossing_k(benchmark(same, same))[0].status == "none found"
    (single,) = crossing_k(benchmark([[1]], [[0]]))
    assert single.status == "not applicable"


def test_gained_problems_are_amplified_or_new_and_k_stands_beside():
    base = [[0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1]]
    after = [[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]]
    made = benchmark(base, after)
    (known,), (fresh,) = amplified(made), new(made)
    assert known.value == pytest.approx(1 / 3)
    assert known.value + fresh.value == pytest.approx(1.0)
    assert known.n == fresh.n == 3
    assert "k = 3" in known.reason
    assert "k = 3 samples, which is not unsolvable" in fresh.reason
    assert amplified(benchmark([[1, 1]], [[1, 1]]))[0].reason == "no problem was gained"
    assert "k = 1" in new(benchmark([[0]], [[1]]))[0].reason


def test_rates_are_clustered_and_their_intervals_exact():
    made = benchmark(drawn([0.5] * 25, 4, 1), after := drawn(np.linspace(0, 1, 25), 4, 2))
    (rate,), (low,), (high,) = (
        function(made) for function in (success_rate, success_rate_low, success_rate_high)
    )
    means = after.mean(axis=1)
    assert (rate.value, rate.stderr) == pytest.approx(clustered_mean(after.astype(float)))
    assert rate.stderr == pytest.approx(means.std(ddof=1) / 5)
    assert 0 <= low.value < rate.value < high.value <= 1


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_share_is_scipys_where_trials_are_independent(case):
    right, n = case
    rate = right / n
    expected = binomtest(right, n).proportion_ci(method="exact")
    found = exact_interval(rate, math.sqrt(rate * (1 - rate) / n), n)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert share_interval(rate, math.sqrt(rate * (1 - rate) / n), n) == pytest.approx(found)


def test_a_share_at_its_bound_has_an_interval_if_its_problems_are_counted():
    low, high = share_interval(1.0, 0.0, 3)
    expected = binomtest(3, 3).proportion_ci(method="exact")
    assert (low, high) == pytest.approx((expected.low, 1.0))
    assert math.isnan(share_interval(1.0, 0.0, math.nan)[0])
    assert math.isnan(share_interval(0.5, math.nan, 10)[0])
    # Every problem half right: the error over problems is 0, and nothing is as sure as that.
    low, high = share_interval(0.5, 0.0, 10)
    assert low < 0.3 < 0.7 < high


def test_gain_and_loss_are_paired_and_each_label_counts_once():
    rng = np.random.default_rng(5)
    base = drawn([0.4] * 50, 4, 1)
    inside = benchmark(base, base | (rng.random((50, 4)) < 0.5))
    greedy = dataclasses.replace(inside, kind="greedy")
    outside = benchmark(base, base & (rng.random((50, 4)) < 0.7), domain="out", label="facts")
    every = [greedy, inside, outside]
    assert chosen(every, "in") == [inside]
    (gain,), (loss,) = in_domain_gain(every), out_of_domain_loss(every)
    changes = (inside.right - inside.base_right) / 4
    assert gain.value == pytest.approx(changes.mean())
    assert gain.stderr == pytest.approx(changes.std(ddof=1) / math.sqrt(50))
    assert loss.value == pytest.approx(((outside.base_right - outside.right) / 4).mean())
    assert gain.texts == texts_of(inside)
    two = [inside, dataclasses.replace(inside, label="gcd", digest="other")]
    (mean,) = in_domain_gain(two)
    assert mean.value == pytest.approx(gain.value)
    assert mean.stderr == pytest.approx(gain.stderr / math.sqrt(2))
    assert mean.texts.startswith("in/add+gcd/sampled sha256:")
    (ratio,), (low,), (high,) = (
        function(every) for function in (gain_loss_ratio, gain_loss_ratio_low, gain_loss_ratio_high)
    )
    assert ratio.value == pytest.approx(loss.value / gain.value)
    assert low.value < ratio.value < high.value
    # It holds 0 where the loss's does: one verdict.
    (end,) = out_of_domain_loss_high(every)
    assert (high.value > 0) == (end.value > 0)
    assert in_domain_gain_low(every)[0].value > 0
    assert in_domain_gain([outside])[0].status == "not measured"
    assert "domain: out" in gain_loss_ratio([inside])[0].reason


def test_what_falls_in_the_domain_or_rises_outside_has_a_sign():
    base, checkpoint = np.zeros((40, 2), dtype=bool), np.zeros((40, 2), dtype=bool)
    base[:30], checkpoint[:10] = True, True
    (gain,) = in_domain_gain([benchmark(base, checkpoint)])
    assert gain.value == pytest.approx(-0.5)
    assert in_domain_gain_low([benchmark(base, checkpoint)])[0].value < gain.value
    (loss,) = out_of_domain_loss([benchmark(checkpoint, base, domain="out")])
    assert loss.value == pytest.approx(-0.5)
    assert (
        loss.value < out_of_domain_loss_high([benchmark(checkpoint, base, domain="out")])[0].value
    )


def test_no_ratio_where_nothing_was_surely_gained():
    base = drawn([0.5] * 30, 2, 1)
    same = benchmark(base, drawn([0.5] * 30, 2, 2))
    worse = benchmark(base, np.zeros_like(base))
    outside = dataclasses.replace(same, domain="out")
    for inside in (same, worse):
        (found,) = gain_loss_ratio([inside, outside])
        assert found.status == "not applicable"
        assert "is not above 0" in found.reason


# Denominators at least ten errors from 0, so that no draw's interval holds it; examples that are
# always the same, since one draw in many thousands lies outside of any bounds.
@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    st.floats(-2, 2), st.floats(0.05, 0.2), st.floats(2.0, 3.0), st.floats(0.05, 0.2), st.integers()
)
def test_the_interval_of_a_ratio_holds_it_as_often_as_it_says(top, top_error, down, error, seed):
    rng = np.random.default_rng(abs(seed))
    tops, downs = rng.normal(top, top_error, 2000), rng.normal(down, error, 2000)
    z = 1.959963984540054
    hits = [
        low <= top / down <= high
        for a, b in zip(tops, downs, strict=True)
        for low, high in [
            ratio_interval(
                (a, a - z * top_error, a + z * top_error), (b, b - z * error, b + z * error)
            )
        ]
    ]
    assert 0.93 < np.mean(hits) < 0.97
    # Of symmetric intervals it is Fieller's: the R with (a - R b)^2 = z^2 (ea^2 + R^2 eb^2).
    for end in ratio_interval(
        (top, top - z * top_error, top + z * top_error), (down, down - z * error, down + z * error)
    ):
        assert (top - end * down) ** 2 == pytest.approx(
            z**2 * (top_error**2 + end**2 * error**2), rel=1e-6
        )
    with pytest.raises(ValueError, match="too wide"):
        ratio_interval((top, top - 1, top + 1), (error, -error, 3 * error))


def test_gold_loglik_changes_are_of_lost_problems_only():
    base, after = [[1], [1], [1], [0]], [[0], [0], [1], [0]]
    made = benchmark(
        base,
        after,
        gold_loglik_base=np.array([-1.0, -2.0, -3.0, -4.0]),
        gold_loglik=np.array([-5.0, -4.0, 0.0, 0.0]),
        gold_loglik_after_opening_base=np.array([-0.5, math.nan, 0.0, 0.0]),
        gold_loglik_after_opening=np.array([-0.75, math.nan, 0.0, 0.0]),
    )
    (plain,) = gold_loglik_change(made)
    assert (plain.value, plain.n, plain.stderr) == pytest.approx((-3.0, 2, 1.0))
    (after_opening,) = gold_loglik_change_after_opening(made)
    assert (after_opening.value, after_opening.n) == (-0.25, 1)
    assert after_opening.reason == "1 of 2 lost problems have a value"
    unscored = benchmark(base, after)
    assert "set gold_loglik" in gold_loglik_change(unscored)[0].reason
    assert gold_loglik_change(benchmark([[0]], [[1]]))[0].reason == "no problem was lost"


def test_what_is_left_out_is_counted_with_its_reason():
    made = benchmark([[1]], [[1]], left_out=(("not graded", 2), ("answered by the base only", 1)))
    (found,) = left_out(made)
    assert (found.value, found.n) == (3, 4)
    assert found.reason == "2 not graded; 1 answered by the base only"


def test_nothing_graded_is_no_value_and_no_crash():
    empty = benchmark(np.zeros((0, 2)), np.zeros((0, 2)))
    for one in all_metrics():
        if one.group == "capabilities":
            for found in one.function([empty]):
                counted = one.name.rsplit("/")[-1] in (
                    "kept",
                    "gained",
                    "lost",
                    "never",
                    "left_out",
                )
                assert found.value == 0 if counted else found.status != "ok", one.name


def test_digests_do_not_depend_on_the_order():
    assert digest_of(["b", "a"]) == digest_of(["a", "b"]) != digest_of(["ab"])
