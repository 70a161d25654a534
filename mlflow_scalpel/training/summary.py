"""The few numbers and the picture of a checkpoint that MLflow's own charts show."""

from __future__ import annotations

from typing import Any

import pandas as pd

CAPABILITIES = ("capabilities/in_domain_gain", "capabilities/out_of_domain_loss")


def summarise(table: pd.DataFrame) -> dict[str, float]:
    """About 18 metrics of one checkpoint's tidy table, named so that the UI groups them.

    Mean over layers of the relative Frobenius norm for each matrix and over all; the mean over all
    of the other weight metrics; each KL (`kl/all_tokens/<probe>`); in-domain gain and out-of-domain
    loss where the table has them. What has no value is left out.
    """
    ok = table[table["status"] == "ok"]
    norms = ok[ok["metric"] == "weights/relative_frobenius"]
    summary = {
        f"weights/relative_frobenius/{matrix}": float(values.mean())
        for matrix, values in norms.groupby("matrix", sort=False)["value"]
    }
    weights = ok[ok["metric"].str.startswith("weights/")]
    for metric, values in weights.groupby("metric")["value"]:
        summary[f"{metric}/mean"] = float(values.mean())
    for row in ok[ok["metric"].isin(("kl/all_tokens", "kl/answer_tokens"))].itertuples():
        summary[f"{row.metric}/{str(row.texts).split()[0]}"] = float(row.value)
    for row in ok[ok["metric"].isin(CAPABILITIES)].itertuples():
        summary[str(row.metric)] = float(row.value)
    return summary


def heatmap_image(table: pd.DataFrame, step: int, maximum: float) -> Any:
    """The layer x matrix heat map of one checkpoint on the scale [0, maximum], as a picture."""
    from mlflow_scalpel.views import weight_heatmap
    from mlflow_scalpel.views.png import to_image

    # Of a size that MLflow shows whole beside other runs' pictures.
    return to_image(weight_heatmap(table, step=step, maximum=maximum), width=760)
