"""How far the output distribution moved from the base's, over training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mlflow_scalpel.views.common.panels import empty_figure
from mlflow_scalpel.views.common.table import Measurements, ordered
from mlflow_scalpel.views.common.text import Z, probe
from mlflow_scalpel.views.common.traces import lines_over_training
from mlflow_scalpel.views.common.view import Placement, X, compare, view
from mlflow_scalpel.views.common.wording import not_measured

TOKEN_SETS = {"kl/all_tokens": "all tokens", "kl/answer_tokens": "answer tokens"}
#: metric without its token set -> title
TITLES = {
    "kl": "KL(base \u2016 checkpoint)",
    "kl/reverse": "KL(checkpoint \u2016 base)",
    "kl/js": "Jensen-Shannon divergence of base and checkpoint",
}
BASE_SAMPLES = "kl_on_base_samples/answer_tokens"
NATS = "nats per token"
TEXTS = compare("kl --texts FILE")


def token_rows(data: Measurements, metric: str) -> pd.DataFrame:
    """The rows of `metric` (without its token set) of the runs, with `panel`, `probe`, `tokens`.

    Sorted by probe set, all tokens before answer tokens; `panel` names both, as plain text.
    """
    sets = {f"{metric}/{name.removeprefix('kl/')}": words for name, words in TOKEN_SETS.items()}
    rows = data.checkpoints(*sets)
    rows = rows[rows["layer"].isna()]
    probes = [probe(texts) for texts in rows["texts"]]
    tokens = [sets[metric] for metric in rows["metric"]]
    order = {name: i for i, name in enumerate(ordered(probes, ()))}
    rows = rows.assign(
        probe=pd.array(probes, dtype="str"),
        tokens=pd.array(tokens, dtype="str"),
        panel=pd.array([f"{a}: {b}" for a, b in zip(probes, tokens, strict=True)], dtype="str"),
        place=[order[name] for name in probes],
    )
    return rows.sort_values(["place", "tokens", "step"], kind="stable")


def no_tokens(metric: str) -> str:
    """Safe text for a figure whose table has no rows of either token set of `metric`."""
    return not_measured(f"{metric}/all_tokens", f" or {metric}/answer_tokens")


@dataclass(frozen=True)
class Reading:
    """A KL beside the noise floor of the dtype that it was measured in."""

    dtype: str
    """The dtype and its floor, in words: "" for float32, whose floor is 0."""
    undecided: str
    """Why the KL says nothing; "" where it lies above its floor."""


def reading(data: Measurements, row: Any) -> Reading:
    """How a row of KL stands to the noise floor of its dtype, on the same texts and tokens.

    The floor is KL(base in float32 || base in the dtype); a KL that is not above it by 1.96
    standard errors of both together may be rounding alone, and so is then how concentrated it is:
    of a row of `kl/gini/...` the KL of the same checkpoint and texts is asked. `row` is one of
    `itertuples`.
    """
    if row.dtype == "float32":
        return Reading("", "")
    if not row.dtype:
        why = "its dtype is not recorded, so its noise floor is not known"
        return Reading("dtype not recorded", why)
    if str(row.metric).startswith("kl/gini/"):
        kl = data.rows(str(row.metric).replace("/gini", ""))
        for column in ("run_id", "step", "texts", "dtype"):
            kl = kl[kl[column] == getattr(row, column)]
        kl = kl[kl["value"].notna()]
        if not len(kl):
            return Reading(row.dtype, f"the KL that it is of, in {row.dtype}, was not measured")
        row = next(kl.itertuples())
    group, tokens = str(row.metric).split("/", 1)
    floor = data.rows(f"{group}/floor/{tokens}")
    floor = floor[(floor["dtype"] == row.dtype) & (floor["texts"] == row.texts)]
    floor = floor[floor["value"].notna()]
    own = floor[(floor["run_id"] == row.run_id) & (floor["step"] == row.step)]
    floor = own if len(own) else floor  # it is of the base alone
    if not len(floor):
        why = f"the noise floor of {row.dtype} was not measured"
        return Reading(f"{row.dtype}, floor not measured", why)
    value, error = float(floor["value"].iloc[-1]), float(floor["stderr"].iloc[-1])
    error = 0.0 if pd.isna(error) else error
    within = f" \u00b1 {Z * error:.2g}" if error else ""
    text = f"{row.dtype}, noise floor {value:.2g}{within}"
    own_error = 0.0 if pd.isna(row.stderr) else float(row.stderr)
    if row.value - value > Z * math.hypot(own_error, error):
        return Reading(text, "")
    return Reading(text, f"it is not above the noise floor of {row.dtype}, {value:.2g}{within}")


@view(Placement("kl", 1, "KL over training", "kl/", TEXTS, settings=X))
def kl_over_training(
    data: Measurements,
    *,
    metric: str = "kl",
    x: str = "step",
    log_x: bool = False,
    log_y: bool = True,
) -> go.Figure:
    """KL(base || checkpoint) in nats per token against training, a line per run.

    `metric` is "kl", "kl/reverse" or "kl/js". A panel for each token set (all tokens, answer
    tokens) and probe set (first word of `texts`); all share the y axis. Bars are 1.96 standard
    errors over problems. The noise floor of the dtype (`kl/floor`) is a grey line under KL: a KL of
    its size says nothing. `x` is one of `axis.CHOICES`. On the logarithmic axis a KL of 0 has no
    place; pass `log_y=False` for one. Reads `run_id, algorithm, step, metric, value, stderr, n,
    unit, texts, status, reason`.

    Raises ValueError for another `x`, or if columns are missing.
    """
    title = TITLES.get(metric, metric)
    rows = token_rows(data, metric)
    rows = rows[rows["bin"] == ""]
    if not len(rows):
        return empty_figure(title, no_tokens(metric))
    return lines_over_training(
        data,
        rows,
        title=title,
        y_title=NATS,
        x=x,
        log_x=log_x,
        log_y=log_y,
        floors=token_rows(data, "kl/floor") if metric == "kl" else None,
    )


@view(
    Placement(
        "divergence",
        1,
        "KL on the base's own samples",
        "kl_on_base_samples/",
        compare("kl_on_base_samples --texts FILE"),
        settings=X,
    )
)
def kl_on_base_samples(
    data: Measurements, *, x: str = "step", log_x: bool = False, log_y: bool = True
) -> go.Figure:
    """KL(base || checkpoint) over tokens that the base sampled itself, against training.

    The divergence on what the base would have said; on texts of another author KL also counts how
    each model takes to that author. A panel per probe set, a line per run. Axes, bars and the grey
    line of the noise floor are those of `kl_over_training`. Reads the same columns of
    `kl_on_base_samples/answer_tokens`.

    Raises ValueError for another `x`, or if columns are missing.
    """
    title = "KL(base \u2016 checkpoint) on the base's own samples"
    rows = token_rows(data, "kl_on_base_samples")
    rows = rows[rows["bin"] == ""]
    if not len(rows):
        return empty_figure(title, not_measured(BASE_SAMPLES))
    return lines_over_training(
        data,
        rows,
        title=title,
        y_title=NATS,
        x=x,
        log_x=log_x,
        log_y=log_y,
        floors=token_rows(data, "kl_on_base_samples/floor"),
    )


@view(Placement("divergence", 5, "concentration of KL", "kl/gini", TEXTS, settings=X))
def kl_concentration(data: Measurements, *, x: str = "step", log_x: bool = False) -> go.Figure:
    """Whether few tokens carry the KL: Gini coefficient over tokens, against training.

    0 where every token has the same KL, near 1 where few have all of it. A panel for each token and
    probe set, a line per run; bars are 1.96 standard errors over problems. Reads the same columns
    as `kl_over_training`, of `kl/gini`.

    Raises ValueError for another `x`, or if columns are missing.
    """
    title = "How concentrated the KL is"
    rows = token_rows(data, "kl/gini")
    if not len(rows):
        return empty_figure(title, no_tokens("kl/gini"))
    figure = lines_over_training(
        data,
        rows,
        title=title,
        subtitle="1: few tokens carry all of it; 0: all tokens alike",
        y_title="Gini coefficient over tokens",
        x=x,
        log_x=log_x,
        log_y=False,
    )
    figure.update_yaxes(range=[-0.02, 1.04])
    return figure
