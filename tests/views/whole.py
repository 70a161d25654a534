"""Rows of the capabilities of the made-up experiment, and of what was frozen."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

#: benchmark -> (problems, what the base solves, what becomes of them per unit of training)
BENCHMARKS = {
    "in/add/sampled": (200, 90),
    "in/gcd/sampled": (120, 20),
    "out/facts/sampled": (80, 70),
}
#: run id -> (share lost, share gained at the end)
FATES = {"aaaa1111": (0.02, 0.30), "bbbb2222": (0.40, 0.35), "cccc3333": (0.05, 0.04)}
K = 16


def capability_rows(run_id: str, algorithm: str, steps: tuple[int, ...]) -> list[dict[str, Any]]:
    """What the group `capabilities` says of one run: exact counts, that tests can expect."""
    found: list[dict[str, Any]] = []
    for number, step in enumerate(steps, 1):
        part = number / len(steps)
        lost_share, gained_share = FATES[run_id]
        own = {"run_id": run_id, "algorithm": algorithm, "step": step}
        own["model_id"] = f"m-{run_id[:4]}-{step}"

        def add(name: str, value: float | None, texts: str, own=own, **more: Any) -> None:
            metric = f"capabilities/{name}"
            found.append({**own, "metric": metric, "value": value, "texts": texts, **more})

        for key, (n, solved) in BENCHMARKS.items():
            texts = f"{key} sha256:ab12"
            lost = round(solved * lost_share * part)
            gained = round((n - solved) * gained_share * part)
            counts = {"kept": solved - lost, "lost": lost, "gained": gained}
            counts["never"] = n - sum(counts.values())
            for name, count in counts.items():
                error = math.sqrt(count * (n - count) / n)
                add(name, count, texts, stderr=error, n=n, unit="problems")
            for name in ("gained_null", "lost_null"):
                add(name, 0.06 * n, texts, stderr=0.01 * n, n=n, unit="problems")
                add(f"{name}_low", 0.04 * n, texts, n=n, unit="problems")
                add(f"{name}_high", 0.09 * n, texts, n=n, unit="problems")
            for name in ("gained_p", "lost_p", "mcnemar_p"):
                add(name, 0.01, texts, n=n, unit="probability")
            for k in (1, 2, 4, 8, 16):
                for name, rate in (("pass_at_k", 0.1 + 0.2 * part), ("base_pass_at_k", 0.1)):
                    value = (1 - (1 - rate) ** k) * (0.7 if name == "pass_at_k" else 1)
                    add(name, value, texts, bin=k, stderr=0.02, n=n, unit="probability")
            if run_id == "aaaa1111":
                for name, k in (("crossing_k", 4), ("crossing_k_low", 2), ("crossing_k_high", 8)):
                    add(name, k, texts, n=n, unit="samples")
            else:
                why = f"the order of the curves is not reversed up to k = {K}"
                for name in ("crossing_k", "crossing_k_low", "crossing_k_high"):
                    add(name, None, texts, n=n, status="none found", reason=why)
            if gained:
                said = f"solved by the base at least once in k = {K} samples"
                add("amplified", 0.75, texts, stderr=0.05, n=gained, reason=said)
                said = f"unsolved by the base in k = {K} samples, which is not unsolvable"
                add("new", 0.25, texts, stderr=0.05, n=gained, reason=said)
        for name, domain, value in (
            ("in_domain_gain", "in/add+gcd/sampled", gained_share * part / 2),
            ("out_of_domain_loss", "out/facts/greedy", lost_share * part),
        ):
            texts = f"{domain} sha256:cd34"
            add(name, value, texts, stderr=0.02, n=320, unit="accuracy")
            add(f"{name}_low", value - 0.04, texts, n=320, unit="accuracy")
            add(f"{name}_high", value + 0.05, texts, n=320, unit="accuracy")
            add(f"{name}_p", 0.001 if value > 0.04 else 0.4, texts, n=320, unit="probability")
        texts = "in+out/add+gcd+facts/sampled sha256:ef56"
        everything = sum(n for n, _ in BENCHMARKS.values())
        for side in ("lost", "gained"):
            count = sum(
                one["value"] for one in found if one["metric"] == f"capabilities/{side}"
                and one["step"] == step
            )  # fmt: skip
            add(f"overall_{side}", count, texts, stderr=1.0, n=everything, unit="problems")
            add(f"overall_{side}_null", 24, texts, stderr=3.5, n=everything, unit="problems")
            add(f"overall_{side}_null_low", 17, texts, n=everything, unit="problems")
            add(f"overall_{side}_null_high", 31, texts, n=everything, unit="problems")
            p = 0.5 if 17 <= count <= 31 else 1e-5
            add(f"overall_{side}_p", p, texts, n=everything, unit="probability")
        add("overall_mcnemar_p", 2e-4, texts, n=everything, unit="probability")
        if run_id == "cccc3333":
            found.append({**own, "metric": "frozen/changed_elements", "value": 0, "n": 12})
        for token_set in ("all_tokens", "answer_tokens"):
            texts = "base_style sha256:0123abcd template:4567ef"
            found.append(
                {**own, "metric": f"kl/gini/{token_set}", "value": 0.5 + 0.3 * gained_share,
                 "stderr": 0.01, "n": 64, "texts": texts}
            )  # fmt: skip
        if run_id != "cccc3333":
            found.append(
                {**own, "metric": "kl_on_base_samples/answer_tokens", "value": lost_share * part,
                 "stderr": 0.003, "n": 64, "unit": "nats/token", "texts": "base_samples sha256:9"}
            )  # fmt: skip
    return found


def ledger_of(problem: str = "What is 1 + 1?", answer: str = "2") -> pd.DataFrame:
    """A ledger of four problems, one of each status, at two checkpoints."""
    rows = []
    for step in (100, 200):
        for i, status in enumerate(("kept", "lost", "gained", "never")):
            rows.append(
                {
                    "model_id": f"m-{step}",
                    "step": step,
                    "domain": "in",
                    "label": "add",
                    "kind": "sampled",
                    "problem_id": f"p{i}",
                    "k": 4,
                    "base_right": 4 - i,
                    "right": i,
                    "status": status,
                    "problem": f"{problem} ({status})",
                    "gold": answer,
                    "base_completion": f"base says {answer} at {step}",
                    "completion": f"checkpoint says {answer} at {step}",
                }
            )
    return pd.DataFrame(rows).convert_dtypes()
