"""GB/s of describing a checkpoint's files, beside a bare SHA-256 and `cat` over the same bytes.

    python benchmarks/hashing.py --gigabytes 1

`make_manifest` takes SHA-256 of every file, and looks for NaN and infinity, in two threads; it is
measured on one file and on four shards of the same bytes. All reads come from the page cache.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import machine
import torch
from safetensors.torch import save_file

from mlflow_scalpel.checkpoints.manifest import make_manifest

SHARDS = 4
TENSORS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3, help="the table shows the median")
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, default=Path("hashing.json"))
    arguments = parser.parse_args()
    result: dict[str, Any] = {"gigabytes": arguments.gigabytes}
    result["machine"] = machine.describe(arguments.workdir)
    with tempfile.TemporaryDirectory(dir=arguments.workdir, prefix="benchmark-") as name:
        whole, shards = save(Path(name), arguments.gigabytes)
        size = whole.stat().st_size
        ways: dict[str, Callable[[], object]] = {
            "cat FILE > /dev/null": lambda: cat(whole),
            "hashlib.sha256, one thread": lambda: bare_sha256(whole),
            "make_manifest, one file": lambda: make_manifest([whole], whole.parent),
            f"make_manifest, {SHARDS} shards": lambda: make_manifest(shards, shards[0].parent),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for run in [cat, bare_sha256]:  # into the page cache
            run(whole)
        make_manifest(shards, shards[0].parent)
        for _ in range(arguments.rounds):
            for way, call in ways.items():
                begin = time.perf_counter()
                call()
                seconds[way].append(time.perf_counter() - begin)
    result["rows"] = [
        {
            "way": way,
            "seconds": taken,
            "gigabytes_per_second": size / 1e9 / statistics.median(taken),
        }
        for way, taken in seconds.items()
    ]
    print(table(result["rows"]))
    machine.write(arguments.json, result)


def save(folder: Path, gigabytes: float) -> tuple[Path, list[Path]]:
    """The same random bfloat16 tensors in one file, and in shards."""
    torch.manual_seed(0)
    length = int(gigabytes * 1e9 / 2 / TENSORS)
    tensors = {
        f"tensor-{number:02d}": torch.randn(length, dtype=torch.bfloat16)
        for number in range(TENSORS)
    }
    whole = folder / "model.safetensors"
    save_file(tensors, whole)
    shards = []
    for shard in range(SHARDS):
        file = folder / f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        save_file(dict(list(tensors.items())[shard::SHARDS]), file)
        shards.append(file)
    return whole, shards


def cat(file: Path) -> None:
    subprocess.run(["cat", file], stdout=subprocess.DEVNULL, check=True)


def bare_sha256(file: Path) -> None:
    with file.open("rb") as stream:
        hashlib.file_digest(stream, "sha256")


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| way | GB/s |", "| --- | ---: |"]
    lines += [f"| `{row['way']}` | {row['gigabytes_per_second']:.2f} |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
