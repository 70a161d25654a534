"""`make install` and the Python that it takes, with stand-ins for Python and pip."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Makes an environment whose Python is itself; what pip is asked for, it notes, and warns.
PYTHON = """#!/bin/sh
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip "*) echo "$@" >> calls; echo "WARNING: of pip"; exit {status} ;;
    --version) echo "Python 3.13.0" ;;
esac
"""


@pytest.fixture
def make(tmp_path: Path):
    """`make(target)` in a copy of what the Makefile reads."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", ".ci/python"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)

    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        write(tmp_path / "bin" / "python3.13", PYTHON.format(status=status))
        paths = os.pathsep.join([str(tmp_path / "bin"), "/usr/bin", "/bin"])
        command = ["make", "--no-print-directory", *arguments]
        environment = {"PATH": paths}  # none that an outer make has set
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return run


def write(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def calls(directory: Path) -> int:
    return len((directory / "calls").read_text().splitlines())


def test_it_says_what_it_does_and_does_it_once(make, tmp_path):
    said = make("install").stdout
    assert "packages for Python 3.13.0 into .venv" in said
    assert "WARNING" not in said
    assert "WARNING" in (tmp_path / ".venv/install.log").read_text()
    for target in ("install", "lint", "test"):
        assert "pip install" not in make("--dry-run", target).stdout
    assert calls(tmp_path) == 1
    for name in ("pyproject.toml", "constraints.txt"):
        later = (tmp_path / ".venv/.installed").stat().st_mtime + 5
        os.utime(tmp_path / name, (later, later))
        assert make("install").returncode == 0
        os.utime(tmp_path / ".venv/.installed", (later, later))
    assert calls(tmp_path) == 3


def test_what_fails_is_shown_and_done_again(make, tmp_path):
    done = make("install", status=1)
    assert done.returncode != 0
    assert "WARNING: of pip" in done.stdout
    (tmp_path / ".venv/bin/python").unlink()
    assert make("install").returncode == 0
    assert calls(tmp_path) == 2


def test_the_newest_python_that_can_make_environments(tmp_path):
    def found() -> subprocess.CompletedProcess[str]:
        command = ["/bin/sh", str(ROOT / ".ci/python")]
        return subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True)

    write(tmp_path / "python3.13", "#!/bin/sh\nexit 127\n")  # as a version manager's command may
    assert found().returncode == 1
    assert "install python3 and python3-venv" in found().stderr
    write(tmp_path / "python3", "#!/bin/sh\nexit 0\n")
    assert found().stdout == f"{tmp_path}/python3\n"
    write(tmp_path / "python3.12", "#!/bin/sh\nexit 0\n")
    assert found().stdout == f"{tmp_path}/python3.12\n"
