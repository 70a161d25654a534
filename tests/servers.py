"""Real servers for the tests: MLflow on SQLite and on PostgreSQL, and a proxy that misbehaves."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest

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
    ) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}{prefix}"
        self.store_uri = store_uri or f"sqlite:///{folder}/mlflow.db"
        self.artifacts = folder / "artifacts"
        """Where the server keeps the files."""
        self.log = folder / "server.log"
        self._folder = folder
        self._options = [*options, *(["--static-prefix", prefix] if prefix else [])]
        self._environment = dict(environment or {})
        self._process: Process | None = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
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


@dataclass
class Exchange:
    """A request that came through the proxy."""

    method: str
    path: str
    sent: int = 0
    """Bytes of the request's body that arrived."""
    received: int = 0
    """Bytes of the response's body that went back."""
    status: int | None = None
    """None where no answer was given."""


@dataclass
class _Rule:
    pattern: re.Pattern[str]
    fault: Literal["answer", "hang", "refuse", "cut"]
    number: int
    left: float  # requests that it still applies to
    released: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """A loopback HTTP proxy before a server, which does to requests what a test tells it to.

    A pattern is a regular expression, searched in "METHOD /path?query"; the first rule that matches
    and is not used up decides, and without one the request passes. `times` is the number of
    requests that a rule applies to.
    """

    def __init__(self, upstream: str) -> None:
        self._listener = _Listener(upstream)
        self.uri = f"http://127.0.0.1:{self._listener.server_address[1]}"
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, status: int, pattern: str = "", *, times: float = float("inf")) -> None:
        """Read such requests whole and answer with a status such as 500."""
        self._listener.add(pattern, "answer", status, times)

    def hang(self, pattern: str = "", *, times: float = float("inf")) -> None:
        """Never read nor answer such requests, until `clear` or the end of the test."""
        self._listener.add(pattern, "hang", 0, times)

    def refuse(self, pattern: str = "", *, times: float = float("inf")) -> None:
        """Close the connection of such requests."""
        self._listener.add(pattern, "refuse", 0, times)

    def cut(self, pattern: str = "", *, after: int, times: float = float("inf")) -> None:
        """Pass such requests, but close the connection after so many bytes of the response."""
        self._listener.add(pattern, "cut", after, times)

    def clear(self) -> None:
        """Forget all rules, and close what hangs; later requests pass."""
        self._listener.clear()

    def exchanges(self, pattern: str = "") -> list[Exchange]:
        """The requests that matched so far, in the order in which they came."""
        return [
            exchange
            for exchange in list(self._listener.exchanges)
            if re.search(pattern, f"{exchange.method} {exchange.path}")
        ]

    def forget(self) -> None:
        """Count from zero again."""
        self._listener.exchanges.clear()

    def close(self) -> None:
        self._listener.clear()
        self._listener.shutdown()
        self._listener.server_close()


@pytest.fixture
def faulty(mlflow_server: Server) -> Iterator[Proxy]:
    """A proxy before the shared `mlflow server`; everything passes until told otherwise."""
    proxy = Proxy(mlflow_server.uri)
    yield proxy
    proxy.close()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # an upload that a test gave up on may still be under way

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.exchanges: list[Exchange] = []
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def add(
        self,
        pattern: str,
        fault: Literal["answer", "hang", "refuse", "cut"],
        number: int,
        times: float,
    ) -> None:
        with self._lock:
            self._rules.append(_Rule(re.compile(pattern), fault, number, times))

    def clear(self) -> None:
        with self._lock:
            rules, self._rules = self._rules, []
        for rule in rules:
            rule.released.set()

    def rule_for(self, request: str) -> _Rule | None:
        with self._lock:
            for rule in self._rules:
                if rule.left > 0 and rule.pattern.search(request):
                    rule.left -= 1
                    return rule
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hung up, which they are made to do here."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Body:
    """The request's body, counted as it is read."""

    def __init__(self, handler: _Handler, exchange: Exchange) -> None:
        self._handler = handler
        self._left = int(handler.headers.get("Content-Length") or 0)
        self._exchange = exchange

    def read(self, size: int = 1 << 16) -> bytes:
        content = self._handler.rfile.read(min(size, self._left))
        self._left -= len(content)
        self._exchange.sent += len(content)
        if self._left and not content:
            raise ConnectionAbortedError("the client hung up in the middle of its request")
        return content


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def handle_request(self) -> None:
        exchange = Exchange(self.command, self.path)
        self.server.exchanges.append(exchange)
        rule = self.server.rule_for(f"{self.command} {self.path}")
        body = _Body(self, exchange)
        if "Transfer-Encoding" in self.headers:
            exchange.status = 411
            self.send_error(411, "this proxy only passes bodies that state their length")
            self.close_connection = True
        elif rule is None or rule.fault == "cut":
            self._pass(exchange, body, float("inf") if rule is None else rule.number)
        elif rule.fault == "answer":
            while body.read():
                pass
            exchange.status = rule.number
            self.send_error(rule.number, "the test wants it so")
        else:
            if rule.fault == "hang":
                rule.released.wait()
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

    def _pass(self, exchange: Exchange, body: _Body, cut_after: float) -> None:
        upstream = http.client.HTTPConnection(self.server.upstream)
        try:
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in ("host", "connection", "keep-alive", "expect")
            }
            has_body = "Content-Length" in self.headers
            upstream.request(self.command, self.path, body if has_body else None, headers)
            response = upstream.getresponse()
            exchange.status = response.status
            self._send_back(response, exchange, cut_after)
        except (OSError, http.client.HTTPException):
            self.close_connection = True
        finally:
            upstream.close()

    def _send_back(
        self, response: http.client.HTTPResponse, exchange: Exchange, cut_after: float
    ) -> None:
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in ("connection", "keep-alive", "transfer-encoding"):
                self.send_header(name, value)
        chunked = response.length is None
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while exchange.received < cut_after and (
            content := response.read(int(min(1 << 16, cut_after - exchange.received)))
        ):
            exchange.received += len(content)  # before the client, who may ask at once, has it
            self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content) if chunked else content)
        if exchange.received >= cut_after or response.length:
            self.close_connection = True
        elif chunked:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep the tests' output free of requests."""
