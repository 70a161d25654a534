"""Progress bars with rate and time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Bars:
    """Opens progress bars, or none where none are wanted."""

    shown: bool

    @contextmanager
    def open(self, what: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        """A bar over `total` units; yields what is called with each number of units done."""
        from tqdm import tqdm

        # None: only where standard error is a terminal.
        disable = None if self.shown else True
        with tqdm(
            total=total, unit=unit, unit_scale=unit == "B", desc=what, disable=disable
        ) as bar:
            yield bar.update
