"""Weight metrics against plain float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlflow_scalpel.metrics import choose_metrics
from mlflow_scalpel.metrics import update_sums as update_sums_module
from mlflow_scalpel.metrics.compiling import compiled
from mlflow_scalpel.metrics.update_sums import (
    ROW,
    SLICE_ROWS,
    Pair,
    UpdateSums,
    added_update_sums,
    reduction,
    row_sums,
    untouched_sums,
    update_alone_sums,
    update_sums,
)
from mlflow_scalpel.metrics.weights import (
    NotKnown,
    Training,
    relative_frobenius,
    relative_frobenius_per_lr,
    update_rms,
)
from mlflow_scalpel.tensors.updates import Added, LowRank

UNKNOWN = Training(learning_rate_sum=None)


SHAPES = [(1, 1), (3, 7), (513, 129), (ROW * SLICE_ROWS // 64 + 3, 64), (5,), (0, 4)]


def reference(w0: torch.Tensor, wt: torch.Tensor) -> dict[str, float]:
    """Each metric's definition, in plain float64 with numpy."""
    before, after = w0.double().numpy().ravel(), wt.double().numpy().ravel()
    update = after - before
    with np.errstate(all="ignore"):
        turned = 1 - before @ after / (np.linalg.norm(before) * np.linalg.norm(after))
        wide = torch.promote_types(w0.dtype, wt.dtype)
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[wide.itemsize]
        same = w0.to(wide).view(bits) == wt.to(wide).view(bits)
        short = w0.bfloat16().view(torch.int16) == wt.bfloat16().view(torch.int16)
        return {
            "weights/relative_frobenius": np.linalg.norm(update) / np.linalg.norm(before),
            "weights/relative_frobenius_per_lr": np.linalg.norm(update)
            / np.linalg.norm(before)
            / 0.004,
            "weights/update_rms": np.sqrt(np.mean(update**2)) if len(update) else math.nan,
            "weights/largest_change": np.abs(update).max() if len(update) else 0.0,
            "weights/cosine_distance": turned,
            "weights/unchanged": float(same.double().mean()),
            "weights/unchanged_bfloat16": float(short.double().mean()),
        }


def numbers_of(sums: UpdateSums) -> list[float]:
    return [sums.numel, sums.unchanged, sums.unchanged_bfloat16, *sums.values.values()]


def check_all(w0: torch.Tensor, wt: torch.Tensor, **settings) -> None:
    (sums,) = update_sums(w0, wt, **settings)
    expected = reference(w0, wt)
    metrics = choose_metrics(["weights"])
    assert {one.name for one in metrics} == set(expected)
    for one in metrics:
        value = one.function(sums, Training(0.004))
        # A cosine near 1 has lost its own digits, the value computed from the update has not.
        slack = 1e-12 if one.name == "weights/cosine_distance" else 0.0
        wanted = pytest.approx(expected[one.name], rel=1e-6, abs=slack, nan_ok=True)
        assert value == wanted, one.name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "dtypes",
    [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("float32", "float16"),
        ("bfloat16", "float32"),
        ("float64", "float64"),
    ],
)
def test_every_metric_against_numpy_in_float64(shape, dtypes):
    torch.manual_seed(0)
    w0 = torch.randn(shape).to(getattr(torch, dtypes[0]))
    wt = (w0.float() + 1e-2 * torch.randn(shape)).to(getattr(torch, dtypes[1]))
    wt.view(-1)[::3] = w0.view(-1)[::3].to(wt.dtype)
    check_all(w0, wt)


numbers = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 1e-45, 1e-40, 3e38, -3e38, 1.0, 1.0000001]),
)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=40), st.booleans())
def test_any_numbers_at_all(pairs, repeat):
    """Zeros of both signs, denormals, infinities, NaN; alone, and in more than one row."""
    w0, wt = torch.tensor(pairs, dtype=torch.float32).T.contiguous()
    if repeat:
        w0, wt = w0.repeat(ROW // len(w0) + 1), wt.repeat(ROW // len(wt) + 1)
    (sums,), expected = update_sums(w0, wt), reference(w0, wt)
    for one in choose_metrics(["weights"]):
        if one.name == "weights/cosine_distance":
            continue  # its reference cancels
        value, wanted = one.function(sums, Training(0.004)), expected[one.name]
        if math.isinf(wanted) and math.isnan(value):
            assert not w0.any()  # zeros have no relative norm, and never an infinite one
            continue
        assert value == pytest.approx(wanted, rel=1e-6, nan_ok=True), one.name


def test_a_small_turn_keeps_its_digits():
    """1 - cosine of a turn by 1e-9 is 5e-19, which 1 minus a float64 cosine gives as 0."""
    w0, wt = torch.tensor([1.0, 0.0]).double(), torch.tensor([1.0, 1e-9]).double()
    (distance,) = choose_metrics(["weights/cosine_distance"])
    value = distance.function(*update_sums(w0, wt), UNKNOWN)
    assert value == pytest.approx(5e-19, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compiled_numbers_are_the_same(dtype):
    torch.manual_seed(0)
    w0 = torch.randn(700, 300).to(dtype)
    wt = (w0.float() + 1e-2 * torch.randn(700, 300)).to(dtype)
    wt[::2] = w0[::2]
    check_all(w0, wt, rows=compiled(row_sums))


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3, 5, 8])
def test_many_checkpoints_at_once_are_as_one_after_another(number):
    """Calls of one and of five, some of them filled up, in two dtypes, and float64 between them."""
    torch.manual_seed(0)
    w0 = torch.randn(700, 300).bfloat16()
    dtypes = [torch.bfloat16, torch.float32, torch.bfloat16, torch.float64, torch.float16]
    many = [
        (w0.double() + 10.0**-at * torch.randn(700, 300)).to(dtypes[at % 5 if number == 8 else 0])
        for at in range(number)
    ]
    for rows in (row_sums, compiled(row_sums)):
        together = update_sums(w0, *many, rows=rows)
        assert len(together) == number
        for sums, wt in zip(together, many, strict=True):
            (alone,) = update_sums(w0, wt)
            assert numbers_of(sums) == pytest.approx(numbers_of(alone), rel=1e-6)


def test_large_sums_keep_their_digits():
    """Float32 accumulation over this many elements is off by more than 1e-4."""
    w0 = torch.ones(4096, 2048)
    wt = w0 + 1e-3
    exact = float((torch.tensor(1.0) + 1e-3).double() - 1.0)
    assert relative_frobenius(*update_sums(w0, wt), UNKNOWN) == pytest.approx(exact, rel=1e-6)


def test_a_matrix_of_zeros_has_no_relative_norm():
    zeros = torch.zeros(3, 3)
    (sums,) = update_sums(zeros, torch.ones(3, 3))
    assert math.isnan(relative_frobenius(sums, UNKNOWN))
    assert math.isnan(relative_frobenius_per_lr(sums, Training(1.0)))
    assert update_rms(sums, UNKNOWN) == 1.0


def test_without_learning_rates_there_is_no_norm_per_rate():
    (sums,) = update_sums(torch.ones(2), torch.ones(2) * 2)
    with pytest.raises(NotKnown, match="learning rates of this model's training are not known"):
        relative_frobenius_per_lr(sums, UNKNOWN)
    assert relative_frobenius_per_lr(sums, Training(0.0)) is None  # no step: does not apply


def test_what_did_not_change_has_norm_zero():
    weights = torch.randn(20, 20)
    assert relative_frobenius(*update_sums(weights, weights.clone()), UNKNOWN) == 0.0


def test_denormals_count():
    tiny = torch.full((2, 2), 1e-40)
    assert relative_frobenius(*update_sums(tiny, 2 * tiny), UNKNOWN) == pytest.approx(1.0)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3\) against the base's \(3, 2\)"):
        update_sums(torch.ones(3, 2), torch.ones(2, 3))


def test_a_nan_in_one_slice_is_in_no_other_sum_lost():
    """What is summed in slices, because float32 cannot hold it, is NaN whichever slice has one."""
    w0 = torch.randn(4 * ROW * SLICE_ROWS)
    for at in (0, len(w0) - 1):
        wt = 2 * w0
        wt[at] = math.nan
        (sums,) = update_sums(w0, wt)
        for one in choose_metrics(["weights"]):
            assert math.isnan(one.function(sums, Training(1.0))) != ("unchanged" in one.name)


@pytest.fixture
def another(monkeypatch):
    """A sum that another package adds, with its metric."""
    monkeypatch.setattr(update_sums_module, "_REDUCTIONS", [*update_sums_module._REDUCTIONS])

    @reduction("sum")
    def absolute_update(pair: Pair) -> torch.Tensor:
        return pair.update.abs()

    @reduction("max", of_base=True)
    def largest_weight(pair: Pair) -> torch.Tensor:
        return pair.w0.abs()

    return absolute_update, largest_weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_sum_of_another_package_is_in_every_pass(another, dtype):
    absolute, largest = another
    torch.manual_seed(0)
    w0 = torch.randn(3 * ROW * SLICE_ROWS // 100 + 7, 100).to(dtype)
    many = [(w0.double() + scale * torch.randn_like(w0)).to(dtype) for scale in (1e-2, 1.0)]
    for sums, wt in zip(update_sums(w0, *many), many, strict=True):
        assert sums[absolute] == pytest.approx(float((wt.double() - w0.double()).abs().sum()))
        assert sums[largest] == float(w0.abs().max())
    low = LowRank(torch.randn(len(w0), 2).double(), torch.randn(2, 100).double())
    added = Added(w0, low, torch.float32)
    sums = added_update_sums(w0, added)
    assert sums[absolute] == pytest.approx(float((low.left @ low.right).abs().sum()))
    assert sums[largest] == float(w0.abs().max())
    alone = update_alone_sums(added)
    assert alone[absolute] == pytest.approx(sums[absolute])
    assert math.isnan(alone[largest])  # of weights that are not known
    assert untouched_sums()[absolute] == 0.0
