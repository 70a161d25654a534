"""A server that is away is told as that, and not as a run or model that is missing."""

from __future__ import annotations

import shlex
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import pytest

from mlflow_scalpel.cli import main

RUN = "0123456789abcdef0123456789abcdef"


class _Page(BaseHTTPRequestHandler):
    """A proxy whose server is being redeployed."""

    def do_GET(self):
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b"<html>no upstream</html>")

    do_POST = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture(params=["nobody listens", "a proxy's 404"])
def away(request, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    if request.param == "nobody listens":
        server.server_close()
    else:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    before = mlflow.get_tracking_uri()
    uri = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    yield uri
    mlflow.set_tracking_uri(before)
    if request.param != "nobody listens":
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "command",
    [
        f"verify {RUN}",
        f"pull runs:/{RUN}#last --dst there",
        "pull models:/name/3 --dst there",
        "pull models:/m-0123456789abcdef0123456789abcdef --dst there",
        "checkpoints --experiment any",
        f"prune {RUN} --keep 2",
        f"report {RUN} --out report.html",
        "log . --run-id " + RUN,
    ],
)
def test_a_server_that_is_away_is_told_as_that(command, away, tmp_path, monkeypatch, capsys):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "config.json").write_text("{}")
    (tmp_path / "checkpoint-1" / "model.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)

    status = main(shlex.split(command))

    said = capsys.readouterr().err
    assert status == 2
    assert away in said
    assert "there is no" not in said
    assert "Traceback" not in said
