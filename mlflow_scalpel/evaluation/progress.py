"""How far the answers of a suite have come: a bar for a terminal, a line now and then for a log."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

SECONDS = 30.0  # between two lines

Bar = Callable[..., Any]
"""Makes a bar, as tqdm does."""


def bar_about(what: str) -> Bar:
    """What makes the bars of the answers about something, such as the benchmarks of a model."""
    watched = sys.stderr.isatty() and "TQDM_DISABLE" not in os.environ
    return tqdm if watched else functools.partial(Lines, what)


class Lines(tqdm):  # type: ignore[type-arg]
    """A bar that prints a line every SECONDS, and none where all is done before the first.

    Libraries give bars a text of their own ("Processed prompts"), which `what` replaces.
    """

    def __init__(self, what: str, *arguments: Any, **options: Any) -> None:
        own = {"desc": what, "file": io.StringIO(), "miniters": 1}
        own |= {"mininterval": SECONDS, "delay": SECONDS}
        own["disable"] = bool(options.get("disable"))  # tqdm's None asks for a terminal
        super().__init__(*arguments, **{**options, **own})

    def display(self, *_: Any, **__: Any) -> None:
        """Print how far it is."""
        total = self.total or self.n
        told = f"{self.desc.removesuffix(': ')}: {self.n:,} of {total:,} answers"
        if 0 < self.n < total:
            rate = self.n / self.format_dict["elapsed"]
            left = self.format_interval((total - self.n) / rate)
            told += f", {rate:.3g} a second, {left} left"
        print(told, flush=True)
