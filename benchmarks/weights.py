"""GB/s of the groups `weights` and `histograms`, beside numpy's sum and the usual script.

    python benchmarks/weights.py --gigabytes 1 --checkpoints 20

Two bfloat16 checkpoints of the given size with the matrices of a Llama of hidden size 2048, in the
page cache; each way's second call counts, imports and compilation excluded. The usual script loads
both, and takes the norms of base and difference and the mean absolute difference in bfloat16. The
many checkpoints are links to the second one, so that they are all in the page cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mlflow_scalpel.comparison.weights.files import StoredWeights
from mlflow_scalpel.comparison.weights.rows import weight_rows
from mlflow_scalpel.metrics import choose_metrics
from mlflow_scalpel.metrics.weights import Training

SHAPES = {
    "self_attn.q_proj": (2048, 2048),
    "self_attn.k_proj": (2048, 2048),
    "self_attn.v_proj": (2048, 2048),
    "self_attn.o_proj": (2048, 2048),
    "mlp.gate_proj": (8192, 2048),
    "mlp.up_proj": (8192, 2048),
    "mlp.down_proj": (2048, 8192),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of each checkpoint")
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5, help="the table shows the median")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, default=Path("weights.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {"gigabytes": arguments.gigabytes}
    result["machine"] = machine.describe(arguments.workdir)
    with tempfile.TemporaryDirectory(dir=arguments.workdir, prefix="benchmark-") as name:
        base, checkpoint = save(Path(name), arguments.gigabytes)
        many = [checkpoint] * arguments.checkpoints
        size = 2 * sum(file.stat().st_size for file in base.glob("*.safetensors"))
        ways: dict[str, tuple[Callable[[], object], int]] = {
            "numpy sum of the same bytes": (lambda: numpy_sum(base, checkpoint), size),
            "load both, norms in bfloat16": (lambda: usual_script(base, checkpoint), size),
            "group weights, one pair": (lambda: ours(base, [checkpoint]), size),
            "groups weights and histograms, one pair": (
                lambda: ours(base, [checkpoint], "histograms"),
                size,
            ),
            f"group weights, {len(many)} pairs": (
                lambda: [ours(base, [one]) for one in many],
                size * len(many),
            ),
            f"group weights, {len(many)} checkpoints at once": (
                lambda: ours(base, many),
                size // 2 * (len(many) + 1),
            ),
        }
        result["rows"] = []
        for way, (call, moved) in ways.items():
            seconds = []
            for number in range(arguments.rounds + 1):
                begin = time.perf_counter()
                call()
                if number:  # the first call compiles, and brings the files into memory
                    seconds.append(time.perf_counter() - begin)
            median = statistics.median(seconds)
            row = {"way": way, "seconds": seconds, "gigabytes_per_second": moved / 1e9 / median}
            result["rows"].append(row)
    print(table(result["rows"]))
    machine.write(arguments.json, result)


def save(folder: Path, gigabytes: float) -> tuple[Path, Path]:
    """Base, and a checkpoint in which about a third of the weights moved."""
    torch.manual_seed(0)
    layer_bytes = 2 * sum(rows * columns for rows, columns in SHAPES.values())
    directories = folder / "base", folder / "checkpoint"
    for directory in directories:
        directory.mkdir()
    base, moved = {}, {}
    drawn = {name: (0.02 * torch.randn(shape)).bfloat16() for name, shape in SHAPES.items()}
    for layer in range(max(1, round(gigabytes * 1e9 / layer_bytes))):
        for name, weight in drawn.items():
            full = f"model.layers.{layer}.{name}.weight"
            base[full] = weight.clone()
            moved[full] = (weight.float() + 3e-5 * torch.randn(weight.shape)).bfloat16()
    for directory, tensors in zip(directories, (base, moved), strict=True):
        save_file(tensors, directory / "model.safetensors")
    return directories


def ours(base: Path, checkpoints: list[Path], *more: str) -> int:
    opened = [(StoredWeights(one), Training(1e-3)) for one in checkpoints]
    metrics = choose_metrics(["weights", *more])
    return sum(1 for _ in weight_rows(StoredWeights(base), opened, metrics))


def numpy_sum(*directories: Path) -> float:
    """The least that one can do with every byte: as float32, each sum over a tensor."""
    total = 0.0
    for directory in directories:
        with safe_open(directory / "model.safetensors", framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                numbers = file.get_tensor(name).view(torch.int16).numpy().view(np.float32)
                with np.errstate(all="ignore"):
                    total += float(numbers.sum())
    return total


def usual_script(base: Path, checkpoint: Path) -> list[float]:
    before = load_file(base / "model.safetensors")
    after = load_file(checkpoint / "model.safetensors")
    found = []
    for name, w0 in before.items():
        difference = after[name] - w0
        found.append(float(torch.norm(difference) / torch.norm(w0)))
        found.append(float(difference.abs().mean()))
    return found


def table(rows: list[dict[str, Any]]) -> str:
    bare = rows[0]["gigabytes_per_second"]
    lines = ["| way | s | GB/s | of the bare sum |", "| --- | --- | --- | --- |"]
    for row in rows:
        seconds, rate = statistics.median(row["seconds"]), row["gigabytes_per_second"]
        lines.append(f"| {row['way']} | {seconds:.3f} | {rate:.2f} | {rate / bare:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
