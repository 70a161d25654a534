"""KL at the size of OLMo-2 7B, with weights that are made on the device."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gpu_checks.results import Row, above, holds, seen
from gpu_checks.setup import InMemory, Setup, olmo2_7b, perturb, random_model, random_probe, timed
from mlflow_scalpel.comparison.forward.divergence import FLOOR, Divergence
from mlflow_scalpel.metrics import choose_metrics


def large(setup: Setup) -> Iterator[Row]:
    """Base and a perturbed copy in bfloat16 over 20 texts: seconds and memory."""
    device, config = setup.device, olmo2_7b(setup.small)
    model, seconds = timed(lambda: random_model(config, torch.bfloat16, device), device)
    weights = sum(one.nbytes for one in model.parameters())
    yield seen("weights made", seconds, "s", f"{weights / 1e9:.2f} GB, {model.num_parameters():,}")
    probe = random_probe(config.vocab_size, *((4, 40) if setup.small else (20, 600)))
    count = sum(len(item.ids) for item in probe.items)
    one = InMemory(model, "bfloat16", device)
    timed(lambda: one.hidden(probe.items), device)  # kernels are chosen in the first pass
    _, seconds = timed(lambda: one.hidden(probe.items), device)
    yield seen("one forward pass", seconds, "s", f"{count} tokens, {count / seconds:.0f} tokens/s")
    measuring, seconds = timed(lambda: Divergence(one, [probe]), device)
    yield seen("the base's side of KL", seconds, "s", "kept for all checkpoints")
    metrics = [one for one in choose_metrics(["kl"]) if FLOOR not in one.name]
    rows, seconds = timed(lambda: list(measuring.rows(metrics)), device)
    yield seen("the first checkpoint", seconds, "s", "with what is compiled")
    itself = {row["metric"]: row["value"] for row in rows if row["metric"].startswith("kl/all")}
    yield holds("KL of the model with itself is 0", itself["kl/all_tokens"] == 0.0, str(itself))
    perturb(model, 0.02)
    rows, seconds = timed(lambda: list(measuring.rows(metrics)), device)
    found = next(row["value"] for row in rows if row["metric"] == "kl/all_tokens")
    yield above("KL of a perturbed copy", found, 0.0, "nats")
    bad = sum(row.get("status", "ok") != "ok" for row in rows)
    yield holds("every row of the group has a value", bad == 0, f"{bad} of {len(rows)} without")
    yield seen(
        "the next checkpoint", seconds, "s", f"the whole group; {count / seconds:.0f} tokens/s"
    )
    if setup.on_gpu:
        peak = torch.cuda.max_memory_allocated()
        yield seen(
            "peak memory", peak / 1e9, "GB", f"{(peak - weights) / 1e9:.2f} above the weights"
        )
