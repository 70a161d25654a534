"""The groups `kl` and `kl_on_base_samples`: how far the output distributions moved, by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_scalpel.metrics.on_texts import (
    ALL,
    ANSWER,
    SAMPLED_ANSWER,
    Estimate,
    mean_over_problems,
)
from mlflow_scalpel.metrics.registry import metric
from mlflow_scalpel.metrics.token_divergence import TokenDivergence

if TYPE_CHECKING:
    from torch import Tensor

TOKEN_SETS = {"all_tokens": ALL, "answer_tokens": ANSWER}


Texts = Sequence[TokenDivergence]


def token_metric(
    prefix: str, *, title: str, version: int = 3, **declared: Any
) -> Callable[[Any], Any]:
    """Register a function of `Texts` as `prefix/all_tokens` and as `prefix/answer_tokens`.

    `declared` is what `metric` takes beside that; the titles say which tokens.
    """

    def add(function: Callable[[Texts], list[Estimate]]) -> Callable[[Texts], list[Estimate]]:
        for tokens, on in TOKEN_SETS.items():
            name, called = f"{prefix}/{tokens}", f"{title}, {tokens.replace('_', ' ')}"
            metric(name, title=called, version=version, on=on, **declared)(function)
        return function

    return add


def over_problems(
    texts: Texts,
    statistic: Callable[[Sequence[np.ndarray]], np.ndarray],
    values: Callable[[TokenDivergence], Tensor],
    bins: Sequence[float | None] = (None,),
) -> list[Estimate]:
    """Statistics of the pooled tokens; errors by the jackknife over problems (Efron 1981).

    `statistic` gives one number for each bin from a list of (T,) arrays, one a problem.
    """
    arrays = [values(text).numpy() for text in texts if len(values(text))]
    n = len(arrays)
    bad = sum(not np.isfinite(array).all() for array in arrays)
    if bad or not n:
        return [Estimate(math.nan, math.nan, n, bin, bad) for bin in bins]
    whole = statistic(arrays)
    errors = np.full(len(bins), math.nan)
    if n > 1:
        left_out = np.stack([statistic(arrays[:i] + arrays[i + 1 :]) for i in range(n)])
        errors = np.sqrt((n - 1) / n * ((left_out - left_out.mean(0)) ** 2).sum(0))
    return [
        Estimate(float(value), float(error), n, bin)
        for value, error, bin in zip(whole, errors, bins, strict=True)
    ]


@token_metric("kl", title="KL(base ‖ checkpoint)", unit="nats/token")
def forward(texts: Texts) -> list[Estimate]:
    """KL(base || checkpoint) in nats a token, mean within a problem and then over problems.

        KL_t = sum_v p_t(v) (log p_t(v) - log q_t(v)),   p the base, q the checkpoint

    Over the full vocabulary. (arXiv 2507.10616 takes all tokens, in bfloat16, and leaves problems
    with NaN out: `kl_paper_compat/all_tokens`. Here a problem with NaN leaves no value.)
    """
    return [mean_over_problems([text.forward for text in texts])]


@token_metric("kl/reverse", title="KL(checkpoint ‖ base)", unit="nats/token")
def reverse(texts: Texts) -> list[Estimate]:
    """KL(checkpoint || base) in nats a token, mean within a problem and then over problems.

    Large where the checkpoint says what the base would not; `kl` is large where it no longer says
    what the base would.
    """
    return [mean_over_problems([text.reverse for text in texts])]


@token_metric("kl/js", title="Jensen-Shannon divergence of base and checkpoint", unit="nats/token")
def js(texts: Texts) -> list[Estimate]:
    """KL(p || m)/2 + KL(q || m)/2 with m = (p + q)/2, in nats a token, at most ln 2 (Lin 1991)."""
    return [mean_over_problems([text.js for text in texts])]


@token_metric("kl/floor", title="Noise floor of the KL", unit="nats/token")
def floor(texts: Texts) -> list[Estimate]:
    """KL(base in float32 || base in the dtype in use), the noise under KL there; 0 in float32.

    A KL of the same size says nothing about the checkpoint. `texts` are of the base against itself;
    mean within a problem and then over problems.
    """
    return [mean_over_problems([text.forward for text in texts])]


@token_metric(
    "kl/same_top",
    title="Tokens whose most likely next token is the same",
    axis="fraction of tokens",
    unit="fraction",
)
def same_top(texts: Texts) -> list[Estimate]:
    """Fraction of tokens whose most likely next token is the same, as llama-perplexity prints it.

    Mean within a problem and then over problems.
    """
    return [mean_over_problems([text.same_top for text in texts])]


def _right_token_change(text: TokenDivergence) -> Tensor:
    import torch

    change = text.checkpoint_right - text.base_right
    # Nothing follows a text's last position.
    return change[~(torch.isnan(text.base_right) & torch.isfinite(text.base_entropy))]


@token_metric(
    "kl/right_token_change",
    title="Mean change of the right token's probability",
    signed=True,
    unit="probability",
)
def right_token_change(texts: Texts) -> list[Estimate]:
    """Mean of q(x) - p(x) for the token x that follows, as llama-perplexity's mean change of p.

    Mean within a problem and then over problems; a text's last token has no other after it, and is
    left out.
    """
    return [mean_over_problems([_right_token_change(text) for text in texts])]


@token_metric(
    "kl/right_token_rms", title="RMS change of the right token's probability", unit="probability"
)
def right_token_rms(texts: Texts) -> list[Estimate]:
    """Root mean square of q(x) - p(x) for the token x that follows, as llama-perplexity's RMS.

    Mean of squares within a problem and then over problems; the error by the delta method. A text's
    last token has no other after it, and is left out.
    """
    squares = mean_over_problems([_right_token_change(text) ** 2 for text in texts])
    root = squares.value**0.5
    error = squares.stderr / (2.0 * root) if root > 0.0 else 0.0
    return [Estimate(root, error, squares.n, bad=squares.bad)]


QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)


@token_metric("kl/quantile", title="KL of single tokens, by quantile", unit="nats/token")
def quantiles(texts: Texts) -> list[Estimate]:
    """Quantiles of KL(base || checkpoint) over all problems' tokens; `bin` is the quantile.

    The set that llama-perplexity prints, with minimum (0) and maximum (1). Errors by the jackknife
    over problems, since the tokens of one problem are not independent; that of an extreme is rough.
    """
    return over_problems(
        texts,
        lambda arrays: np.quantile(np.concatenate(arrays), QUANTILES),
        lambda text: text.forward,
        QUANTILES,
    )


@token_metric(
    "kl/gini",
    title="How concentrated the KL is",
    axis="Gini coefficient over tokens",
    unit="coefficient",
)
def gini(texts: Texts) -> list[Estimate]:
    """Gini coefficient of KL(base || checkpoint) over all problems' tokens.

        G = sum_i (2 i - n - 1) x_i / (n sum_i x_i),   x sorted, i from 1

    0 where every token has the same KL, near 1 where few have all of it; NaN where KL is 0
    everywhere. Error by the jackknife over problems.
    """
    return over_problems(texts, _gini, lambda text: text.forward)


def _gini(arrays: Sequence[np.ndarray]) -> np.ndarray:
    values = np.sort(np.concatenate(arrays))
    total = values.sum()
    if total == 0.0:
        return np.array([math.nan])
    ranks = 2.0 * np.arange(1, len(values) + 1) - len(values) - 1.0
    return np.array([(ranks * values).sum() / (len(values) * total)])


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


@token_metric("kl/by_base_entropy", title="KL by how sure the base is", unit="nats/token")
def by_base_entropy(texts: Texts) -> list[Estimate]:
    """KL(base || checkpoint) of the tokens in each decile of the base's entropy; `bin` is 1 to 10.

    Decile 10 holds the tokens at which the base is least sure (forking tokens, arXiv 2506.01939).
    Mean within a problem and then over the problems that have such tokens.
    """
    import torch

    if not texts:
        return []
    entropies = torch.cat([text.base_entropy for text in texts]).numpy()
    if not np.isfinite(entropies).all():
        return [mean_over_problems([text.forward for text in texts], bin=1.0)]
    edges = np.quantile(entropies, np.arange(0.1, 1.0, 0.1))
    found = []
    for decile in range(10):
        part = [
            text.forward[torch.from_numpy(np.searchsorted(edges, text.base_entropy) == decile)]
            for text in texts
        ]
        if any(len(values) for values in part):
            found.append(mean_over_problems(part, bin=decile + 1.0))
    return found


@metric(
    "kl_on_base_samples/answer_tokens",
    title="KL(base ‖ checkpoint) on the base's own samples",
    unit="nats/token",
    on=SAMPLED_ANSWER,
)
def answer_tokens(texts: Texts) -> list[Estimate]:
    """KL(base || checkpoint) over tokens that the base sampled itself for the problems.

    For each problem the base samples one answer (temperature 1, no truncation of the distribution,
    at most so many new tokens); KL is taken over the full vocabulary at the positions that predict
    its tokens, with the end-of-turn token where there is one. Mean within an answer and then over
    problems, in nats a token.

    It estimates the forward KL on the base's own distribution, which predicts what is forgotten
    (arXiv 2509.04259, there on the new task's prompts); `kl` on solutions fixed in advance does
    not. The error over problems includes that of the sampling. The samples' digest stands in
    `texts`.
    """
    return [mean_over_problems([text.forward for text in texts])]


metric(
    "kl_on_base_samples/floor/answer_tokens",
    title="Noise floor of the KL on the base's own samples",
    unit="nats/token",
    on=SAMPLED_ANSWER,
)(floor)
