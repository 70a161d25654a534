"""KL by position in the text."""

from __future__ import annotations

from mlflow_scalpel.metrics.estimates import Estimate, mean_over_problems
from mlflow_scalpel.metrics.kl.tokens import Texts, token_metric


@token_metric("kl/by_position", title="KL by position in the text", unit="nats/token")
def by_position(texts: Texts) -> list[Estimate]:
    """KL(base || checkpoint) of positions 0, 1, 2-3, 4-7, 8-15, ...; `bin` is the first of them.

    Positions count from the first of the token set. Mean within a problem and then over the
    problems that are that long.
    """
    longest = max((len(text.forward) for text in texts), default=0)
    edges = [0] + [1 << k for k in range(max(longest - 1, 0).bit_length())]
    found = []
    for start, end in zip(edges, [*edges[1:], longest], strict=True):
        part = [text.forward[start:end] for text in texts]
        found.append(mean_over_problems(part, bin=float(start)))
    return found
