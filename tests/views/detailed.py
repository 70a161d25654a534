"""A made-up experiment with everything that the views of weights, attention and KL can draw."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mlflow_scalpel.comparison.table import tidy

MATRICES = ("q_proj", "k_proj", "down_proj")
LAYERS, HEADS = 3, 2
#: run id -> (algorithm, size, steps of its checkpoints)
ARMS: dict[str, tuple[str, float, tuple[int, ...]]] = {
    "aaaa1111": ("grpo", 1.0, (10, 20, 30, 40)),
    "bbbb2222": ("sft", 20.0, (21, 41, 61, 82)),
}
ULPS = (0.0, 1.0, 2.0, 4.0)
EXPONENTS = (-3.0, -2.0, -1.0)
QUANTILES = (0.0, 0.5, 0.999, 1.0)
TEXTS = "math sha256:0123 template:4567"


def norm(size: float, part: float, layer: int, matrix: str) -> float:
    """The relative norm of a cell."""
    return 1e-3 * size * part * (1 + layer) * (2 if matrix in ("q_proj", "k_proj") else 1)


def own_of(run_id: str, step: int) -> dict[str, Any]:
    """What all rows of a checkpoint share."""
    algorithm = ARMS[run_id][0]
    model = f"m-{run_id[:4]}-{step}"
    return {"base": "b", "run_id": run_id, "algorithm": algorithm, "step": step, "model_id": model}


def weight_rows(run_id: str, step: int, part: float) -> list[dict[str, Any]]:
    """Weights, spectra and histograms of a checkpoint."""
    own, size = own_of(run_id, step), ARMS[run_id][1]
    rows = []
    for layer in range(LAYERS):
        for matrix in MATRICES:
            cell = {**own, "layer": layer, "matrix": matrix}
            value = norm(size, part, layer, matrix)
            rows += [
                {**cell, "metric": "weights/relative_frobenius", "value": value},
                {**cell, "metric": "weights_paper_compat/relative_frobenius", "value": value * 1.1},
                {**cell, "metric": "spectra/stable_rank", "value": 10 - 5 * part + layer},
                {**cell, "metric": "spectra/update_spectral_norm", "value": 3 * value},
            ]
            rows += [
                {**cell, "metric": "histograms/ulp_change", "bin": edge, "value": share, "n": 100}
                for edge, share in zip(ULPS, (0.4, 0.3, 0.2, 0.1), strict=True)
            ]
            rows += [
                {
                    **cell,
                    "metric": "histograms/change_by_magnitude",
                    "bin": edge,
                    "value": 0.1 * (layer + 1),
                    "n": 10**layer,
                }
                for edge in EXPONENTS
            ]
    return rows


def text_rows(run_id: str, step: int, part: float) -> list[dict[str, Any]]:
    """Attention and divergences of a checkpoint."""
    own, size = own_of(run_id, step), ARMS[run_id][1]
    rows = []
    for layer in range(LAYERS):
        for head in range(HEADS):
            cell = {**own, "layer": layer, "head": head, "texts": TEXTS, "stderr": 0.001, "n": 8}
            change = (head - 0.5) * part * (layer + 1)
            rows.append({**cell, "metric": "attention/js", "value": 0.01 * size * part})
            rows.append({**cell, "metric": "attention/entropy_change", "value": change})
    kl = 0.01 * size * part
    for tokens, factor in (("all_tokens", 1.0), ("answer_tokens", 2.0)):
        texts = {**own, "texts": TEXTS, "n": 8}
        for metric, value in (
            ("kl", kl),
            ("kl/reverse", 1.5 * kl),
            ("kl/js", kl / 4),
            ("kl/floor", 2e-4),
            ("kl/same_top", 1 - kl),
            ("kl/right_token_change", -kl / 8),
            ("kl/right_token_rms", kl / 6),
            ("kl/gini", 0.5 + 0.3 * part),
        ):
            value *= factor if metric in ("kl", "kl/reverse", "kl/js") else 1
            error = 0.0 if metric == "kl/floor" else abs(value) / 10
            rows.append({**texts, "metric": f"{metric}/{tokens}", "value": value, "stderr": error})
        for metric, bins in (
            ("kl/quantile", QUANTILES),
            ("kl/by_position", (0.0, 1.0, 2.0, 4.0)),
            ("kl/by_base_entropy", (1.0, 2.0, 10.0)),
        ):
            rows += [
                {**texts, "metric": f"{metric}/{tokens}", "bin": edge, "value": kl * (0.1 + edge)}
                for edge in bins
            ]
    rows.append({**own, "metric": "kl_paper_compat/all_tokens", "value": kl * 1.2, "texts": TEXTS})
    metric, texts = "kl_on_base_samples/answer_tokens", "base_samples sha256:9"
    rows.append({**own, "metric": metric, "value": kl / 3, "stderr": kl / 9, "texts": texts})
    floor = "kl_on_base_samples/floor/answer_tokens"
    rows.append({**own, "metric": floor, "value": 1e-4, "texts": texts})
    return rows


def pair_rows(step: int, other_step: int, part: float) -> list[dict[str, Any]]:
    """The updates of the two arms."""
    own = {**own_of("aaaa1111", step), "other": own_of("bbbb2222", other_step)["model_id"]}
    rows = []
    for layer in range(LAYERS):
        for matrix in MATRICES:
            cell = {**own, "layer": layer, "matrix": matrix}
            value = 0.2 * part * (layer - 1)
            rows.append({**cell, "metric": "pairs/update_cosine", "value": value})
            rows += [
                {
                    **cell,
                    "metric": "pairs/changed_overlap",
                    "bin": edge,
                    "value": 2.0 + layer,
                    "n": 10**layer,
                }
                for edge in EXPONENTS
            ]
    return rows


def detailed_table() -> pd.DataFrame:
    """The tidy table of the two arms."""
    rows: list[dict[str, Any]] = []
    for run_id, (_, _, steps) in ARMS.items():
        for step in steps:
            part = step / steps[-1]
            rows += weight_rows(run_id, step, part) + text_rows(run_id, step, part)
    for step, other in zip(ARMS["aaaa1111"][2], ARMS["bbbb2222"][2], strict=True):
        rows += pair_rows(step, other, step / 40)
    return tidy(rows)
