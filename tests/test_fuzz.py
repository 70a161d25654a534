"""Nothing that a file contains raises anything but a named error: 5 s of the fuzz of files."""

from __future__ import annotations

import runpy
from pathlib import Path

FUZZ = Path(__file__).parents[1] / "benchmarks" / "fuzz_files.py"


def test_no_file_does_harm():
    result = runpy.run_path(str(FUZZ))["fuzz"](5.0, seed=2)
    assert not result.failures
    assert result.refused > 20
    assert result.accepted > 20
