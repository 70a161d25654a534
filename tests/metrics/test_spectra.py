"""The group `spectra` against a plain float64 SVD."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_scalpel.metrics import choose_metrics
from mlflow_scalpel.metrics.spectra import BLOCK, CHUNK, Spectra, needed, prepare, singular_values

DTYPES = ("float32", "bfloat16", "float16", "float64")


def exact(matrix: torch.Tensor) -> np.ndarray:
    return np.linalg.svd(matrix.double().numpy(), compute_uv=False)


def measured(w0: torch.Tensor, wt: torch.Tensor) -> dict[str, float]:
    spectra = Spectra(w0, wt, lambda: singular_values(w0))
    return {one.name: one.function(spectra) for one in choose_metrics(["spectra"])}


def reference(w0: torch.Tensor, wt: torch.Tensor) -> dict[str, float]:
    before, after = exact(w0), exact(wt)
    update = exact(wt.double() - w0.double())
    shares = update[update > 0] / update.sum()
    return {
        "spectra/update_spectral_norm": update[0],
        "spectra/stable_rank": (update**2).sum() / update[0] ** 2,
        "spectra/effective_rank": math.exp(-(shares * np.log(shares)).sum()),
        "spectra/singular_value_drift": np.linalg.norm(after - before) / np.linalg.norm(before),
    }


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (BLOCK + 1, 2 * BLOCK + 3), (513, 129)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_numpy_in_float64(shape, dtype):
    torch.manual_seed(0)
    w0 = torch.randn(shape).to(getattr(torch, dtype))
    wt = (w0.float() + 0.1 * torch.randn(shape)).to(w0.dtype)
    for matrix in (w0, wt):
        wanted = exact(matrix)
        assert singular_values(matrix).numpy() == pytest.approx(wanted, abs=1e-6 * wanted[0])
    found, wanted = measured(w0, wt), reference(w0, wt)
    assert set(found) == set(wanted)
    for name, value in found.items():
        assert value == pytest.approx(wanted[name], rel=1e-6), name


def test_a_long_matrix_goes_in_chunks(monkeypatch):
    torch.manual_seed(0)
    matrix = torch.randn(41, 5)
    whole = singular_values(matrix)
    monkeypatch.setattr("mlflow_scalpel.metrics.spectra.CHUNK", 5 * 7)
    assert CHUNK > 41 * 5
    assert singular_values(matrix).numpy() == pytest.approx(whole.numpy(), rel=1e-12)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.integers(-30, 30))
def test_a_rank_is_found_whatever_the_size_of_the_numbers(rank, rows, columns, power):
    """The values that are 0 in theory stay below 1e-6 of the largest one."""
    torch.manual_seed(rank)
    factors = torch.randn(rows, rank).double(), torch.randn(rank, columns).double()
    matrix = (factors[0] @ factors[1]) * 2.0**power
    wanted = exact(matrix)
    assert singular_values(matrix).numpy() == pytest.approx(wanted, abs=1e-6 * wanted[0])


def test_the_drift_of_a_small_update_keeps_its_digits():
    """Float32 values are off by more than this update moves them."""
    torch.manual_seed(0)
    w0 = torch.randn(300, 200).double()
    wt = w0 + 1e-8 * torch.randn(300, 200).double()
    name = "spectra/singular_value_drift"
    assert measured(w0, wt)[name] == pytest.approx(reference(w0, wt)[name], rel=1e-4)
    rough = torch.linalg.svdvals(wt.float()) - torch.linalg.svdvals(w0.float())
    assert float(rough.norm() / torch.linalg.norm(w0)) > 2 * measured(w0, wt)[name]


def test_equal_directions_are_counted():
    w0 = torch.zeros(6, 8)
    wt = torch.zeros(6, 8)
    wt[:3, :3] = 2 * torch.eye(3)
    found = measured(w0, wt)
    assert found["spectra/effective_rank"] == pytest.approx(3.0, rel=1e-12)
    assert found["spectra/stable_rank"] == pytest.approx(3.0, rel=1e-12)
    assert found["spectra/update_spectral_norm"] == 2.0
    assert math.isnan(found["spectra/singular_value_drift"])  # zeros have nothing to drift from


def test_without_an_update_there_is_no_rank():
    w0 = torch.randn(5, 4)
    found = measured(w0, w0.clone())
    assert found["spectra/update_spectral_norm"] == 0.0
    assert found["spectra/singular_value_drift"] == 0.0
    assert math.isnan(found["spectra/stable_rank"])
    assert math.isnan(found["spectra/effective_rank"])


@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e38])
def test_denormals_and_giants(size):
    w0, wt = torch.zeros(3, 3), torch.full((3, 3), size)
    wanted = 3 * float(torch.tensor(size).double())
    assert measured(w0, wt)["spectra/update_spectral_norm"] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinities_are_refused(bad):
    matrix = torch.ones(4, 3)
    matrix[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        singular_values(matrix)


def test_an_empty_matrix_has_no_values():
    assert singular_values(torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_what_is_computed_side_by_side_is_the_same(threads):
    """Only what the functions need, W_0 once for all; and the threads are as before."""
    torch.manual_seed(0)
    w0 = torch.randn(40, 30)
    updates = [w0 + 0.1 * torch.randn(40, 30) for _ in range(3)]
    asked = []

    def base_values():
        asked.append(1)
        return alone

    alone = singular_values(w0)
    functions = {one.name: one.function for one in choose_metrics(["spectra"])}
    torch.set_num_threads(threads)
    try:
        many = [Spectra(w0, wt, base_values) for wt in updates]
        prepare(many, needed(functions.values()))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    assert asked == [1]
    assert set(many[0].known) == {"base", "checkpoint", "update"}
    for spectra, wt in zip(many, updates, strict=True):
        assert torch.equal(spectra.update, singular_values(wt, w0))
        assert torch.equal(spectra.checkpoint, singular_values(wt))
    few = Spectra(w0, updates[0], base_values)
    prepare([few], needed([functions["spectra/stable_rank"]]))
    assert set(few.known) == {"update"}


def test_what_cannot_be_computed_side_by_side_is_told_by_the_metric():
    w0, wt = torch.ones(4, 3), torch.full((4, 3), math.nan)
    spectra = Spectra(w0, wt, lambda: singular_values(w0))
    prepare([spectra], needed(one.function for one in choose_metrics(["spectra"])))
    assert set(spectra.known) == {"base"}
    with pytest.raises(ValueError, match="NaN or infinite"):
        spectra.update  # noqa: B018
