"""The pages on every kind of server that MLflow starts."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from tests.server.conftest import ask, log_run
from tests.servers import Server, _running

pytestmark = pytest.mark.slow  # a server each


@pytest.mark.parametrize(
    ("options", "prefix"),
    [((), "/deep/prefix"), (("--gunicorn-opts", "--timeout 60 --threads 4"), "/deep")],
    ids=["uvicorn", "gunicorn"],
)
def test_behind_a_prefix(tmp_path_factory, options, prefix):
    folder = tmp_path_factory.mktemp("prefixed")
    for server in _running(
        Server(folder, options=["--app-name", "scalpel", *options], prefix=prefix)
    ):
        client = MlflowClient(server.uri)
        run_id = log_run(client, client.create_experiment("e"), "aaaa1111")
        assert "static-files" in ask(f"{server.uri}/").text  # the stock UI
        assert ask(f"{server.uri}/scalpel/weights?runs={run_id}").status == 200
        assert ask(f"{server.uri}/scalpel/static/page.js").status == 200
        answer = ask(f"{server.uri}/scalpel/data/figures?page=weights&runs={run_id}")
        assert any("figure" in line for line in answer.lines)
        assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
        assert ask(f"{server.uri}/scalpel/", Host="evil.example").status == 403
        without = server.uri.removesuffix(prefix)
        assert ask(f"{without}/scalpel/").status == 404
