"""The pages on every kind of server that MLflow starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.server.conftest import ask, log_run
from tests.servers import Server, _running

pytestmark = pytest.mark.slow  # a server each


GUNICORN = ["--app-name", "scalpel", "--gunicorn-opts", "--timeout 60 --threads 4"]


@pytest.fixture(params=["uvicorn", "gunicorn"])
def prefixed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Server, str, str]]:
    """A server behind a prefix, the prefix, and a run there."""
    if request.param == "uvicorn":
        shown = request.getfixturevalue("pages")
        yield shown.server, "/deep/prefix", shown.runs[0]
        return
    for server in _running(Server(tmp_path, options=GUNICORN, prefix="/deep")):
        client = MlflowClient(server.uri)
        yield server, "/deep", log_run(client, client.create_experiment("e"), "aaaa1111")


def test_behind_a_prefix(prefixed):
    server, prefix, run_id = prefixed
    assert "static-files" in ask(f"{server.uri}/").text  # the stock UI
    assert ask(f"{server.uri}/scalpel/weights?runs={run_id}").status == 200
    assert ask(f"{server.uri}/scalpel/static/page.js").status == 200
    answer = ask(f"{server.uri}/scalpel/data/figures?page=weights&runs={run_id}")
    assert any("figure" in line for line in answer.lines)
    assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
    assert ask(f"{server.uri}/scalpel/", Host="evil.example").status == 403
    without = server.uri.removesuffix(prefix)
    assert ask(f"{without}/scalpel/").status == 404
