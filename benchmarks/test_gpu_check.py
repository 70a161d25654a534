"""The whole GPU check on a CPU: `make bench`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent


def check(folder: Path, *names: str) -> tuple[int, list[dict]]:
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--device", "cpu", "--small"]
    done = subprocess.run(
        [*command, "--seconds", "900", "--out", str(folder), "--only", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads((folder / "gpu_check.json").read_text())["rows"]


def test_an_error_hides_no_other_check(tmp_path):
    code, rows = check(tmp_path, "tiny_pair", "processes")  # without the runs that it compares
    assert code == 1
    assert [(row["check"], row["status"]) for row in rows] == [
        ("tiny_pair", "failed"),
        ("processes", "not run"),
    ]


def test_every_check_runs_on_a_cpu(tmp_path):
    code, rows = check(
        tmp_path, "machine", "plan", "runs", "tiny_pair", "pair", "large", "processes"
    )
    assert [row for row in rows if row["status"] in ("off", "failed")] == []
    assert code == 0
    assert len({row["check"] for row in rows}) == 7
