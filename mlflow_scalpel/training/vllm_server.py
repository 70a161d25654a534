"""vLLM as a server on GPUs of its own, for as long as a GRPO run takes."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.recipes.training import GrpoRecipe

HOST = "127.0.0.1"
LOG = "vllm-server.log"
_LOOK = 0.5  # seconds between two looks at the server
_GRACE = 30.0  # seconds that it has to end by itself
_TAIL = 2000  # characters of its log that an error quotes


@contextmanager
def generation_server(recipe: GrpoRecipe, model: Path, output: Path) -> Iterator[None]:
    """The recipe's vLLM server, healthy when the block begins and gone when it ends, however.

    Does nothing where the recipe wants no server, or in a process that is not the main one. Its
    output goes to `vllm-server.log` under `output`.

    Raises ScalpelError where the port is taken, or where the server ends or does not answer within
    `train.vllm_server_timeout` seconds.
    """
    train = recipe.train
    wanted = train.use_vllm and train.vllm_mode == "server"
    if not wanted or int(os.environ.get("RANK", "0")) != 0:
        yield
        return
    _check_port(train.vllm_server_port)
    output.mkdir(parents=True, exist_ok=True)
    log = output / LOG
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command(recipe, model),
            env=environment(recipe, os.environ),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its workers end with it, by their group
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    try:
        _wait(process, train.vllm_server_port, train.vllm_server_timeout, log)
        yield
    finally:
        _end(process)


def command(recipe: GrpoRecipe, model: Path) -> list[str]:
    """The command line of the server, with what TRL needs to put weights into it."""
    train = recipe.train
    beside = Path(sys.executable).with_name("vllm")
    program = shutil.which("vllm") or str(beside)
    words = [program, "serve", str(model), "--host", HOST, "--port", str(train.vllm_server_port)]
    words += ["--dtype", "bfloat16" if train.bf16 else train.dtype]
    words += ["--tensor-parallel-size", str(train.vllm_tensor_parallel_size)]
    words += ["--gpu-memory-utilization", str(train.vllm_gpu_memory_utilization)]
    if train.vllm_max_model_length is not None:
        words += ["--max-model-len", str(train.vllm_max_model_length)]
    words += ["--weight-transfer-config", '{"backend": "nccl"}']
    return [*words, "--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]


def environment(recipe: GrpoRecipe, given: Mapping[str, str]) -> dict[str, str]:
    """The server's environment: the GPUs after those that train, and vLLM's development endpoints.

    Of the GPUs that CUDA_VISIBLE_DEVICES names (all, unless it is set) training takes the first
    `processes`, and the server the next `vllm_tensor_parallel_size`. Raises ScalpelError where it
    names too few.
    """
    first, count = recipe.processes, recipe.train.vllm_tensor_parallel_size
    visible = given.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(n) for n in range(first + count)]
    if len(gpus) < first + count:
        raise ScalpelError(
            f"CUDA_VISIBLE_DEVICES = {visible}: {first} GPUs train and {count} serve vLLM, which "
            f"makes {first + count}; name as many, or set train.vllm_mode=colocate"
        )
    # What accelerate tells its processes would make the server one of them.
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {
        name: value
        for name, value in given.items()
        if name not in launched and not name.startswith(("ACCELERATE_", "TORCHELASTIC_", "FSDP_"))
    }
    return kept | {
        "CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + count]),
        "VLLM_SERVER_DEV_MODE": "1",
    }


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise ScalpelError(
                f"train.vllm_server_port = {port}: something listens there already, and the run "
                "would take its completions from it; end it, or set another port"
            )


def _wait(process: subprocess.Popen[bytes], port: int, limit: float, log: Path) -> None:
    deadline = time.monotonic() + limit
    while not _healthy(port):
        code = process.poll()
        if code is not None:
            raise ScalpelError(
                f"the vLLM server ended with {code} before it answered; {log} ends with:\n"
                f"{log.read_text(errors='replace')[-_TAIL:]}"
            )
        if time.monotonic() > deadline:
            raise ScalpelError(
                f"the vLLM server has not answered within {limit:g} seconds; see {log}, or raise "
                "train.vllm_server_timeout"
            )
        time.sleep(_LOOK)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):  # not yet
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and its workers; what does not end by itself in time is killed."""
    group = process.pid  # the leader of its own session
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            print("the vLLM server does not end, and is killed", flush=True)
    with suppress(ProcessLookupError):  # none is left
        os.killpg(group, signal.SIGKILL)
    process.wait()


def _end_with_parent() -> None:
    """Have the kernel end this process when the one that started it is killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
