"""The environments against the package index: opt in with SCALPEL_RESOLVE=1 (minutes, network)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif("SCALPEL_RESOLVE" not in os.environ, reason="set SCALPEL_RESOLVE=1 to run it")
@pytest.mark.parametrize("extras", ["", "[train]", "[train,png,vllm]"])
def test_an_environment_can_be_resolved(extras, tmp_path):
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--target", str(tmp_path / "none"), "--report", str(report), f"{ROOT}{extras}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {
        entry["metadata"]["name"].lower().replace("_", "-"): entry["metadata"]["version"]
        for entry in json.loads(report.read_text())["install"]
    }
    shown = ("torch", "transformers", "trl", "vllm", "mlflow", "lm-eval", "numpy", "pandas")
    print({name: found[name] for name in shown if name in found})
    assert ("vllm" in found) == ("vllm" in extras)
    assert ("torch" in found) == bool(extras)
