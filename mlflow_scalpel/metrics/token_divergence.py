"""What base and checkpoint say at each position of a text, from which the group `kl` comes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


_NEAR = 0.5  # |log q - log p| below which terms are taken from series


@dataclass(frozen=True)
class TokenDivergence:
    """Of T positions of one text: (T,) float64 each; p is the base's distribution, q the other."""

    forward: Tensor
    """KL(p || q) in nats."""
    reverse: Tensor
    """KL(q || p) in nats."""
    js: Tensor
    """Jensen-Shannon divergence in nats, at most ln 2."""
    base_entropy: Tensor
    """Entropy of p in nats."""
    same_top: Tensor
    """1 where p and q have the same most likely token, else 0."""
    base_right: Tensor
    """p of the token that follows in the text; NaN at the last position."""
    checkpoint_right: Tensor
    """q of that token."""

    def of(self, positions: slice) -> TokenDivergence:
        """The same at some of the positions."""
        return TokenDivergence(*(getattr(self, f.name)[positions] for f in fields(self)))


def token_divergence(base: Tensor, checkpoint: Tensor, following: Tensor) -> TokenDivergence:
    """Divergences of each position, over the full vocabulary.

    With d = log q - log p, every divergence is a sum of terms that are not negative, so nothing
    cancels, and float32 terms with float64 sums suffice:

        KL(p || q) = sum p (e^d - 1 - d)
        KL(q || p) = sum q (e^-d - 1 + d)
        JS = KL(p || m)/2 + KL(q || m)/2,   log m = log p + log((1 + e^d) / 2)

    d is taken from the difference of the logits, which keeps its digits where p and q are near. The
    paper (arXiv 2507.10616) computes KL in bfloat16, which puts a floor of 1e-4 to 1e-3 under it.

    Args:
        base: (T, V) float32 logits of the base.
        checkpoint: (T, V) float32 logits of the checkpoint.
        following: (T,) int64, the token that follows each position; -1 where none does.

    Cost: about 20 passes over the logits; call it with slices that fit the cache.
    """
    import torch

    log_p, base_norm = _log_softmax(base)  # (T, V), (T, 1)
    log_q, checkpoint_norm = _log_softmax(checkpoint)
    # In float64: two shifts of one size, of all logits and of the norms, must cancel here.
    d = (checkpoint.double() - base - (checkpoint_norm - base_norm)).float()  # (T, V)
    p, q = log_p.exp(), log_q.exp()
    near = d.abs() < _NEAR
    to_m = torch.where(near, d / 2.0 + _log_cosh(d / 2.0), _log_mean(d))  # log(m / p)
    down = torch.where(near, to_m - d, _log_mean(-d))  # log(m / q)
    # Where d is large the same terms are written out, since e^d leaves float32's range.
    forward = _sum(torch.where(near, p * _excess(d), q - p - p * d))
    reverse = _sum(torch.where(near, q * _excess(-d), q * d - q + p))
    js = 0.5 * _sum(torch.where(near, p * _excess(to_m) + q * _excess(down), -p * to_m - q * down))
    entropy = _sum(torch.where(p > 0.0, -p * log_p, 0.0))
    same = (base.argmax(-1) == checkpoint.argmax(-1)).double()
    known = following >= 0
    index = following.clamp(min=0)[:, None]  # (T, 1)

    def right(logits: Tensor, norm: Tensor) -> Tensor:
        return torch.where(known, (logits.gather(1, index).double() - norm).exp()[:, 0], math.nan)

    return TokenDivergence(
        forward,
        reverse,
        js,
        entropy,
        same,
        right(base, base_norm),
        right(checkpoint, checkpoint_norm),
    )


def _log_softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (T, V) float32, and the logits' log-sum-exp (T, 1) float64."""
    import torch

    highest = logits.amax(-1, keepdim=True)  # (T, 1)
    lower = logits - highest
    total = lower.exp().sum(-1, keepdim=True, dtype=torch.float64).log()
    return lower - total.float(), highest.double() + total


def _excess(d: Tensor) -> Tensor:
    """e^d - 1 - d for |d| < 0.5 by its series, which keeps the digits that a difference loses."""
    import torch

    series = torch.ones_like(d)
    for n in range(10, 2, -1):
        series = 1.0 + series * d / n
    return 0.5 * d * d * series


def _log_cosh(x: Tensor) -> Tensor:
    """log cosh x for |x| < 0.25 by its series."""
    y = x * x
    return y * (1 / 2 - y * (1 / 12 - y * (1 / 45 - y * (17 / 2520))))


def _log_mean(d: Tensor) -> Tensor:
    """log((1 + e^d) / 2)."""
    import torch

    return torch.where(d < 60.0, torch.log1p(d.exp()), d) - math.log(2.0)


def _sum(terms: Tensor) -> Tensor:
    import torch

    return terms.sum(-1, dtype=torch.float64)
