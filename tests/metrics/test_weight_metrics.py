"""Weight metrics against plain float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mlflow_scalpel.metrics import metrics_of_kind, weight_metric
from mlflow_scalpel.metrics.moments import SLICE, Training, update_moments
from mlflow_scalpel.metrics.relative_frobenius import relative_frobenius
from mlflow_scalpel.metrics.relative_frobenius_per_lr import relative_frobenius_per_lr
from mlflow_scalpel.metrics.update_rms import update_rms

UNKNOWN = Training(learning_rate_sum=None)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (513, 129), (SLICE // 64 + 3, 64), (5,)])
@pytest.mark.parametrize("dtypes", [("float32",) * 2, ("bfloat16",) * 2, ("float32", "float16")])
def test_against_numpy_in_float64(shape, dtypes):
    torch.manual_seed(0)
    w0 = torch.randn(shape).to(getattr(torch, dtypes[0]))
    wt = (w0.float() + 1e-2 * torch.randn(shape)).to(getattr(torch, dtypes[1]))
    before, after = w0.double().numpy(), wt.double().numpy()
    moments = update_moments(w0, wt)
    norm = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert relative_frobenius(moments, UNKNOWN) == pytest.approx(norm, rel=1e-10)
    rms = np.sqrt(np.mean((after - before) ** 2))
    assert update_rms(moments, UNKNOWN) == pytest.approx(rms, rel=1e-10)
    per_rate = relative_frobenius_per_lr(moments, Training(0.004))
    assert per_rate == pytest.approx(norm / 0.004, rel=1e-10)


def test_large_sums_keep_their_digits():
    """Float32 accumulation over this many elements is off by more than 1e-4."""
    w0 = torch.ones(4096, 2048)
    wt = w0 + 1e-3
    exact = float((torch.tensor(1.0) + 1e-3).double() - 1.0)
    assert relative_frobenius(update_moments(w0, wt), UNKNOWN) == pytest.approx(exact, rel=1e-12)


def test_a_matrix_of_zeros_has_no_relative_norm():
    zeros = torch.zeros(3, 3)
    moments = update_moments(zeros, torch.ones(3, 3))
    assert math.isnan(relative_frobenius(moments, UNKNOWN))
    assert math.isnan(relative_frobenius_per_lr(moments, Training(1.0)))
    assert update_rms(moments, UNKNOWN) == 1.0


def test_without_learning_rates_there_is_no_norm_per_rate():
    moments = update_moments(torch.ones(2), torch.ones(2) * 2)
    assert math.isnan(relative_frobenius_per_lr(moments, UNKNOWN))
    assert relative_frobenius_per_lr(moments, Training(0.0)) is None  # no step: does not apply


def test_what_did_not_change_has_norm_zero():
    weights = torch.randn(20, 20)
    assert relative_frobenius(update_moments(weights, weights.clone()), UNKNOWN) == 0.0


def test_denormals_count():
    tiny = torch.full((2, 2), 1e-40)
    assert relative_frobenius(update_moments(tiny, 2 * tiny), UNKNOWN) == pytest.approx(1.0)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3\) against the base's \(3, 2\)"):
        update_moments(torch.ones(3, 2), torch.ones(2, 3))


def test_registered_metrics_have_docstrings_and_unique_names():
    names = [metric.name for metric in metrics_of_kind("weights")]
    assert names == sorted(set(names))
    assert {name.split("/")[0] for name in names} == {"weights"}
    assert all(metric.function.__doc__ for metric in metrics_of_kind("weights"))
    with pytest.raises(ValueError, match="registered twice"):
        weight_metric(names[0], unit="x")(lambda moments, training: 0.0)
