"""Real servers for the tests: MLflow on SQLite and on PostgreSQL, and a proxy that misbehaves."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.proxy import Proxy

START_SECONDS = 90  # 6 on an idle machine, most of them imports
POSTGRES_PACKAGE = "postgresql"  # as apt-get names it


class Process:
    """A server and its children, one process group, which never outlives the tests."""

    def __init__(self, command: list[str], log: Path, **options: Any) -> None:
        with log.open("ab") as output:
            self._leader = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **options,
            )
        # Its input ends when pytest does, even by a signal that lets no fixture tear down.
        self._guard = subprocess.Popen(
            ["sh", "-c", f"read -r line; kill -s KILL -- -{self._leader.pid}"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._log = log

    @property
    def alive(self) -> bool:
        return self._leader.poll() is None

    def wait_until(self, answers: Callable[[], bool]) -> None:
        """Block until the server answers; raises with its log where it ends or never does."""
        deadline = time.monotonic() + START_SECONDS
        while not answers():
            if not self.alive or time.monotonic() > deadline:
                self.end()
                raise RuntimeError(f"the server did not start:\n{self._log.read_text()[-8000:]}")
            time.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        os.killpg(self._leader.pid, number)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the group with a signal, and by force if that takes more than 10 seconds."""
        self._guard.kill()
        self._guard.wait()
        self._guard.stdin.close()
        with contextlib.suppress(ProcessLookupError):  # children may outlive the leader
            self.send(number)
        try:
            self._leader.wait(10)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self._leader.wait()


class Server:
    """An `mlflow server` that keeps port and store when it is stopped and started again.

    Artifacts go through the server: their location is mlflow-artifacts:/.
    """

    def __init__(
        self,
        folder: Path,
        store_uri: str | None = None,
        *,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        prefix: str = "",
        python: Path = Path(sys.executable),
    ) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}{prefix}"
        self.store_uri = store_uri or f"sqlite:///{folder}/mlflow.db"
        self.artifacts = folder / "artifacts"
        """Where the server keeps the files."""
        self.log = folder / "server.log"
        self._folder = folder
        self._python = python
        self._options = [*options, *(["--static-prefix", prefix] if prefix else [])]
        self._environment = dict(environment or {})
        self._process: Process | None = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [str(self._python), "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", self.store_uri]
        command += ["--artifacts-destination", str(self.artifacts), *self._options]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
        # Scheduled judges and the like: seven more processes, which no test here uses.
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        environment |= self._environment
        self._process = Process(command, self.log, cwd=self._folder, env=environment)
        self._process.wait_until(self.answers)

    def answers(self) -> bool:
        """Whether the server says that it is well, within 5 seconds."""
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        """Kill the server: connections are refused from now on."""
        if self._process is not None:
            self._process.end()
            while self.answers():  # its child goes a moment after it
                time.sleep(0.02)
        self._process = None

    def pause(self) -> None:
        """Freeze the server: connections are accepted and never answered."""
        assert self._process is not None
        self._process.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        assert self._process is not None
        self._process.send(signal.SIGCONT)


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An `mlflow server` on SQLite that all tests share; leave it running."""
    yield from _running(Server(tmp_path_factory.mktemp("server")))


@pytest.fixture
def restartable_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An `mlflow server` on SQLite of the test's own, to stop, freeze and start again."""
    yield from _running(Server(tmp_path_factory.mktemp("server")))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL cluster of the tests' own; the URI of its database for SQLAlchemy."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    in_path = shutil.which("postgres")
    if not found and in_path is None:
        pytest.skip(f"PostgreSQL is not installed: apt-get install {POSTGRES_PACKAGE}")
    programs = found[-1].parent if found else Path(str(in_path)).resolve().parent
    # Not under pytest's own folder, which only this user may enter.
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        options: dict[str, Any] = {"cwd": folder}
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as; the package made a user for it
            shutil.chown(folder, "postgres", "postgres")
            options |= {"user": "postgres", "group": "postgres", "extra_groups": []}
        data, log = folder / "data", folder / "postgres.log"
        make = ["--auth=trust", "--username=scalpel", "--encoding=UTF8", "--locale=C", "--no-sync"]
        subprocess.run(
            [programs / "initdb", "--pgdata", data, *make],
            check=True,
            stdout=subprocess.DEVNULL,
            **options,
        )
        # Only through a socket in the folder, which nobody else may enter.
        serve = [str(programs / "postgres"), "-D", str(data), "-k", str(folder), "-p", "5432"]
        serve += ["-c", "listen_addresses=", "-c", "fsync=off"]
        process = Process(serve, log, **options)
        try:
            process.wait_until(
                lambda: (
                    "ready to accept connections" in log.read_text()
                    and (folder / ".s.PGSQL.5432").exists()
                )
            )
            yield f"postgresql+psycopg2://scalpel@/postgres?host={folder}"
        finally:
            process.end(signal.SIGINT)  # ends connections, too


@pytest.fixture(scope="session")
def postgres_server(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An `mlflow server` on PostgreSQL that all tests share; leave it running."""
    yield from _running(Server(tmp_path_factory.mktemp("server"), store_uri=postgres))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def any_server(request: pytest.FixtureRequest) -> Server:
    """The shared `mlflow server` on SQLite, then the one on PostgreSQL."""
    name = {"sqlite": "mlflow_server", "postgresql": "postgres_server"}[request.param]
    server: Server = request.getfixturevalue(name)
    return server


def _running(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def track_at(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], str]]:
    """`track_at(uri)` makes a new experiment at a server and logs there; the experiment's ID."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)

    def track(uri: str) -> str:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        experiment = mlflow.set_experiment(f"{request.node.name}-{uuid.uuid4().hex[:8]}")
        return str(experiment.experiment_id)

    yield track
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)


@pytest.fixture
def faulty(mlflow_server: Server) -> Iterator[Proxy]:
    """A proxy before the shared `mlflow server`; everything passes until told otherwise."""
    proxy = Proxy(mlflow_server.uri)
    yield proxy
    proxy.close()
