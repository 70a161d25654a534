"""The lanes of an uploader: the entries that wait, and when the server last answered."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator


class Pulse:
    """The time when the server last answered, and whether anybody waits for it."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._busy = 0

    def beat(self) -> None:
        """The server took or gave something, or is asked anew."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Work within is done on this machine, and waits for no server, however long it takes."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self.beat()

    @property
    def silent_since(self) -> float:
        """time.monotonic() of the last sign of life; infinite while none is waited for."""
        return math.inf if self._busy else self._last


class Lane:
    """Numbers of entries that one thread works through."""

    def __init__(self, numbers: list[int]) -> None:
        self.waiting = deque(numbers)
        self.working = False
        self.pulse = Pulse()
        self.failing_since = math.inf
        """time.monotonic() of the first of its latest failures; infinite where it works."""
        self.last_failure = ""

    @property
    def idle(self) -> bool:
        return not self.waiting

    def stuck_for(self) -> float:
        """Seconds for which the server has not taken what is sent; 0 where it does."""
        since = min(self.failing_since, self.pulse.silent_since if self.working else math.inf)
        return max(0.0, time.monotonic() - since)

    def let_others_go_first(self, number: int, others: set[int]) -> None:
        """Put an entry that fails behind those of the `others` that wait here."""
        behind = max((i for i, waiting in enumerate(self.waiting) if waiting in others), default=0)
        if behind:
            self.waiting.remove(number)
            self.waiting.insert(behind, number)
