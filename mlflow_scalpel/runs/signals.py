"""SIGINT and SIGTERM: they interrupt a stage once, and nothing cuts off what is done about it."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import threading
import time
from types import FrameType

_ONE_INTERRUPT = 2.0  # seconds within which two signals are one interrupt
_RAISE_AGAIN_AFTER = 10.0  # seconds, where nobody has caught an interrupt


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived."""


_caught = threading.Event()


def interrupt_was_caught() -> None:
    """Note that the interrupt has been caught, and need not be raised again."""
    _caught.set()


def stop_on_signals() -> None:
    """Have SIGINT and SIGTERM raise Interrupted."""
    last = -math.inf
    _caught.clear()

    def raise_again() -> None:
        # What a signal raises is lost where it hits a callback or a destructor of some library.
        while not _caught.wait(1.0):
            if _RAISE_AGAIN_AFTER < time.monotonic() - last < math.inf:
                os.kill(os.getpid(), signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        # Ctrl-C reaches every process of the terminal, and the experiment's then stops its stages:
        # two signals but one interrupt, and the second must not cut off the handling of the first.
        if now - last >= _ONE_INTERRUPT:
            last = now
            raise Interrupted(f"signal {signal.Signals(number).name}")

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=raise_again, name="scalpel-interrupt", daemon=True).start()
    if "MLFLOW_RUN_ID" in os.environ:
        # A SIGTERM that ends only the `mlflow run` above would leave this process at work on a run
        # that nobody waits for.
        end_with_parent()


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent dies, however it dies (Linux)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def ignore_signals() -> None:
    """Have nothing cut off what is done about an interrupt."""
    interrupt_was_caught()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
