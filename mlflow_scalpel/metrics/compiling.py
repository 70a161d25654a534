"""Pure tensor functions under `torch.compile`, where that is possible and worth its time."""

from __future__ import annotations

import functools
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

# Products are added without rounding them first, and all sums over a row are taken in one loop, in
# which what several of them need is computed again rather than written to memory.
_OPTIONS: dict[str, Any] = {
    "cpp.enable_floating_point_contract_flag": "fast",
    "cpp.max_horizontal_fusion_size": 64,
    "realize_reads_threshold": 2000,
    "realize_opcount_threshold": 2000,
}


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under `torch.compile`, or as it is where no C++ compiler can be used.

    The first call compiles: 10 to 20 s, and 2 s once PyTorch's cache on disk has it.
    """
    if not _has_compiler():
        return function
    import torch
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError

    now = torch.compile(function, dynamic=True, options=_OPTIONS)

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        nonlocal now
        try:
            return now(*arguments)
        # A compiler that is there may lack a library, or Python's headers.
        except (TorchDynamoException, CppCompileError) as error:
            _warn(f"the C++ compiler cannot be used ({str(error).splitlines()[0]})")
            now = function
            return function(*arguments)

    return run


@functools.cache
def _has_compiler() -> bool:
    """Whether there is a C++ compiler; warns once where there is none."""
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    found = any(shutil.which(compiler) for compiler in compilers)
    if not found:
        _warn("no C++ compiler was found (g++ or clang++)")
    return found


@functools.cache  # once for each reason
def _warn(why: str) -> None:
    warnings.warn(
        f"{why}, so metrics run without torch.compile: the numbers are the same, several times "
        "slower",
        stacklevel=4,
    )
