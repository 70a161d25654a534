"""`pip install mlflow-scalpel` in an environment of its own: its size, and its server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_scalpel import extras
from mlflow_scalpel.views.pages import PAGES
from tests.server.conftest import ask, log_run
from tests.servers import Server, _running

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
MOST_BYTES = 120e6  # that a plain install may take beside MLflow's own
# What is installed, and the size of all that MLflow does not bring.
SIZES = """
import importlib.metadata, json, re
from packaging.requirements import Requirement
def name(text):
    return re.sub("[-_.]+", "-", text).lower()
installed = {name(one.name): one for one in importlib.metadata.distributions()}
of_mlflow, new = set(), {"mlflow", "pip", "setuptools"}
while new:
    of_mlflow |= new
    wanted = [Requirement(text) for one in new for text in installed[one].requires or []]
    new = {name(one.name) for one in wanted if not one.marker or one.marker.evaluate({"extra": ""})}
    new = (new & installed.keys()) - of_mlflow
def size(one):
    files = [file.locate() for file in one.files]
    return sum(file.stat().st_size for file in files if file.is_file())
print(json.dumps({key: size(one) for key, one in installed.items() if key not in of_mlflow}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with a plain install, of the versions that are tested."""
    folder = tmp_path_factory.mktemp("plain")
    source = folder / "source"  # a build leaves files behind
    source.mkdir()
    shutil.copytree(ROOT / "mlflow_scalpel", source / "mlflow_scalpel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy2(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "-c", "constraints.txt", "."], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return python


def test_it_is_small(python, tmp_path):
    command = [python, "-P", "-c", SIZES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    sizes = json.loads(done.stdout)
    assert "mlflow-scalpel" in sizes
    heavy = {one for packages in extras.PACKAGES.values() for one in packages}
    assert not heavy & {name.replace("-", "_") for name in sizes}
    assert sum(sizes.values()) < MOST_BYTES, sizes


def test_its_server_shows_the_pages(python, tmp_path):
    server = Server(
        tmp_path,
        options=["--app-name", "scalpel"],
        environment={"PYTHONPATH": ""},
        python=python,
    )
    for running in _running(server):
        client = MlflowClient(running.uri)
        run_id = log_run(client, client.create_experiment("plain"), "aaaa1111")
        for page in PAGES:
            assert ask(f"{running.uri}/scalpel/{page.name}").status == 200
            shown = ask(f"{running.uri}/scalpel/data/figures?page={page.name}&runs={run_id}")
            assert shown.status == 200
            assert any("figure" in line for line in shown.lines), page.name
            assert not any("error" in line for line in shown.lines), page.name
