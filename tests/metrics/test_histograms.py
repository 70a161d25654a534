"""The group `histograms` against numpy and math, an element at a time."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_scalpel.metrics import choose_metrics
from mlflow_scalpel.metrics.bits import ulps
from mlflow_scalpel.metrics.compiling import compiled
from mlflow_scalpel.metrics.histograms import ROW, Bin, UpdateCounts, count_changes, row_counts

HALVES = ("bfloat16", "float16")
DTYPES = [
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
    ("float32", "float32"),
    ("float64", "float64"),
    ("bfloat16", "float32"),
    ("float32", "bfloat16"),
    ("float16", "bfloat16"),
]


def order(weights: torch.Tensor) -> list[int]:
    """Each number's place among all of its dtype, counted from 0 upwards and downwards."""
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[weights.dtype.itemsize]
    signed = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weights.dtype.itemsize]
    sign = 1 << (8 * weights.dtype.itemsize - 1)
    found = weights.flatten().view(signed).numpy().view(bits).tolist()
    return [-(value - sign) if value >= sign else value for value in found]


def reference(w0: torch.Tensor, wt: torch.Tensor) -> UpdateCounts:
    """The definitions, in Python's integers."""
    moved, elements, changed = Counter(), Counter(), Counter()
    bad_base = bad = 0
    wide = torch.promote_types(w0.dtype, wt.dtype)
    signs = [math.copysign(1, value) for value in w0.flatten().tolist()]
    numbers = zip(
        w0.flatten().double().tolist(),
        wt.flatten().double().tolist(),
        order(w0),
        order(wt.to(w0.dtype)),
        [a == b for a, b in zip(order(w0.to(wide)), order(wt.to(wide)), strict=True)],
        [
            math.copysign(1, value) == sign
            for value, sign in zip(wt.flatten().tolist(), signs, strict=True)
        ],
        strict=True,
    )
    for before, after, place, now, same_place, same_sign in numbers:
        if not math.isfinite(before):
            bad_base += 1
        else:
            exponent = -150 if before == 0 else max(math.frexp(before)[1] - 1, -149)
            elements[exponent] += 1
            changed[exponent] += not (same_place and same_sign)
        if not (math.isfinite(before) and math.isfinite(after)):
            bad += 1
            continue
        steps = abs(now - place)
        moved[1 << (steps.bit_length() - 1) if steps else 0] += 1
    return UpdateCounts(
        w0.numel(), moved, elements, {k: changed[k] for k in elements}, bad_base, bad
    )


def drawn(shape: tuple[int, ...], dtypes: tuple[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of many magnitudes; a third does not move, and some turn round or vanish."""
    torch.manual_seed(0)
    w0 = torch.randn(shape) * 2.0 ** torch.randint(-12, 1, shape)
    wt = w0 + 1e-3 * torch.randn(shape)
    w0, wt = w0.to(getattr(torch, dtypes[0])), wt.to(getattr(torch, dtypes[1]))
    flat, moved = w0.view(-1), wt.view(-1)
    moved[::3] = flat[::3].to(wt.dtype)
    flat[5::97] = 0.0
    moved[6::89] = 0.0
    moved[7::101] = -moved[7::101]
    return w0, wt


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (65, 129), (5,), (0, 4)])
@pytest.mark.parametrize("dtypes", DTYPES)
def test_against_python_integers(shape, dtypes):
    w0, wt = drawn(shape, dtypes)
    assert count_changes(w0, wt) == reference(w0, wt)


numbers = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 1e-45, 1e-40, 3e38, -3e38, 6e-8, 65504.0, 1.0, 1.0000001]),
)


@settings(deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=40), st.sampled_from(DTYPES))
def test_any_numbers_at_all(pairs, dtypes):
    """Zeros of both signs, denormals, infinities, NaN."""
    before, after = torch.tensor(pairs, dtype=torch.float32).T
    w0, wt = before.to(getattr(torch, dtypes[0])), after.to(getattr(torch, dtypes[1]))
    assert count_changes(w0, wt) == reference(w0, wt)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6),
    st.sampled_from(HALVES),
    st.integers(0, 9),
)
def test_rows_at_once_count_what_elements_alone_do(pairs, dtype, rows):
    """The count that is compiled for whole matrices, as it is, with odd numbers in a few places."""
    w0, wt = drawn((rows * 2 * ROW + 77,), (dtype, dtype))
    for at, (before, after) in enumerate(pairs):
        w0[at * 1931 % len(w0)], wt[at * 1931 % len(wt)] = before, after
    assert count_changes(w0, wt, row_counts) == count_changes(w0, wt)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
def test_compiled_numbers_are_the_same(dtype):
    w0, wt = drawn((301, 129), (dtype, dtype))
    assert count_changes(w0, wt, compiled(row_counts)) == reference(w0, wt)


def test_rows_that_begin_at_an_odd_element():
    """Two neighbours cannot be read as one number there."""
    w0, wt = drawn((2 * ROW + 5,), ("bfloat16", "bfloat16"))
    assert count_changes(w0[1:], wt[1:], row_counts) == count_changes(w0[1:], wt[1:])


@settings(deadline=None)
@given(st.floats(width=16, allow_nan=False, allow_infinity=False))
def test_one_unit_in_the_last_place_is_the_next_number(value):
    here = torch.tensor([value], dtype=torch.float16)
    following = torch.from_numpy(np.nextafter(here.numpy(), np.float16(np.inf)))
    assert float(ulps(here, following)) == 1.0


def by_name(name: str, w0: torch.Tensor, wt: torch.Tensor) -> list[Bin]:
    (one,) = choose_metrics([name])
    return one.function(count_changes(w0, wt))


def test_fractions_of_a_matrix_and_of_a_bin():
    w0 = torch.tensor([1.0, 1.0, 1.5, 4.0, 0.0, -0.0]).bfloat16()
    wt = torch.tensor([1.0, 1.0 + 2**-7, 1.5 + 5 * 2**-7, 4.0, 0.0, 0.0]).bfloat16()
    moved = by_name("histograms/ulp_change", w0, wt)
    assert [(one.bin, one.n) for one in moved] == [(0.0, 6), (1.0, 6), (4.0, 6)]
    assert [Fraction(one.value).limit_denominator(9) for one in moved] == [
        Fraction(4, 6),
        Fraction(1, 6),
        Fraction(1, 6),
    ]
    chance = by_name("histograms/change_by_magnitude", w0, wt)
    # The zero whose sign changed did not move, but its bits did.
    assert [(one.bin, one.value, one.n) for one in chance] == [
        (-150.0, 0.5, 2),
        (0.0, pytest.approx(2 / 3), 3),
        (2.0, 0.0, 1),
    ]


def test_nan_and_infinities_are_told():
    w0 = torch.tensor([1.0, math.nan, 1.0, math.inf])
    wt = torch.tensor([1.0, 1.0, -math.inf, math.inf])
    *_, moved = by_name("histograms/ulp_change", w0, wt)
    assert (moved.bin, moved.bad, moved.n) == (None, 3, 4)
    *bins, chance = by_name("histograms/change_by_magnitude", w0, wt)
    assert (chance.bin, chance.bad, chance.n) == (None, 2, 4)
    assert [(one.bin, one.value, one.n) for one in bins] == [(0.0, 0.5, 2)]


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3\) against the base's \(3, 2\)"):
        count_changes(torch.ones(3, 2), torch.ones(2, 3))
