"""A tracking URI with a password is used for everything, and the password is in nothing written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.interpreters import Interpreter
from tests.servers import Proxy, Server, _running

pytestmark = pytest.mark.slow

USER, PASSWORD = "admin", "hunter2/of the:tests"
SECRETS = (b"hunter2", b"aHVudGVyMi", b"h1bnRlcjIv", b"odW50ZXIyL2")  # and as base64 has it
QUOTED = "hunter2%2Fof%20the%3Atests"
STAGE = """
from pathlib import Path
from mlflow_scalpel.runs.lifecycle import open_stage

with open_stage("compare", Path("recipes")) as stage:
    {body}
"""
RAISES = """
    import logging
    import mlflow
    print("works on", mlflow.get_tracking_uri())
    logging.getLogger("any").error("at %s", "{uri}")
    raise {kind}("no answer from {uri}/api?token=hunter2")
"""


@dataclass
class Site:
    server: Server
    proxy: Proxy
    folder: Path
    said: list[str]
    python: Interpreter

    @property
    def uri(self) -> str:
        return f"http://{USER}:{QUOTED}@{self.proxy.uri.removeprefix('http://')}"

    def run(self, *words: str, uri: str | None = None, **more: str) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        environment |= {"MLFLOW_TRACKING_URI": uri or self.uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment |= {"SCALPEL_PATIENCE": "2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"} | more
        done = self.python.run(words, cwd=self.folder, env=environment, timeout=200)
        self.said += [" ".join(map(str, words)), done.stdout, done.stderr]
        return done

    def scalpel(self, *words: str, **more: str) -> subprocess.CompletedProcess:
        return self.run("-m", "mlflow_scalpel.cli", *words, **more)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, python: Interpreter) -> Iterator[Site]:
    """A server that wants the password, and a proxy before it."""
    pytest.importorskip("flask_wtf", reason="MLflow's basic auth needs flask-wtf")
    folder = tmp_path_factory.mktemp("guarded")
    config = folder / "auth.ini"
    config.write_text(
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\n"
        f"database_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = {USER}\nadmin_password = {PASSWORD}\nauth_cache_ttl_seconds = 60\n"
    )
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-the-tests",
    }
    server = Server(folder, options=["--app-name", "scalpel-basic-auth"], environment=environment)
    work = tmp_path_factory.mktemp("work")
    for running in _running(server):
        config.unlink()
        proxy = Proxy(running.uri)
        yield Site(running, proxy, work, [], python)
        proxy.close()


def test_no_password_anywhere(site, make_model, monkeypatch):
    base, other = make_model(1), make_model(2)
    for name in ("runs", "late"):
        for step in (1, 2):
            shutil.copytree(other, site.folder / name / f"checkpoint-{step}")
    (site.folder / "recipes").mkdir()
    (site.folder / "recipes" / "tiny.yaml").write_text("stage: compare\nruns: [a, b]\n")
    scalpel = site.scalpel

    done = scalpel("log", "runs", "--base", str(base), "--register-as", "m")
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.split(": run ")[1].split(",")[0]
    for words in (
        ["checkpoints", "--run-id", run_id],
        ["verify", f"runs:/{run_id}"],
        ["report", run_id, "--out", "report.html"],
        ["compare", str(base), f"runs:/{run_id}", "--metrics", "weights", "--log"],
        ["pull", "models:/m/1", "--dst", "pulled"],
    ):
        done = scalpel(*words)
        assert done.returncode == 0, done.stderr
    for words in (  # that are refused
        ["log", "runs", "--run-id", "0" * 32],
        ["checkpoints", "--run-id", "0" * 32],
        ["verify", "runs:/" + "0" * 32],
        ["report", "0" * 32],
        ["pull", "models:/none/1"],
        ["prune", "0" * 32],
    ):
        assert scalpel(*words).returncode != 0

    # Sent later: with the same URI, and with user and password from the environment.
    for number, options in enumerate(
        (
            {},
            {
                "uri": site.proxy.uri,
                "MLFLOW_TRACKING_USERNAME": USER,
                "MLFLOW_TRACKING_PASSWORD": PASSWORD,
            },
        )
    ):
        site.proxy.answer(503, "POST .*/logged-models$")
        done = scalpel("log", "late", "--experiment", f"late {number}")
        assert done.returncode == 2
        assert "does not take what is sent" in done.stderr
        (spool,) = site.folder.rglob("spool.json")
        about = json.loads(spool.read_text())
        assert about["tracking_uri"] == site.proxy.uri
        for file in (file for file in spool.parent.rglob("*") if file.suffix == ".json"):
            if file.parent == spool.parent:
                assert file.stat().st_mode & 0o777 == 0o600, file
        assert spool.parent.stat().st_mode & 0o777 == 0o700
        search(site)
        site.proxy.clear()
        assert scalpel("upload", "late", uri=site.server.uri).returncode == 2  # without a password
        done = scalpel("upload", "late", **options)
        assert done.returncode == 0, done.stderr
        assert f"entries to {site.proxy.uri}" in done.stdout
        assert not list(site.folder.rglob("spool.json"))

    # Stages that fail with a URI in what they fail with, and while the server is away.
    for kind in ("ValueError", "mlflow.exceptions.MlflowException"):
        body = RAISES.format(uri=site.uri, kind=kind)
        (site.folder / "stage.py").write_text(STAGE.format(body=body.strip()))
        assert site.run("stage.py").returncode == 1
        (site.folder / "stage.py").unlink()
    site.proxy.answer(500)
    (site.folder / "stage.py").write_text(STAGE.format(body="pass"))
    assert site.run("stage.py").returncode != 0
    for words in (["checkpoints"], ["log", "late"], ["report", run_id], ["verify", run_id]):
        assert scalpel(*words).returncode != 0
    site.proxy.clear()
    search(site)

    # The pages of `ui`, in which nothing is answered but by an error.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    from mlflow_scalpel.server.loopback import make_app

    client = make_app(site.uri).test_client()
    paths = ["", "data/experiments", f"data/checkpoints?run={run_id}"]
    paths += [f"data/figures?page=overview&runs={run_id}", f"overview?runs={run_id}"]
    for _ in range(2):
        site.said += [client.get(f"/scalpel/{path}").get_data(as_text=True) for path in paths]
        site.proxy.answer(500)
    site.proxy.clear()
    search(site)

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    runs = MlflowClient(site.server.uri).search_runs(["0"], "tags.scalpel.failure LIKE '%'")
    failures = [run.data.tags["scalpel.failure"] for run in runs]
    assert len(failures) == 2
    assert all(site.proxy.uri in one and "token=***" in one for one in failures)


def search(site: Site) -> None:
    """Look for the password in all that was said and written, on either side."""
    assert not [one for one in site.said if "hunter2" in one]
    files = [*site.folder.rglob("*"), *site.server.log.parent.rglob("*")]
    assert len(files) > 20
    for file in files:
        if file.is_file() and file.name != "stage.py":
            content = file.read_bytes()
            assert not [one for one in SECRETS if one in content], file
