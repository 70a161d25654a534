"""What the figures call a metric, and what to run for one that a table lacks."""

from __future__ import annotations

from mlflow_scalpel.metrics import find_metric
from mlflow_scalpel.views.style import esc

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
    """Title and axis title of a metric, as it declares them; its name where nothing declares it."""
    known = find_metric(metric)
    return (esc(known.title), esc(known.axis)) if known else (esc(metric, 60), esc(metric, 30))


def is_signed(metric: str) -> bool:
    """Whether a metric can fall as well as rise: its colours part at 0."""
    known = find_metric(metric)
    return known is not None and known.signed


def to_run(group: str) -> str:
    """The command that measures a group of metrics, as safe text."""
    command = f"mlflow-scalpel compare BASE CHECKPOINT... --metrics {group}{NEEDS.get(group, '')}"
    return esc(command)


def absent(metric: str, where: str = "") -> str:
    """Safe text for a figure whose table has no rows of `metric`: what to run."""
    group = metric.split("/", 1)[0]
    place = f" {esc(where)}" if where.strip() else ""
    return f"This table has no rows of {esc(metric, 60)}{place}. To measure: {to_run(group)}"
