"""What the groups measured on texts share: descriptions of what is measured, and estimates.

The first line of each description is short, for lists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


_RENDERED = """
Template: each problem and solution is rendered as [user, assistant] by the base tokenizer's chat
template, one token of beginning at most, the same for base and checkpoints. System prompt: that
of the run's recipe while training, of --system-prompt in `compare`, none otherwise. The digests
of texts (with the system prompt) and of the template stand in the column `texts`."""

_EXACT = """
Dtype: forward passes in float32 unless --dtype says otherwise (column `dtype`); logits always in
float32, formed of the final hidden states and the output embedding in float32; terms in float32,
their sums over the vocabulary in float64."""

ALL = f"""All positions of the text.

Positions: all T tokens of the rendered text, those of template, system prompt and problem too;
each counts with the distribution of what follows it, that after the last token included.
{_RENDERED}
{_EXACT}"""

ANSWER = f"""Positions of the answer.

Positions: those that predict the tokens of the assistant's content and the end-of-turn token
after it; template, system prompt and problem are read, and not counted.
{_RENDERED}
{_EXACT}"""

SAMPLED_ANSWER = f"""Positions of the base's own answer.

Positions: those that predict the tokens of the answer that the base sampled, and its end-of-turn
token where it came to one; the prompt is read, and not counted. Of the texts only the problems are
taken, and the template opens the assistant's turn.
{_RENDERED}
{_EXACT}"""

ALL_BFLOAT16 = f"""All positions of the text, in bfloat16.

Positions: all T tokens of the rendered text, those of template, system prompt and problem too;
each counts with the distribution of what follows it, that after the last token included.
{_RENDERED}

Dtype: everything in bfloat16, whatever --dtype says: weights, forward passes, logits, softmax,
sums and means."""

ROWS = f"""Rows of all positions.

Positions: the attention rows of all T tokens of the rendered text, template and problem too.
{_RENDERED}

Dtype: forward passes in float32 unless --dtype says otherwise (column `dtype`); rows are reduced in
float64."""


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
