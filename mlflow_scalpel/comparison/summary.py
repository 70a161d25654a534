"""The few numbers of a checkpoint that MLflow's own charts show."""

from __future__ import annotations

import pandas as pd

CAPABILITIES = ("capabilities/in_domain_gain", "capabilities/out_of_domain_loss")


def summarise(table: pd.DataFrame) -> dict[str, float]:
    """About 18 metrics of one checkpoint's tidy table, named so that the UI groups them.

    Mean over layers of the relative Frobenius norm for each matrix and over all; the mean over all
    of the other weight metrics; each KL (`kl/all_tokens/<probe>`); each score (`eval/...`);
    in-domain gain and out-of-domain loss where the table has them. What has no value is left out.
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
    scores = ok["metric"].str.startswith("eval/") | ok["metric"].isin(CAPABILITIES)
    for row in ok[scores].itertuples():
        summary[str(row.metric)] = float(row.value)
    return summary
