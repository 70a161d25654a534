"""Seconds and memory of a KL curve, beside bare forward passes over the same texts with logits.

    python benchmarks/divergence.py --model MODEL --texts problems.jsonl

The bare way runs the model over each text alone and forms its logits, once for the base and once
for each checkpoint; nothing is computed from them. Ours swaps each checkpoint's weights into the
one model and computes the chosen metrics. Checkpoints are the base with noise. Loading of the model
is excluded from both. Memory is what the peak lies above the resident memory after loading.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import machine
import psutil
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlflow_scalpel.comparison.divergence import Divergence
from mlflow_scalpel.comparison.probes import build_probe, read_texts
from mlflow_scalpel.metrics import choose_metrics


class Peak:
    """The most resident memory while it is entered, sampled."""

    def __enter__(self) -> Peak:
        self._process = psutil.Process()
        self.before = self.most = self._process.memory_info().rss
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.most = max(self.most, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def above(self) -> int:
        return self.most - self.before


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="directory of a causal model")
    parser.add_argument("--texts", type=Path, required=True, help="JSONL, problem and solution")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--checkpoints", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, default=Path("divergence.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    pairs = read_texts(arguments.texts)[: arguments.problems]
    probe = build_probe("texts", pairs, tokenizer)
    passes = arguments.checkpoints + 1
    result: dict[str, Any] = {"machine": machine.describe(arguments.workdir), "rows": []}
    result["tokens"] = sum(len(item.ids) for item in probe.items)
    with tempfile.TemporaryDirectory(dir=arguments.workdir, prefix="benchmark-") as name:
        moved = noisy(arguments.model, Path(name))
        bare = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
        forward(bare, probe.items[:1])
        begin = time.perf_counter()
        for _ in range(passes):
            forward(bare, probe.items)
        add(result, f"{passes} bare forward passes with logits", time.perf_counter() - begin)
        del bare
        for way, names in (
            ("kl/all_tokens and kl/answer_tokens", ["kl/all_tokens", "kl/answer_tokens"]),
            ("the whole group kl", ["kl"]),
        ):
            metrics = choose_metrics(names)
            begin = time.perf_counter()
            loaded = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
            loading = time.perf_counter() - begin
            size = sum(p.numel() * p.element_size() for p in loaded.parameters())
            del loaded
            with Peak() as peak:
                begin = time.perf_counter()
                divergence = Divergence(arguments.model, [probe])
                for _ in range(arguments.checkpoints):
                    list(divergence.rows(moved, metrics))
                seconds = time.perf_counter() - begin - loading
            add(result, way, seconds, max(0, peak.above - size))
            del divergence
    print(table(result["rows"]))
    machine.write(arguments.json, result)


def noisy(model: Path, folder: Path) -> Path:
    """The model with noise on every weight, in a directory of its own."""
    directory = folder / "checkpoint"
    shutil.copytree(model, directory)
    for file in directory.glob("*.safetensors"):
        tensors = {k: w + 1e-3 * torch.randn_like(w) for k, w in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    return directory


@torch.inference_mode()
def forward(model: Any, items: Any) -> None:
    for item in items:
        model(input_ids=torch.tensor([item.ids]), use_cache=False)


def add(result: dict[str, Any], way: str, seconds: float, memory: int | None = None) -> None:
    result["rows"].append({"way": way, "seconds": seconds, "bytes_above_model": memory})


def table(rows: list[dict[str, Any]]) -> str:
    bare = rows[0]["seconds"]
    lines = ["| way | s | of the bare passes | MB above the model |", "| --- | --- | --- | --- |"]
    for row in rows:
        memory = row["bytes_above_model"]
        shown = "" if memory is None else f"{memory / 1e6:.0f}"
        seconds = row["seconds"]
        lines.append(f"| {row['way']} | {seconds:.2f} | {seconds / bare:.2f} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
