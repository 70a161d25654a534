"""Links from MLflow's own pages to the views, as Markdown for descriptions.

They are relative, since nobody who logs a run knows under which name and prefix a server will be
reached: MLflow's UI is one page at the prefix's root, and `scalpel/` stands right beside it.
"""

from __future__ import annotations

DESCRIPTION_TAG = "mlflow.note.content"
_WHERE = (
    "(of a server that runs with `--app-name scalpel`; of any other one: "
    "`mlflow-scalpel ui --tracking-uri URI`)"
)


def run_note(run_id: str, text: str = "") -> str:
    """A run's description: `text`, and the link to its views."""
    link = f"[Views of this run](scalpel/overview?runs={run_id}) {_WHERE}"
    return f"{text.strip()}\n\n{link}" if text.strip() else link


def checkpoint_note(run_id: str, step: int) -> str:
    """A checkpoint's description: the link to its place among the checkpoints of its run."""
    address = f"scalpel/weights?runs={run_id}&by=step&at={step}"
    return f"[Step {step} among the checkpoints of its run]({address}) {_WHERE}"
