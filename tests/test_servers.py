"""The servers that other tests rely on do what they say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psycopg2
import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tests.servers import Proxy, Server, free_port

SIZE = 3_000_000


@pytest.fixture
def impatient(monkeypatch):
    """A client that waits for 2 seconds and does not try again."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    file = tmp_path / "payload.bin"
    file.write_bytes(os.urandom(SIZE))
    return file


def log_run(payload: Path) -> str:
    with mlflow.start_run() as run:
        mlflow.log_metric("loss", 0.5, step=3)
        mlflow.log_artifact(str(payload))
    return run.info.run_id


def test_a_run_is_logged_through_the_server_and_its_files_too(any_server, track_at, payload):
    track_at(any_server.uri)
    run_id = log_run(payload)
    run = MlflowClient().get_run(run_id)
    assert run.data.metrics == {"loss": 0.5}
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    (stored,) = any_server.artifacts.glob(f"*/{run_id}/artifacts/payload.bin")
    assert stored.read_bytes() == payload.read_bytes()


@pytest.mark.slow
def test_postgresql_holds_the_run(postgres_server, track_at, payload):
    track_at(postgres_server.uri)
    run_id = log_run(payload)
    assert postgres_server.store_uri.startswith("postgresql+psycopg2://")
    address = postgres_server.store_uri.replace("postgresql+psycopg2", "postgresql")
    with psycopg2.connect(address) as connection, connection.cursor() as cursor:
        cursor.execute("select key, value, step from metrics where run_uuid = %s", (run_id,))
        assert cursor.fetchall() == [("loss", 0.5, 3)]


@pytest.mark.slow
def test_a_server_goes_away_and_comes_back_with_its_data(
    restartable_server, track_at, payload, impatient
):
    server = restartable_server
    track_at(server.uri)
    run_id = log_run(payload)

    server.pause()
    begin = time.monotonic()
    with pytest.raises(MlflowException, match="timed out"):
        MlflowClient().get_run(run_id)
    assert 1.5 < time.monotonic() - begin < 10
    server.resume()
    assert MlflowClient().get_run(run_id).data.metrics == {"loss": 0.5}

    server.stop()
    with pytest.raises(MlflowException, match=r"Connection (refused|aborted)"):
        MlflowClient().get_run(run_id)
    server.start()
    assert MlflowClient().get_run(run_id).data.metrics == {"loss": 0.5}
    downloaded = mlflow.artifacts.download_artifacts(f"runs:/{run_id}/payload.bin")
    assert Path(downloaded).read_bytes() == payload.read_bytes()


@pytest.mark.slow
def test_a_server_that_does_not_start_shows_its_log(tmp_path):
    server = Server(tmp_path, store_uri="oracle://nobody")
    with pytest.raises(RuntimeError, match="oracle"):
        server.start()
    server.stop()


def test_no_server_outlives_tests_that_are_killed(tmp_path):
    script = (
        "import os, pathlib, signal, sys\n"
        "from tests.servers import Process\n"
        "log = pathlib.Path(sys.argv[1])\n"
        "server = Process(['sh', '-c', 'sleep 60 & echo $!; wait'], log)\n"
        "server.wait_until(lambda: '\\n' in log.read_text())\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    log = tmp_path / "log"
    root = Path(__file__).parents[1]
    killed = subprocess.run([sys.executable, "-c", script, str(log)], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    child = Path("/proc") / log.read_text().strip() / "stat"
    wait_until(lambda: not child.exists() or child.read_text().split()[2] == "Z")


def test_the_proxy_passes_everything_and_counts_each_byte(faulty, track_at, payload):
    track_at(faulty.uri)
    run_id = log_run(payload)
    (upload,) = faulty.exchanges(r"PUT .*payload\.bin")
    assert (upload.sent, upload.status) == (SIZE, 200)
    mlflow.artifacts.download_artifacts(f"runs:/{run_id}/payload.bin", dst_path="down")
    assert Path("down/payload.bin").read_bytes() == payload.read_bytes()
    (download,) = faulty.exchanges(r"GET .*mlflow-artifacts/artifacts/.*payload\.bin")
    assert (download.sent, download.received) == (0, SIZE)
    faulty.forget()
    assert faulty.exchanges() == []


def test_the_proxy_fails_the_first_requests_of_a_kind_and_then_passes(
    faulty, track_at, payload, monkeypatch
):
    track_at(faulty.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    faulty.answer(500, r"PUT .*payload\.bin", times=2)
    log_run(payload)
    tries = faulty.exchanges(r"PUT .*payload\.bin")
    assert [(t.status, t.sent) for t in tries] == [(500, SIZE), (500, SIZE), (200, SIZE)]


def test_the_proxy_answers_hangs_and_refuses(faulty, track_at, impatient):
    experiment = track_at(faulty.uri)
    client = MlflowClient()
    faulty.forget()
    faulty.answer(503, "experiments/get")
    with pytest.raises(MlflowException, match="503"):
        client.get_experiment(experiment)
    client.search_runs([experiment])  # another path passes

    faulty.clear()
    faulty.hang("experiments/get")
    begin = time.monotonic()
    with pytest.raises(MlflowException, match="timed out"):
        client.get_experiment(experiment)
    assert 1.5 < time.monotonic() - begin < 10

    faulty.clear()
    faulty.refuse("experiments/get")
    with pytest.raises(MlflowException, match=r"Remote end closed|Connection aborted"):
        client.get_experiment(experiment)

    faulty.clear()
    assert client.get_experiment(experiment).experiment_id == experiment
    statuses = [exchange.status for exchange in faulty.exchanges(r"experiments/get\?")]
    assert statuses == [503, None, None, 200]


def test_the_proxy_cuts_a_download_and_honours_a_range(faulty, track_at, payload):
    track_at(faulty.uri)
    run_id = log_run(payload)
    root = MlflowClient().get_run(run_id).info.artifact_uri.removeprefix("mlflow-artifacts:/")
    url = f"{faulty.uri}/api/2.0/mlflow-artifacts/artifacts/{root}/payload.bin"
    faulty.cut(r"GET .*payload\.bin", after=1_000_000, times=1)
    with pytest.raises(requests.RequestException):
        requests.get(url, timeout=10)
    rest = requests.get(url, timeout=10, headers={"Range": "bytes=1000000-"})
    assert rest.status_code == 206
    assert rest.content == payload.read_bytes()[1_000_000:]
    downloads = faulty.exchanges(r"GET .*payload\.bin")
    assert [download.received for download in downloads] == [1_000_000, SIZE - 1_000_000]


def test_a_proxy_before_a_server_that_is_gone_closes_the_connection():
    proxy = Proxy(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(requests.ConnectionError):
        requests.get(proxy.uri, timeout=10)
    proxy.close()


def wait_until(happened, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)
