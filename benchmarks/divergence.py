"""Seconds and memory of a KL curve, beside bare forward passes over the same texts with logits.

    python benchmarks/divergence.py --model MODEL --texts problems.jsonl

The bare way runs the model over each text alone and forms its logits, once for the base and once
for each checkpoint; nothing is computed from them. Ours swaps each checkpoint's weights into the
one model and computes the chosen metrics; the group attention is shown beside. Checkpoints are the
base with noise. Loading of the model and compilation (once a machine) are excluded. Memory is what
the peak of private memory lies above that after loading. CPU seconds are those of the process,
which other work on the machine disturbs less.
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

from mlflow_scalpel.comparison.forward.attention import AttentionShift
from mlflow_scalpel.comparison.forward.divergence import COMPILED_FROM, Divergence
from mlflow_scalpel.comparison.forward.model import ForwardModel
from mlflow_scalpel.comparison.forward.probes import build_probe, read_texts
from mlflow_scalpel.metrics import choose_metrics
from mlflow_scalpel.metrics.compiling import compiled
from mlflow_scalpel.metrics.token_divergence import token_divergence

STANDARD = ["kl/all_tokens", "kl/answer_tokens"]


class Clock:
    """Seconds, and CPU seconds of this process, while it is entered."""

    def __enter__(self) -> Clock:
        self._begin = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._begin[0]
        self.cpu_seconds = time.process_time() - self._begin[1]


class Peak:
    """The most private memory while it is entered, sampled; files that are mapped are none."""

    def __enter__(self) -> Peak:
        self.before = self.most = private_bytes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.most = max(self.most, private_bytes())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def above(self) -> int:
        return self.most - self.before


def private_bytes() -> int:
    """Anonymous resident memory of this process."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


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
        if bare.config.vocab_size * result["tokens"] >= COMPILED_FROM:
            warm_up(bare.config.vocab_size)
        with Clock() as clock:
            for _ in range(passes):
                forward(bare, probe.items)
        add(result, f"{passes} bare forward passes with logits", clock)
        del bare
        for way, names, runner in (
            ("kl/all_tokens and kl/answer_tokens", STANDARD, Divergence),
            ("the whole group kl", ["kl"], Divergence),
            ("the group attention", ["attention"], AttentionShift),
        ):
            metrics = choose_metrics(names)
            model = ForwardModel(arguments.model)
            with Peak() as peak, Clock() as clock:
                measuring = runner(model, [probe])
                for _ in range(arguments.checkpoints):
                    model.load_checkpoint(moved)
                    list(measuring.rows(metrics))
            add(result, way, clock, max(0, peak.above))
            del model, measuring
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


@torch.inference_mode()
def warm_up(vocabulary: int) -> None:
    """Have the reduction compiled, for any number of positions."""
    for size in (3, 5):
        logits = torch.randn(size, vocabulary)
        compiled(token_divergence)(logits, logits.clone(), torch.arange(size))


def add(result: dict[str, Any], way: str, clock: Clock, memory: int | None = None) -> None:
    result["rows"].append(
        {
            "way": way,
            "seconds": clock.seconds,
            "cpu_seconds": clock.cpu_seconds,
            "bytes_above_model": memory,
        }
    )


def table(rows: list[dict[str, Any]]) -> str:
    bare = rows[0]
    lines = [
        "| way | s | of the bare passes | CPU s | of theirs | MB above the model |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        memory = row["bytes_above_model"]
        cells = [row["way"]]
        for key in ("seconds", "cpu_seconds"):
            cells += [f"{row[key]:.2f}", f"{row[key] / bare[key]:.2f}"]
        cells.append("" if memory is None else f"{memory / 1e6:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
