"""A value over problems, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error over n problems; `bin` where there is one for each bin."""

    value: float
    stderr: float
    n: int
    bin: float | None = None
    bad: int = 0
    """Problems whose own value is NaN or infinite: then there is no value over all."""
    note: str | None = None
    """What must be said beside the value."""

    def columns(self) -> dict[str, Any]:
        """What the tidy table says of it."""
        found: dict[str, Any] = {
            "value": self.value,
            "stderr": self.stderr,
            "n": self.n,
            "bin": self.bin,
        }
        if self.note is not None:
            found["reason"] = self.note
        if self.bad:
            found["status"] = "not finite"
            found["reason"] = f"{self.bad} of {self.n} problems gave NaN or infinity"
        return found


def over_means(means: Sequence[float], bin: float | None = None) -> Estimate:
    """Mean of the problems' own values, and its standard error; NaN or infinite ones are bad."""
    values = np.array(means, dtype=float)
    bad = int((~np.isfinite(values)).sum())
    n = len(values)
    if bad or not n:
        return Estimate(math.nan, math.nan, n, bin, bad)
    error = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Estimate(float(values.mean()), error, n, bin)


def mean_over_problems(values: Sequence[Tensor], bin: float | None = None) -> Estimate:
    """Mean of means within problems; its error is the standard error over problems.

    A problem without a position is left out of n; one that gives NaN or infinity is counted bad.
    """
    return over_means([float(problem.mean()) for problem in values if len(problem)], bin)
