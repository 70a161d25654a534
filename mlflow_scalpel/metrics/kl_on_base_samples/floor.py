"""The noise floor of `kl`, over the base's own samples."""

from __future__ import annotations

from mlflow_scalpel.metrics.kl.floor import floor
from mlflow_scalpel.metrics.measured_on import SAMPLED_ANSWER
from mlflow_scalpel.metrics.registry import metric

metric(
    "kl_on_base_samples/floor/answer_tokens",
    title="Noise floor of the KL on the base's own samples",
    unit="nats/token",
    on=SAMPLED_ANSWER,
)(floor)
