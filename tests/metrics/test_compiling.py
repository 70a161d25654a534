"""What happens where there is no compiler, or one that cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_scalpel.metrics import compiling
from mlflow_scalpel.metrics.compiling import compiled
from mlflow_scalpel.metrics.update_sums import row_sums

PROGRAM = """
import warnings, torch
from mlflow_scalpel.metrics.compiling import compiled
from mlflow_scalpel.metrics.update_sums import row_sums

torch.set_num_threads(1)
w0, wt = torch.ones(3, 5), torch.full((3, 5), 2.0)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for _ in range(2):
        for one in (row_sums, lambda a, b: row_sums(a, b)):
            for ours, plain in zip(compiled(one)(w0, wt), row_sums(w0, wt), strict=True):
                assert torch.equal(ours, plain)
print([str(one.message) for one in told if "torch.compile" in str(one.message)])
"""


@pytest.mark.parametrize(
    "usable_for", [pytest.param("nothing", marks=pytest.mark.slow), "telling its version"]
)
def test_with_a_compiler_that_fails_the_function_runs_as_it_is(usable_for, tmp_path: Path):
    compiler = tmp_path / "c++"
    version = 'case "$1" in -v|--version) exec g++ --version;; esac\n'
    compiler.write_text(f"#!/bin/sh\n{version if usable_for != 'nothing' else ''}exit 1\n")
    compiler.chmod(0o755)
    settings = {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run without torch.compile") == 1


def test_without_a_compiler_the_function_runs_as_it_is(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for cached in (compiled, compiling._has_compiler, compiling._warn):
        cached.cache_clear()
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler was found"):
        assert compiled(row_sums) is row_sums
    for cached in (compiled, compiling._has_compiler, compiling._warn):
        cached.cache_clear()
