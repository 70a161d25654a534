"""The group `pairs` against plain computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_scalpel.metrics import choose_metrics
from mlflow_scalpel.metrics.histograms import SLICE
from mlflow_scalpel.metrics.pairs import count_pair

Values = dict[tuple[str, float | None], tuple[float, int]]


def measured(w0: torch.Tensor, wa: torch.Tensor, wb: torch.Tensor) -> Values:
    paired = count_pair(w0, wa, wb)
    return {
        (one.name, bar.bin): (bar.value, bar.n)
        for one in choose_metrics(["pairs"])
        for bar in one.function(paired)
        if not bar.bad
    }


def reference(w0: torch.Tensor, wa: torch.Tensor, wb: torch.Tensor) -> Values:
    before = w0.double().numpy().ravel()
    first, second = (after.double().numpy().ravel() - before for after in (wa, wb))
    found: Values = {}
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(first) * np.linalg.norm(second)
        found["pairs/update_cosine", None] = float(np.dot(first, second) / lengths), len(before)
        ok = np.isfinite(before)
        exponents = np.where(before == 0, -150, np.frexp(before)[1] - 1)
        # Signed zeros apart, other bits are other values; NaN never stays as it was here.
        moved = [
            (after.double().numpy().ravel() != before)
            | (np.signbit(after.double().numpy().ravel()) != np.signbit(before))
            for after in (wa, wb)
        ]
        observed = expected = 0.0
        for exponent in np.unique(exponents[ok]):
            inside = ok & (exponents == exponent)
            a, b = (one[inside].sum() for one in moved)
            both, chance = (moved[0] & moved[1])[inside].sum(), a * b / inside.sum()
            observed, expected = observed + both, expected + chance
            value = both / chance if chance else math.nan
            found["pairs/changed_overlap", float(exponent)] = float(value), int(inside.sum())
        total = observed / expected if expected else math.nan
        found["pairs/changed_overlap_total", None] = float(total), len(before)
    return found


def check(w0: torch.Tensor, wa: torch.Tensor, wb: torch.Tensor) -> None:
    found, wanted = measured(w0, wa, wb), reference(w0, wa, wb)
    assert set(found) == set(wanted)
    for key, (value, n) in found.items():
        assert n == wanted[key][1], key
        assert value == pytest.approx(wanted[key][0], rel=1e-6, abs=1e-15, nan_ok=True), key


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (SLICE // 64 + 3, 64), (5,)])
@pytest.mark.parametrize(
    "dtypes",
    [
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float32", "float32", "float32"),
        ("float16", "float32", "float16"),
    ],
)
def test_against_numpy_in_float64(shape, dtypes):
    torch.manual_seed(0)
    types = [getattr(torch, name) for name in dtypes]
    w0 = torch.randn(shape).to(types[0])
    after = []
    for dtype in types[1:]:
        moves = torch.rand(shape) < 0.4
        wt = torch.where(moves, w0.float() + 0.1 * torch.randn(shape), w0.float())
        after.append(wt.to(dtype))
    check(w0, *after)


numbers = st.one_of(
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.sampled_from([0.0, -0.0, 1e-45, 1e-40, 1.0, 1.0000001]),
)


@settings(deadline=None)
@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=40))
def test_any_finite_numbers(triples):
    check(*torch.tensor(triples, dtype=torch.float32).T.contiguous())


def test_the_same_update_is_at_1_and_its_opposite_at_minus_1():
    torch.manual_seed(0)
    w0, update = torch.randn(2, 50, 50).double()
    cosine = "pairs/update_cosine", None
    assert measured(w0, w0 + update, w0 + update)[cosine][0] == pytest.approx(1.0, rel=1e-12)
    assert measured(w0, w0 + update, w0 - update)[cosine][0] == pytest.approx(-1.0, rel=1e-12)
    assert math.isnan(measured(w0, w0, w0 + update)[cosine][0])


def test_what_magnitude_alone_explains_is_chance():
    """Both change small weights and leave large ones: 2 times chance over all, 1 within bins."""
    torch.manual_seed(0)
    w0 = torch.cat([torch.full((20000,), 0.01), torch.full((20000,), 1.0)])
    small = torch.arange(40000) < 20000
    after = [torch.where(small & (torch.rand(40000) < 0.5), 2 * w0, w0) for _ in range(2)]
    moved = [one != w0 for one in after]
    plain = (moved[0] & moved[1]).float().mean() / moved[0].float().mean() / moved[1].float().mean()
    assert plain == pytest.approx(2.0, rel=0.05)
    assert measured(w0, *after)["pairs/changed_overlap_total", None][0] == pytest.approx(
        1.0, rel=0.05
    )


def test_nan_and_infinities_are_told():
    w0 = torch.tensor([1.0, math.nan, math.inf, 1.5])
    paired = count_pair(w0, torch.ones(4), torch.ones(4))
    (overlap,) = choose_metrics(["pairs/changed_overlap"])
    bar, bad = overlap.function(paired)
    assert (bar.bin, bar.value, bar.n) == (0.0, 2.0, 2)
    assert (bad.bin, bad.bad, bad.n) == (None, 2, 4)
    (cosine,) = choose_metrics(["pairs/update_cosine"])
    assert math.isnan(cosine.function(paired)[0].value)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3\) against the base's \(3, 2\)"):
        count_pair(torch.ones(3, 2), torch.ones(3, 2), torch.ones(2, 3))
