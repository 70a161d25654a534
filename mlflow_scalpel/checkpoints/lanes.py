"""The courier's lanes: what waits in them, whether the server is heard, and what is final."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import time
from collections import deque
from collections.abc import Iterator

from mlflow_scalpel.checkpoints.stores import DiskFull
from mlflow_scalpel.errors import ScalpelError

_FINAL_STATUS = (
    400,
    404,
)  # answers that will be the same next time, if it is MLflow that gave them
_FROM_TRANSPORT = "API request to"  # how MLflow's client begins what is no answer of MLflow's
# What reading or writing on this machine fails with for a while: trying again may help.
_PASSING = {
    getattr(errno, name)
    for name in (
        "ENOSPC EDQUOT EIO ESTALE ETIMEDOUT EMFILE ENFILE ENOMEM EAGAIN EINTR EBUSY EROFS "
        "ENOTCONN EHOSTDOWN EHOSTUNREACH ENETUNREACH EREMOTEIO"
    ).split()
    if hasattr(errno, name)
}


class Pulse:
    """When the server was last heard, and whether anybody waits for it."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._busy = 0

    def beat(self) -> None:
        """The server took or gave something, or is asked anew."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """What is done here is done on this machine, however long it takes."""
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


def is_final(error: BaseException) -> bool:
    """Whether a failure would be the same next time, so that trying again is in vain.

    An answer is final only in MLflow's own form (JSON with an `error_code`): what a proxy says of
    its own accord, a 404 while the server is redeployed, says nothing of the entry.
    """
    import requests
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, RestException):
        return "error_code" in error.json and error.get_http_status_code() in _FINAL_STATUS
    if isinstance(error, MlflowException):
        if str(error).startswith(_FROM_TRANSPORT):
            return False
        return error.get_http_status_code() in _FINAL_STATUS
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code in _FINAL_STATUS and _is_mlflows(error.response)
    return isinstance(error, ScalpelError) and not isinstance(error, DiskFull)


def is_passing(error: BaseException) -> bool:
    """Whether work on local files failed for a reason that may go away by itself."""
    return isinstance(error, DiskFull) or (
        isinstance(error, OSError) and (error.errno is None or error.errno in _PASSING)
    )


def is_own(error: BaseException) -> bool:
    """Whether a failure looks like a fault of what is sent, and not of the way it is sent.

    (An answer that is not the JSON that it should be is a ValueError, but the server's.)
    """
    import requests

    own = ValueError | TypeError | LookupError | AttributeError | RecursionError
    gone = FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError
    foreign = requests.RequestException | json.JSONDecodeError
    return isinstance(error, own | gone) and not isinstance(error, foreign)


def _is_mlflows(response: object) -> bool:
    try:
        answer = response.json()  # type: ignore[attr-defined]
    except ValueError:
        return False
    return isinstance(answer, dict) and "error_code" in answer
