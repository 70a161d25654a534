"""What a benchmark ran on, for the JSON beside its numbers."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("mlflow", "mlflow-scalpel", "torch", "transformers", "safetensors")


def describe(workdir: Path) -> dict[str, Any]:
    """Machine, file system of `workdir`, and versions; memory and disk in GB of 1e9 bytes."""
    disk = os.statvfs(workdir)
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "file_system": _file_system(workdir),
        "free_gb": round(disk.f_bavail * disk.f_frsize / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Write the JSON, and say where."""
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {path}")


def _processor() -> str:
    """The processor's name as Linux gives it; the bare architecture where it gives none."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(workdir: Path) -> str:
    """Type of the file system that holds `workdir`: that of the longest mount point above it."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    above = [mount for mount in mounts if workdir.resolve().is_relative_to(mount[1])]
    return max(above, key=lambda mount: len(mount[1]))[2]
