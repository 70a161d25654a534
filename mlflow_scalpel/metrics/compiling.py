"""Pure tensor functions under `torch.compile`, where that is possible and worth its time."""

from __future__ import annotations

import functools
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under `torch.compile`, or itself where there is no C++ compiler.

    The first call compiles: 10 to 20 s, and 2 s once PyTorch's cache on disk has it.
    """
    if not _has_compiler():
        return function
    return torch.compile(function, dynamic=True)


@functools.cache
def _has_compiler() -> bool:
    """Whether there is a C++ compiler; warns once where there is none."""
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    found = any(shutil.which(compiler) for compiler in compilers)
    if not found:
        warnings.warn(
            "no C++ compiler was found (g++ or clang++), so metrics run without torch.compile: "
            "the numbers are the same, several times slower",
            stacklevel=3,
        )
    return found
