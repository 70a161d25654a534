"""The machine, and what is installed on it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from gpu_checks.results import Row, holds, seen
from gpu_checks.setup import Setup

PACKAGES = ("mlflow", "transformers", "trl", "accelerate", "lm_eval", "triton", "numpy", "pandas")


def machine(setup: Setup) -> Iterator[Row]:
    """GPUs, driver and versions."""
    yield seen("torch", note=f"{torch.__version__}, CUDA {torch.version.cuda}")
    if setup.on_gpu:
        yield holds("a GPU is there", torch.cuda.is_available())
        for index in range(torch.cuda.device_count()):
            one = torch.cuda.get_device_properties(index)
            yield seen(f"GPU {index}", one.total_memory / 1e9, "GB", one.name)
        if shutil.which("nvidia-smi"):
            asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
            yield seen("driver", note=done.stdout.strip().splitlines()[0])
    yield seen("processor", float(os.cpu_count() or 0), "cores", platform.processor())
    yield seen("Python", note=platform.python_version())
    for name in PACKAGES:
        yield seen(name, note=installed(name) or "not installed")
    for name in ("flash_attn", "liger_kernel", "vllm", "deepspeed"):
        there = importlib.util.find_spec(name) is not None
        yield seen(name, note=(installed(name) or "there") if there else "not installed")


def installed(name: str) -> str | None:
    """The version of a package, None where it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
