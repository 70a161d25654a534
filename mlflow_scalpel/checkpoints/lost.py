"""How it is said that checkpoints of a run are not stored."""

from __future__ import annotations

from collections.abc import Mapping

LOST = "checkpoints_lost"  # code of the warning


def said_of_lost(lost: Mapping[int, str], stored: int) -> str:
    """One sentence about checkpoints that were lost, beside `stored` that were not."""
    steps = ", ".join(str(step) for step in lost)
    kept = f"; {stored} others are" if stored else "; no other is"
    return f"the checkpoints of step {steps} are not stored{kept}: {next(iter(lost.values()))}"
