"""The plain install: what works where none of the packages is there that the extras bring."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

import mlflow_scalpel
from mlflow_scalpel import extras
from mlflow_scalpel.cli import main
from mlflow_scalpel.errors import MissingPackage
from tests.server.conftest import log_run

HIDDEN = sorted(
    {"tokenizers", "vllm", *(one for names in extras.PACKAGES.values() for one in names)}
)
# Python imports it by itself when it starts, and in every process that such a one starts.
SITE = f"""
import sys
HIDDEN = {HIDDEN}
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *where):
        return None if name.split(".")[0] in HIDDEN else self.finder.find_spec(name, *where)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
# What a tracking server and a laptop that only looks import. Of the other rooms, what these use.
ROOMS = ("chat", "cli", "data", "metrics", "recipes", "runs", "server", "views")
IMPORT_ALL = f"""
import importlib, pkgutil, mlflow_scalpel
for module in pkgutil.walk_packages(mlflow_scalpel.__path__, "mlflow_scalpel."):
    room = module.name.split(".")[1]
    if not module.name.endswith("__main__") and (room in {ROOMS} or not hasattr(
        importlib.import_module("mlflow_scalpel." + room), "__path__"
    )):
        importlib.import_module(module.name)
"""
LOG = """
import sys, mlflow, mlflow_scalpel
with mlflow.start_run():
    mlflow_scalpel.log_checkpoint(sys.argv[1], step=1, base=sys.argv[2]).wait()
"""
PAGES = """
import json, sys
from mlflow_scalpel.server.loopback import make_app
from mlflow_scalpel.views.pages import PAGES
client = make_app(sys.argv[1]).test_client()
for page in PAGES:
    for path in (page.name, f"data/figures?page={page.name}&runs={sys.argv[2]}"):
        answer = client.get(f"/scalpel/{path}", headers={"Host": "localhost"})
        assert answer.status_code == 200, (path, answer.text)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert not any("error" in line for line in lines), (page.name, answer.text)
    print("shown", page.name, sum("figure" in line for line in lines))
"""


@pytest.fixture
def light(tmp_path: Path):
    """`light(*arguments)` runs Python without the packages, and gives what it printed."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    paths = os.pathsep.join([str(tmp_path / "site"), *sys.path[1:]])

    def run(*arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": paths},
            cwd=tmp_path,
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    return run


def test_the_packages_are_hidden_from_it(light):
    assert "No module named 'torch'" in light("-c", "import torch", status=1)


def test_the_light_rooms_are_imported(light):
    light("-c", IMPORT_ALL)


def test_a_checkpoint_is_logged_listed_pulled_and_verified(
    light, tracking, first_model, make_model, tmp_path
):
    light("-c", LOG, str(make_model(2)), str(first_model))
    found = mlflow_scalpel.list_checkpoints()
    assert list(found["state"]) == ["READY"]
    command = ("-m", "mlflow_scalpel.cli")
    run_id, uri = found["run_id"][0], found["uri"][0]
    assert uri in light(*command, "checkpoints", "--columns", "uri")
    assert str(tmp_path / "pulled") in light(
        *command, "pull", uri, "--dst", str(tmp_path / "pulled")
    )
    assert "1 checkpoints (1 ok)" in light(*command, "verify", uri)
    assert "nothing to delete" in light(*command, "prune", run_id, "--keep", "1", "--dry-run")


def test_a_run_is_reported_and_shown(light, tracking, tmp_path):
    client = MlflowClient(tracking)
    experiment_id = client.get_experiment_by_name("tests").experiment_id
    run_id = log_run(client, experiment_id, "aaaa1111")
    report = tmp_path / "report.html"
    light("-m", "mlflow_scalpel.cli", "report", run_id, "--out", str(report))
    assert "Plotly.newPlot" in report.read_text()
    printed = light("-c", PAGES, tracking, run_id).splitlines()
    shown = [line.split() for line in printed if line.startswith("shown ")]
    assert shown
    assert all(int(figures) for _, _, figures in shown), shown


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    def find_spec(name: str) -> object:
        return None if name == package else object()

    monkeypatch.setattr("mlflow_scalpel.extras.find_spec", find_spec)


@pytest.mark.parametrize(
    "command",
    ["compare BASE MODEL", "restore MODEL --base BASE --out DIRECTORY", "plan sft/tiny"],
    ids=lambda command: command.split()[0],
)
def test_a_command_says_which_extra_it_needs(command, monkeypatch, capsys):
    without(monkeypatch, "transformers")
    assert main(command.split()) == 2
    assert capsys.readouterr().err == (
        f"mlflow-scalpel {command.split()[0]} needs transformers, which is not installed: "
        "pip install 'mlflow-scalpel[measure]'\n"
    )
    with pytest.raises(SystemExit):
        main([command.split()[0], "--help"])
    assert "Needs more than a plain install: pip install" in capsys.readouterr().out


def test_a_function_says_which_extra_it_needs(monkeypatch):
    without(monkeypatch, "torch")
    for name in ("compare", "top_tokens"):
        with pytest.raises(
            MissingPackage, match=rf"mlflow_scalpel.{name} needs torch.*\[measure\]"
        ):
            getattr(mlflow_scalpel, name)


@pytest.mark.parametrize(
    ("stage", "extra"), [("sft", "train"), ("main", "train"), ("evaluate", "eval")]
)
def test_an_entry_point_says_which_extra_it_needs(stage, extra, light):
    """Before MLflow is imported or a run is made."""
    file = Path(__file__).parents[1] / "projects" / stage / f"{stage}.py"
    said = light(str(file), status=2)
    assert f"the entry point {stage} needs torch, which is not installed" in said
    assert f"[{extra}]" in said
