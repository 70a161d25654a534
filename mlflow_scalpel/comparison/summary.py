"""The few numbers of a checkpoint that MLflow's own charts show."""

from __future__ import annotations

import pandas as pd

from mlflow_scalpel.tensors.places import LAYER_PARTS, SMALL_PARTS

# Rows of these have no value though one was to be had; others are as they should be.
FAILED = (
    "not comparable", "not finite", "not measured", "not readable", "not supported", "refused",
)  # fmt: skip
CAPABILITIES = ("capabilities/in_domain_gain", "capabilities/out_of_domain_loss")


def coverage(table: pd.DataFrame) -> tuple[int, int, float | None]:
    """How many of a model's tensors were measured, of how many, and what share of its parameters.

    Measured are those too that are 0 in the base, which have no relative norm. The share is None
    where the elements of a row are not known, as of imported ones.
    """
    every = table[table["metric"] == "weights/relative_frobenius"]
    known = every[every["value"].notna() | (every["status"] == "undefined")]
    counted = len(every) > 0 and bool(every["n"].notna().all())
    share = float(known["n"].sum() / every["n"].sum()) if counted else None
    return len(known), len(every), share


def summarise(table: pd.DataFrame) -> dict[str, float]:
    """About 20 metrics of one checkpoint's tidy table, named so that the UI groups them.

    Mean over layers (and experts) of the relative Frobenius norm for each matrix, over all of them,
    and for each part outside of them that is large (embeddings, head, vision ...); the share of
    the parameters that was measured, where it is not all; the mean over the layers' matrices of the
    other weight metrics; each KL (`kl/all_tokens/<probe>`); each score (`eval/...`); in-domain gain
    and out-of-domain loss where the table has them. What has no value is left out.
    """
    ok = table[table["status"] == "ok"]
    norms = ok[ok["metric"] == "weights/relative_frobenius"]
    kind = norms["matrix"].str.replace(r"experts\.\d+\.", "experts.", regex=True)
    inside = ok["part"].isna() | ok["part"].isin(LAYER_PARTS)
    key = kind.where(inside[norms.index], norms["part"])
    summary = {
        f"weights/relative_frobenius/{name}": float(values.mean())
        for name, values in norms.groupby(key, sort=False)["value"]
        if name not in SMALL_PARTS
    }
    measured, tensors, share = coverage(table)
    if measured < tensors and share is not None:
        summary["weights/measured_share"] = share
    weights = ok[ok["metric"].str.startswith("weights/") & inside]
    for metric, values in weights.groupby("metric")["value"]:
        summary[f"{metric}/mean"] = float(values.mean())
    for row in ok[ok["metric"].isin(("kl/all_tokens", "kl/answer_tokens"))].itertuples():
        summary[f"{row.metric}/{str(row.texts).split()[0]}"] = float(row.value)
    scores = ok["metric"].str.startswith("eval/") | ok["metric"].isin(CAPABILITIES)
    for row in ok[scores].itertuples():
        summary[str(row.metric)] = float(row.value)
    return summary


def unmeasured(table: pd.DataFrame) -> str | None:
    """What of a run's tidy table could not be measured, at which steps and why; None if nothing."""
    bad = table[table["status"].isin(FAILED)]
    group = bad["metric"].str.split("/").str[0]
    told = []
    for (name, reason), rows in bad.groupby([group, "reason"], sort=False, dropna=False):
        steps = ", ".join(str(step) for step in sorted(rows["step"].dropna().unique()))
        about = "" if str(reason).startswith(f"{name}: ") else f"{name}: "
        told.append(f"at step {steps}: {about}{reason}")
    if not told:
        return None
    more = f"; and {len(told) - 3} more" if len(told) > 3 else ""
    return (
        f"not all could be measured: {'; '.join(told[:3])}{more}; the rest is there, and so are "
        "the checkpoints, which `mlflow-scalpel compare` can measure again"
    )
