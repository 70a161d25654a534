"""Python processes that begin with the libraries imported: forked from one that has done it.

Importing torch, transformers, trl and mlflow takes a stage ten seconds, and training the tests'
models one. A process here has its own ID, is killed and waited for like any other, ends as an
interpreter does, and imports mlflow_scalpel itself.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

MLFLOW = ["mlflow", "mlflow.store.tracking.sqlalchemy_store", "alembic.command", "psutil"]
MLFLOW += ["pandas", "pyarrow.parquet", "safetensors", "xxhash", "pydantic"]
TRAINING = [*MLFLOW, "trl.trainer.sft_trainer", "trl.trainer.grpo_trainer", "reasoning_gym"]
TRAINING += ["transformers.models.olmo2.modeling_olmo2", "transformers.models.llama.modeling_llama"]
TRAINING += ["lm_eval", "lm_eval.evaluator", "math_verify", "scipy.stats", "matplotlib.figure"]


class Child:
    """A forked process, with what of `subprocess.Popen` the tests use."""

    def __init__(self, interpreter: Interpreter, pid: int, files: Sequence[Any]) -> None:
        self.pid = pid
        self.stdin, self.stdout, self.stderr = files
        self.returncode: int | None = None
        self._interpreter = interpreter

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._interpreter.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.02)
        return code

    def communicate(self, timeout: float = 600) -> tuple[str | None, str | None]:
        """All that it still prints on standard output and standard error, and its end."""
        read: dict[int, str] = {}

        def drain(number: int, file: Any) -> None:
            read[number] = file.read()

        streams = {n: f for n, f in enumerate((self.stdout, self.stderr)) if f is not None}
        threads = [threading.Thread(target=drain, args=one, daemon=True) for one in streams.items()]
        for thread in threads:
            thread.start()
        self.wait(timeout)
        for thread in threads:
            thread.join(timeout)
        return read.get(0), read.get(1)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Interpreter:
    """A process that imports `modules` once and forks for every command it is given."""

    def __init__(self, modules: Sequence[str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # What libraries read when they are imported.
        quiet = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno()), *modules],
            env={**os.environ, **quiet, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # what cannot be sought in, as what its children have
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        theirs.close()
        self._connection = ours
        self._lock = threading.Lock()

    def ask(self, request: dict[str, Any], files: Sequence[int] = ()) -> Any:
        with self._lock:
            socket.send_fds(self._connection, [json.dumps(request).encode()], files)
            answer = self._connection.recv(1000)
        if not answer:
            raise RuntimeError(self._process.communicate()[0].decode()[-3000:])
        return json.loads(answer)

    def start(
        self,
        words: Sequence[str | Path],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        start_new_session: bool = False,
    ) -> Child:
        """Start what `python` with these words starts: a script, `-c` code or `-m` module."""
        given: list[int] = []
        kept: list[Any] = []
        for number, how in enumerate((stdin, stdout, stderr)):
            if how == subprocess.PIPE:
                ends = os.pipe()
                given.append(ends[0 if number == 0 else 1])
                mode = "w" if number == 0 else "r"
                kept.append(os.fdopen(ends[1 if number == 0 else 0], mode, errors="replace"))
            elif how == subprocess.STDOUT:
                given.append(os.dup(given[1]))
                kept.append(None)
            else:
                given.append(os.open(os.devnull, os.O_RDWR))
                kept.append(None)
        request = {
            "words": [str(word) for word in words],
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "session": start_new_session,
        }
        pid = self.ask(request, given)
        for number in given:
            os.close(number)
        return Child(self, pid, kept)

    def run(
        self, words: Sequence[str | Path], *, timeout: float = 600, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Start a process and wait for its end, as `subprocess.run` does."""
        child = self.start(words, **options)
        try:
            said = child.communicate(timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            raise
        return subprocess.CompletedProcess(list(words), child.wait(), *said)

    def close(self) -> None:
        self._connection.close()
        self._process.communicate()


def _running(modules: Sequence[str]) -> Iterator[Interpreter]:
    interpreter = Interpreter(modules)
    yield interpreter
    interpreter.close()


@pytest.fixture(scope="session")
def python() -> Iterator[Interpreter]:
    """Starts Python processes in which MLflow is imported."""
    yield from _running(MLFLOW)


@pytest.fixture(scope="session")
def training_python() -> Iterator[Interpreter]:
    """Starts Python processes in which everything that training takes is imported."""
    yield from _running(TRAINING)


def _serve(connection: socket.socket) -> dict[str, Any]:
    """Fork for each request; in the parent it never returns, in a child with its request."""
    while True:
        message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        if not message:
            os._exit(0)
        request: dict[str, Any] = json.loads(message)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                for number, file in enumerate(files):
                    os.dup2(file, number)
                connection.close()
                os.closerange(3, max(files) + 1)
                return request
            for file in files:
                os.close(file)
        connection.send(json.dumps(answer).encode())


def _become(request: dict[str, Any]) -> None:
    """Run what the request asks for, as the interpreter does with its own command line."""
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering="PYTHONUNBUFFERED" in os.environ, errors="replace")
    with contextlib.suppress(KeyError):  # no two processes draw the same numbers by accident
        sys.modules["numpy"].random.seed()
        sys.modules["torch"].seed()
    words = request["words"]
    if words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    for _name in sys.argv[2:]:
        __import__(_name)
    gc.freeze()
    _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
