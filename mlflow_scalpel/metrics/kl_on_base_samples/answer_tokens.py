"""KL on the base's own samples."""

from __future__ import annotations

from mlflow_scalpel.metrics.estimates import Estimate, mean_over_problems
from mlflow_scalpel.metrics.kl.tokens import Texts
from mlflow_scalpel.metrics.measured_on import SAMPLED_ANSWER
from mlflow_scalpel.metrics.registry import metric


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
