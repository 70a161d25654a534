"""What the figures call a metric, and the command for one that is missing in a table."""

from __future__ import annotations

from mlflow_scalpel.metrics import find_metric
from mlflow_scalpel.views.common.text import esc

#: group -> what follows `mlflow-scalpel compare BASE CHECKPOINT...`
TEXTS = " --texts problems.jsonl"
REQUIREMENTS = {
    "pairs": " (two runs or more of one base)",
    "attention": TEXTS,
    "kl": TEXTS,
    "kl_paper_compat": TEXTS,
    "kl_on_base_samples": TEXTS,
}


def titles_of(metric: str) -> tuple[str, str]:
    """Title and axis title of a metric, as it declares them; its name where nothing declares it."""
    known = find_metric(metric)
    return (esc(known.title), esc(known.axis)) if known else (esc(metric, 60), esc(metric, 30))


def is_signed(metric: str) -> bool:
    """Whether a metric can fall as well as rise: its colours part at 0."""
    known = find_metric(metric)
    return known is not None and known.signed


def command_for(group: str) -> str:
    """The command that measures a group of metrics, as safe text."""
    more = REQUIREMENTS.get(group, "")
    return esc(f"mlflow-scalpel compare BASE CHECKPOINT... --metrics {group}{more}")


def not_measured(metric: str, where: str = "") -> str:
    """Safe text for a figure whose table has no rows of `metric`: what to run."""
    place = f" {esc(where)}" if where.strip() else ""
    command = command_for(metric.split("/", 1)[0])
    return f"This table has no rows of {esc(metric, 60)}{place}. To measure: {command}"


def no_checkpoint(step: float | None) -> str:
    """Safe text for a figure without rows at the step that was asked for."""
    return f"No run has a checkpoint at step {step}."
