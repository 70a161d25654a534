r"""Processes that compare mathematics, and that can be killed.

Python cannot be interrupted inside one operation on big numbers, and signals reach the main thread
alone. So what has to be computed is computed in other processes: a few, started when the first one
is needed and kept, asked in lines of JSON. They are plain children of this interpreter, which
neither run its main module nor share its memory, threads or CUDA context. When this process ends,
however it does, their input closes and they end; one that is computing at that moment ends at its
time limit.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import logging
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

from mlflow_scalpel.errors import ScalpelError

Found = Literal["right", "wrong", "unreadable", "not graded"]

TASK_SECONDS = 3.0  # for one comparison; the usual one takes 5 ms
GRACE_SECONDS = 1.0  # a process that has not stopped by itself this much later is killed
START_SECONDS = 120.0  # seconds for the imports of a process, on a busy machine
MOST_PROCESSES = 4  # at most
TASKS_PER_PROCESS = 8  # comparisons that are worth another process

_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from mlflow_scalpel.evaluation.grading.processes import main; main()"
)


@dataclass
class Task:
    """One comparison, or (without an answer) the question whether a gold answer can be read."""

    answer: str | None
    gold: str
    found: Found = "not graded"
    timed_out: bool = False
    """It was stopped at its own limit, and would be again."""


class _Process:
    def __init__(self) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the one who started it
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
        self.ready = False
        self.since = time.monotonic()  # of its start, or of its task
        self.task: Task | None = None
        self.buffer = b""

    def give(self, task: Task) -> None:
        self.task, self.since = task, time.monotonic()
        line = json.dumps({"answer": task.answer, "gold": task.gold, "seconds": TASK_SECONDS})
        assert self.child.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which its output says next
            self.child.stdin.write(line.encode() + b"\n")
            self.child.stdin.flush()

    def lines(self) -> list[bytes] | None:
        """Complete lines that have arrived; None where the process has ended."""
        assert self.child.stdout is not None
        read = os.read(self.child.stdout.fileno(), 65536)
        if not read:
            return None
        *complete, self.buffer = (self.buffer + read).split(b"\n")
        return complete

    def end(self) -> None:
        self.child.kill()
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what was not yet sent to it
                    pipe.close()


class Graders:
    """A few grading processes. All methods may be called from any thread, one at a time."""

    def __init__(self, most: int | None = None) -> None:
        affinity = getattr(os, "sched_getaffinity", None)  # Linux: the cores that this job has
        cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
        self._most = most or min(MOST_PROCESSES, cores)
        self._processes: list[_Process] = []
        self._lock = threading.Lock()

    def run(self, tasks: Sequence[Task], seconds: float) -> None:
        """Fill in what each task finds; those that `seconds` do not suffice for stay "not graded".

        The time that a first process needs for its imports does not count. Raises ScalpelError
        where none can be started.
        """
        if not tasks:
            return
        with self._lock:
            try:
                self._run(list(tasks), seconds)
            finally:
                for process in [p for p in self._processes if p.task is not None]:
                    self._drop(process)  # interrupted, or beyond the budget

    def close(self) -> None:
        """End the processes; the next `run` starts others."""
        with self._lock:
            for process in list(self._processes):
                self._drop(process)

    def _run(self, waiting: list[Task], seconds: float) -> None:
        waiting.reverse()
        wanted = min(self._most, 1 + len(waiting) // TASKS_PER_PROCESS)
        while len(self._processes) < wanted:
            self._processes.append(_Process())
        deadline: float | None = None
        failures = 0
        while waiting or any(process.task for process in self._processes):
            for process in list(self._processes):
                if process.ready and process.task is None and waiting:
                    if process.child.poll() is None:
                        process.give(waiting.pop())
                    else:  # somebody has ended it
                        self._drop(process)
            if deadline is None and any(process.ready for process in self._processes):
                deadline = time.monotonic() + seconds
            if deadline is not None and time.monotonic() > deadline:
                return
            for process in self._answering():
                lines = process.lines()
                if lines is None:
                    failures += not process.ready
                    if process.task is not None:
                        process.task.timed_out = True  # it died of this task: of memory, or so
                    self._drop(process)
                for line in lines or ():
                    self._take(process, json.loads(line))
            self._stop_late()
            failures += self._stop_unready()
            if failures > 2:
                raise ScalpelError(
                    "the processes that grade mathematics do not start: see their error above; "
                    f"they run {sys.executable} and import mlflow_scalpel, sympy and math-verify"
                )
            while len(self._processes) < min(wanted, len(waiting)):
                self._processes.append(_Process())

    def _answering(self) -> list[_Process]:
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                assert process.child.stdout is not None
                selector.register(process.child.stdout, selectors.EVENT_READ, process)
            return [key.data for key, _ in selector.select(0.1)]

    def _take(self, process: _Process, reply: dict[str, str]) -> None:
        if process.task is None:
            process.ready = True
        else:
            process.task.found = reply["found"]  # type: ignore[assignment]
            process.task.timed_out = reply["found"] == "not graded"
            process.task = None

    def _stop_late(self) -> None:
        now = time.monotonic()
        for process in list(self._processes):
            if process.task is not None and now - process.since > TASK_SECONDS + GRACE_SECONDS:
                process.task.timed_out = True
                self._drop(process)

    def _stop_unready(self) -> int:
        late = [
            process
            for process in self._processes
            if not process.ready and time.monotonic() - process.since > START_SECONDS
        ]
        for process in late:
            self._drop(process)
        return len(late)

    def _drop(self, process: _Process) -> None:
        process.task = None
        process.end()
        self._processes.remove(process)


_shared: Graders | None = None


def graders() -> Graders:
    """The grading processes of this process; none is started before it is needed."""
    global _shared
    if _shared is None:
        _shared = Graders()
        atexit.register(_shared.close)
    return _shared


def _forget() -> None:
    global _shared
    _shared = None  # the processes are the parent's


os.register_at_fork(after_in_child=_forget)


MEMORY_BYTES = 4 << 30  # bytes of address space
WATCHDOG_SECONDS = (
    3.0  # seconds after which the process ends itself, should nobody be there to kill it
)

_NOWHERE = open(os.devnull, "w")  # noqa: SIM115


class _OutOfTime(BaseException):  # not an Exception: those are caught by sympy and math-verify
    pass


def main() -> None:
    """Answer tasks until the input closes."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints
    if sys.platform == "linux":  # elsewhere there is no such limit
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, hard))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _stop)
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    from mlflow_scalpel.evaluation.grading import mathematics

    mathematics.equal("x+1", "1+x")  # what parsers set up on their first use
    print(json.dumps({"found": "ready"}), file=replies)
    for line in sys.stdin:
        task = json.loads(line)
        found = json.dumps({"found": _found(mathematics, task)})
        try:
            print(found, file=replies)
        except BrokenPipeError:  # the one who asked has ended
            os._exit(0)


def _found(mathematics: Any, task: dict[str, Any]) -> str:
    # The watchdog is a thread in C: it works while a big number holds the interpreter.
    faulthandler.dump_traceback_later(task["seconds"] + WATCHDOG_SECONDS, exit=True, file=_NOWHERE)
    signal.setitimer(signal.ITIMER_REAL, task["seconds"])
    try:
        if task["answer"] is None:
            return "right" if mathematics.readable(task["gold"]) else "unreadable"
        verdict = mathematics.equal(task["answer"], task["gold"])
        return "unreadable" if verdict is None else "right" if verdict else "wrong"
    except (_OutOfTime, MemoryError, RecursionError):
        return "not graded"
    except Exception as error:  # noqa: BLE001  (sympy raises nearly everything)
        print(f"{task['answer']!r} against {task['gold']!r}: {error!r}", file=sys.stderr)
        return "not graded"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


def _stop(number: int, frame: FrameType | None) -> None:
    raise _OutOfTime
