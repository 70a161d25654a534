"""Seconds of the group `spectra` for the matrices of one layer, beside `torch.linalg.svdvals`.

    python benchmarks/spectra.py --hidden 2048 --intermediate 8192

The seven matrices of a Llama's layer of the given sizes, in bfloat16, before and after training.
Both ways give the singular values of W_0, W_t and of the update, and ours the metrics too. svdvals
runs in float32; how far each way is from svdvals in float64 is the largest error of a value, as a
part of the largest value of its matrix.
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
import torch
from torch import Tensor

from mlflow_scalpel.metrics import choose_metrics
from mlflow_scalpel.metrics.spectra import Spectra, needed, prepare, singular_values

Pair = tuple[Tensor, Tensor]
Values = list[Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3, help="the table shows the median")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, default=Path("spectra.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pairs = layer(arguments.hidden, arguments.intermediate)
    exact = svdvals(pairs, torch.float64)
    ways: dict[str, Callable[[], Values]] = {
        "svdvals, float32": lambda: svdvals(pairs, torch.float32),
        "group spectra": lambda: ours(pairs),
    }
    result: dict[str, Any] = {"machine": machine.describe(arguments.workdir), "rows": []}
    for way, call in ways.items():
        seconds = []
        for _ in range(arguments.rounds):
            begin = time.perf_counter()
            values = call()
            seconds.append(time.perf_counter() - begin)
        error = max(
            float((one - true).abs().max() / true[0])
            for one, true in zip(values, exact, strict=True)
        )
        result["rows"].append({"way": way, "seconds": seconds, "largest_error": error})
    print(table(result["rows"]))
    machine.write(arguments.json, result)


def layer(hidden: int, intermediate: int) -> list[Pair]:
    """W_0 and W_t of q, k, v, o, gate, up and down; about a third of the weights moved."""
    torch.manual_seed(0)
    shapes = [(hidden, hidden)] * 4 + [(intermediate, hidden)] * 2 + [(hidden, intermediate)]
    before = [(0.02 * torch.randn(shape)).bfloat16() for shape in shapes]
    return [(w0, (w0.float() + 3e-5 * torch.randn(w0.shape)).bfloat16()) for w0 in before]


def svdvals(pairs: list[Pair], dtype: torch.dtype) -> Values:
    found = []
    for w0, wt in pairs:
        before, after = w0.to(dtype), wt.to(dtype)
        found += [torch.linalg.svdvals(one).double() for one in (before, after, after - before)]
    return found


def ours(pairs: list[Pair]) -> Values:
    """Every metric of the group; the values that they were computed from."""
    found = []
    for w0, wt in pairs:
        spectra = Spectra(w0, wt, lambda w0=w0: singular_values(w0))
        functions = [one.function for one in choose_metrics(["spectra"])]
        prepare([spectra], needed(functions))
        for function in functions:
            function(spectra)
        found += [spectra.base, spectra.checkpoint, spectra.update]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    usual = statistics.median(rows[0]["seconds"])
    lines = ["| way | s | times as fast | largest error |", "| --- | --- | --- | --- |"]
    for row in rows:
        seconds = statistics.median(row["seconds"])
        faster, error = usual / seconds, row["largest_error"]
        lines.append(f"| {row['way']} | {seconds:.2f} | {faster:.2f} | {error:.1e} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
