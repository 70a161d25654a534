"""A process of `graders`: reads tasks as lines of JSON, and writes what it found."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import resource
import signal
import sys
from types import FrameType
from typing import Any

MEMORY = 4 << 30  # bytes of address space
EXTRA = 3.0  # seconds after which the process ends itself, should nobody be there to kill it

_NOWHERE = open(os.devnull, "w")  # noqa: SIM115


class _OutOfTime(BaseException):  # not an Exception: those are caught by sympy and math-verify
    pass


def main() -> None:
    """Answer tasks until the input closes."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints
    if sys.platform == "linux":  # elsewhere there is no such limit
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, hard))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _stop)
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    from mlflow_scalpel.evaluation import mathematics

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
    faulthandler.dump_traceback_later(task["seconds"] + EXTRA, exit=True, file=_NOWHERE)
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
