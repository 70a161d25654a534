"""A cache for values that take long to make, shared by the threads of a server."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

V = TypeVar("V")


class Cache(Generic[V]):
    """Keeps what was used last, up to a number of bytes; a value is made once, however many ask.

    What raises is not kept: the next one to ask tries again. A value larger than the cache is
    given to those who asked for it, and forgotten.
    """

    def __init__(self, limit: int, size: Callable[[V], int]) -> None:
        self._limit = limit
        self._size = size
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self._making: dict[Hashable, Future[V]] = {}
        self.bytes = 0

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of the key; made by `make` where it is not kept, once for all who wait."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
            future = self._making.get(key)
            mine = future is None
            if future is None:
                future = self._making[key] = Future()
        if not mine:
            return future.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._making[key]
            self._keep(key, value)
        future.set_result(value)
        return value

    def _keep(self, key: Hashable, value: V) -> None:
        size = self._size(value)
        self._kept[key] = value, size
        self.bytes += size
        while self.bytes > self._limit:
            _, (_, freed) = self._kept.popitem(last=False)
            self.bytes -= freed
