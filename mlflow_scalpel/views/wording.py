"""What the figures call a metric, and what to run for one that a table lacks."""

from __future__ import annotations

from mlflow_scalpel.views.style import esc

#: metric -> (title, axis title with unit)
WORDS = {
    "weights/relative_frobenius": (
        "Relative norm of the update",
        "\u2016W\u209c \u2212 W\u2080\u2016 / \u2016W\u2080\u2016",
    ),
    "weights/relative_frobenius_per_lr": (
        "Relative norm, divided by the sum of learning rates so far",
        "relative norm / \u03a3 lr",
    ),
    "weights/update_rms": ("RMS of the update", "RMS(W\u209c \u2212 W\u2080)"),
    "weights/largest_change": ("Largest change of an element", "max |W\u209c \u2212 W\u2080|"),
    "weights/cosine_distance": ("Cosine distance of the weights", "1 \u2212 cos(W\u209c, W\u2080)"),
    "weights/unchanged": ("Elements that did not change", "fraction of elements"),
    "weights/unchanged_bfloat16": (
        "Elements that did not change, rounded to bfloat16",
        "fraction of elements",
    ),
    "weights_paper_compat/relative_frobenius": (
        "Relative norm of the update, in bfloat16 as the paper's authors compute it",
        "\u2016W\u209c \u2212 W\u2080\u2016 / \u2016W\u2080\u2016",
    ),
    "histograms/ulp_change": (
        "By how many units in the last place elements moved",
        "fraction of elements",
    ),
    "histograms/change_by_magnitude": (
        "Which elements changed, by their size in the base",
        "fraction changed",
    ),
    "spectra/update_spectral_norm": ("Spectral norm of the update", "\u2016\u0394W\u2016\u2082"),
    "spectra/stable_rank": (
        "Stable rank of the update",
        "\u2016\u0394W\u2016\u00b2 / \u2016\u0394W\u2016\u2082\u00b2",
    ),
    "spectra/effective_rank": ("Effective rank of the update", "effective rank"),
    "spectra/singular_value_drift": ("Drift of the singular values", "relative drift"),
    "pairs/update_cosine": ("Cosine of two runs' updates", "cosine of the updates"),
    "pairs/changed_overlap": (
        "Elements that both runs changed, against chance",
        "overlap / expected by chance",
    ),
    "attention/js": ("Attention: divergence of the rows", "Jensen-Shannon, nats"),
    "attention/entropy_change": ("Attention: change of the rows' entropy", "nats"),
    "attention/first_token_change": (
        "Attention: change of the weight on the first token",
        "attention weight",
    ),
    "attention/distance_change": ("Attention: change of the mean distance", "tokens"),
}

#: Metrics that can fall as well as rise: their colours part at 0.
SIGNED = (
    "pairs/update_cosine",
    "attention/entropy_change",
    "attention/first_token_change",
    "attention/distance_change",
)

#: group -> what follows `mlflow-scalpel compare BASE CHECKPOINT...`
TEXTS = " --texts problems.jsonl"
NEEDS = {
    "pairs": " (two runs or more of one base)",
    "attention": TEXTS,
    "kl": TEXTS,
    "kl_paper_compat": TEXTS,
    "kl_on_base_samples": TEXTS,
}


def words(metric: str) -> tuple[str, str]:
    """Title and axis title of a metric; its own name where none was written for it."""
    return WORDS.get(metric, (esc(metric, 60), esc(metric, 30)))


def to_run(group: str) -> str:
    """The command that measures a group of metrics, as safe text."""
    command = f"mlflow-scalpel compare BASE CHECKPOINT... --metrics {group}{NEEDS.get(group, '')}"
    return esc(command)


def absent(metric: str, where: str = "") -> str:
    """Safe text for a figure whose table has no rows of `metric`: what to run."""
    group = metric.split("/", 1)[0]
    place = f" {esc(where)}" if where.strip() else ""
    return f"This table has no rows of {esc(metric, 60)}{place}. To measure: {to_run(group)}"
