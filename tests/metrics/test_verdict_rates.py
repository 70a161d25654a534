"""False verdicts where nothing changed, found ones where something did, and coverage of intervals.

By simulation with known truth, of the functions whose rows decide what card and findings say; the
same draws at each run. `benchmarks/verdicts.py` has more repetitions.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks import verdicts

REPETITIONS = 50
VERDICTS = (
    "change decided",
    "unpaired decided",
    "McNemar decided",
    "gained decided",
    "lost decided",
    "gained outside 2 errors",
    "lost outside 2 errors",
    "crossing found",
)
INTERVALS = ("change covered", "unpaired covered", "score covered", "pass@k covered")
EVERYWHERE = [
    (base, n, k) for base in verdicts.BASES for n in verdicts.SIZES for k in verdicts.SAMPLES
]


def most(rate: float, repetitions: int) -> float:
    """The largest share that 5 % of repetitions give by chance in all but one case of 10,000."""
    return float(binom.ppf(0.9999, repetitions, rate)) / repetitions


@pytest.fixture(scope="module")
def unchanged():
    return {
        (base, n, k): verdicts.simulate(base, "none", n, k, REPETITIONS)
        for base, n, k in EVERYWHERE
    }


def over_all(found, name: str) -> list[bool]:
    return [yes for one in found for yes in one.asked.get(name, [])]


def test_where_nothing_changed_at_most_one_verdict_in_twenty_is_given(unchanged):
    for name in VERDICTS:
        for place, found in unchanged.items():
            share = found.share(name)
            assert math.isnan(share) or share <= most(0.05, REPETITIONS), (name, place)
        every = over_all(unchanged.values(), name)
        rate = 0.0455 if "2 errors" in name else 0.05
        assert np.mean(every) <= most(rate, len(every)), name


def test_interval_and_test_give_one_verdict(unchanged):
    assert all(found.share("one verdict") == 1.0 for found in unchanged.values())


@pytest.mark.slow
def test_intervals_hold_the_truth(unchanged):
    changed = {
        (base, n, k): verdicts.simulate(base, "better", n, k, REPETITIONS)
        for base, n, k in EVERYWHERE
    }
    for cases in (unchanged, changed):
        for name in INTERVALS:
            for place, found in cases.items():
                share = found.share(name)
                assert math.isnan(share) or 1 - share <= most(0.05, REPETITIONS), (name, place)
            every = over_all(cases.values(), name)
            assert 1 - np.mean(every) <= most(0.05, len(every)), name


@pytest.mark.parametrize(
    ("base", "effect", "k", "name", "share"),
    [
        pytest.param("even", "better", 1, "change decided", 0.9, marks=pytest.mark.slow),
        pytest.param("even", "better", 6, "change decided", 0.98, marks=pytest.mark.slow),
        pytest.param("near 1", "forgotten", 2, "change decided", 0.7, marks=pytest.mark.slow),
        ("even", "better", 1, "McNemar decided", 0.9),
        pytest.param("even", "better", 2, "gained decided", 0.75, marks=pytest.mark.slow),
        pytest.param("near 1", "forgotten", 2, "lost decided", 0.8, marks=pytest.mark.slow),
        ("near 0", "mixed", 6, "gained decided", 0.95),
        # As many gained as lost, both more than chance: judged apart, not against each other.
        ("all or nothing", "mixed", 6, "lost decided", 0.5),
        ("even", "better", 2, "unpaired decided", 0.9),
    ],
)
def test_what_changed_is_found(base, effect, k, name, share):
    assert verdicts.simulate(base, effect, 100, k, 100).share(name) >= share


def test_a_true_crossing_is_found_where_it_is():
    found = verdicts.crossing(100, 16, 100)
    assert found.share("found") > 0.95
    assert found.share("covered") >= 1 - most(0.05, 100)


def test_the_ratio_of_loss_to_gain_is_covered():
    found = verdicts.ratio(100, 2, 200)
    assert found.share("given") > 0.95
    assert 1 - found.share("covered") <= most(0.05, 190)
