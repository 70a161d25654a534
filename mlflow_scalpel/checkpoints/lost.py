"""How it is said that checkpoints of a run are not stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow_scalpel.checkpoints.log import Upload

LOST = "checkpoints_lost"  # code of the warning


def said_of_lost(lost: Mapping[int, str], stored: int) -> str:
    """One sentence about checkpoints that were lost, beside `stored` that were not."""
    steps = ", ".join(str(step) for step in lost)
    others = "1 other is" if stored == 1 else f"{stored} others are"
    kept = f"; {others}" if stored else "; no other is"
    return f"the checkpoints of step {steps} are not stored{kept}: {next(iter(lost.values()))}"


def lost_among(uploads: Mapping[int, Upload]) -> dict[int, str]:
    """Why those uploads failed that have, by step."""
    outcomes = {step: one.uploader.outcome(one.job) for step, one in sorted(uploads.items())}
    return {
        step: outcome.reason or "it could not be stored"
        for step, outcome in outcomes.items()
        if outcome.status == "FAILED"
    }
