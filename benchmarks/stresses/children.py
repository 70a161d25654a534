"""Processes that begin at once: forked from one that has imported everything already."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

PRELOADED = [
    "torch",
    "stresses.world",
    "mlflow_scalpel.checkpoints.logging.uploader",
    "mlflow_scalpel.checkpoints.logging.upload",
    "mlflow_scalpel.checkpoints.external.watch",
    "mlflow_scalpel.checkpoints.reading.pull",
    "mlflow_scalpel.checkpoints.prune",
    "mlflow_scalpel.checkpoints.verify",
    "mlflow_scalpel.training.journal",
    "mlflow_scalpel.cli",
]


class Child:
    """A process that runs some code, with a working directory and an environment of its own."""

    def __init__(
        self, code: str, arguments: list[str], home: Path, log: Path, environment: dict[str, str]
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._output = home / f"output-{len(list(home.glob('output-*')))}"
        self._output.touch()
        files = (str(self._output), str(log))
        self._process = context.Process(
            target=_play, args=(code, arguments, str(home), files, environment)
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """Exit status; None while it runs, negative where a signal ended it."""
        return self._process.exitcode

    def wait(self, seconds: float) -> str:
        """Its output, once it ends; raises TimeoutExpired where it does not in time."""
        self._process.join(seconds)
        if self._process.is_alive():
            raise subprocess.TimeoutExpired("child", seconds)
        return self._output.read_text()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has no group of its own yet
            os.killpg(self._process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        self._process.kill()
        self._process.join()


def _play(
    code: str, arguments: list[str], home: str, files: tuple[str, str], environment: dict[str, str]
) -> None:
    os.setsid()
    os.chdir(home)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in zip((1, 2), files, strict=True):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    sys.argv = ["child", *arguments]
    status: Any = 0
    try:
        exec(code, {"__name__": "__main__"})
    except SystemExit as error:
        status = error.code or 0
    except BaseException:  # noqa: BLE001 - as an interpreter does
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)
