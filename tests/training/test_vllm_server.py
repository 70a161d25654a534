"""The vLLM server of a run, with a small server in its place: begun, waited for, and ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from mlflow_scalpel.errors import MissingPackage, ScalpelError
from mlflow_scalpel.recipes import load_recipe, read_recipe
from mlflow_scalpel.training.requirements import check_installed
from mlflow_scalpel.training.vllm_server import HOST, LOG, command, environment, generation_server
from tests.servers import free_port

PROJECTS = Path(__file__).parents[2] / "projects"
ROOT = PROJECTS.parent

# Notes how it was started, has a worker as vLLM has, and answers /health after a while.
FAKE = """#!{python}
import http.server, json, os, subprocess, sys, time
port = int(sys.argv[sys.argv.index("--port") + 1])
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
note = {{"argv": sys.argv[1:], "pid": os.getpid(), "worker": worker.pid,
        "gpus": os.environ["CUDA_VISIBLE_DEVICES"], "dev": os.environ["VLLM_SERVER_DEV_MODE"],
        "rank": os.environ.get("RANK")}}
open({note!r}, "w").write(json.dumps(note))
print("loading weights", flush=True)
{body}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def recipe(port):
    settings = (
        f"train.use_vllm=true train.vllm_mode=server train.vllm_server_port={port} processes=2 "
        "train.vllm_max_model_length=99"
    )
    return load_recipe("tiny", PROJECTS / "grpo" / "recipes", stage="grpo", settings=settings)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Puts a program called vllm first on the PATH; gives what it notes of itself."""

    def install(body: str = "time.sleep(1)"):
        program, note = tmp_path / "bin" / "vllm", tmp_path / "note.json"
        program.parent.mkdir(exist_ok=True)
        program.write_text(FAKE.format(python=sys.executable, note=str(note), body=body))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        return lambda: json.loads(note.read_text())

    return install


def gone(*pids: int) -> bool:
    """Whether none of the processes is left, within a moment."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and _lives(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_it_is_healthy_in_the_block_and_gone_after_it(recipe, port, fake, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("RANK", "0")
    note = fake()
    with generation_server(recipe, Path("model"), tmp_path / "out"):
        with urllib.request.urlopen(f"http://{HOST}:{port}/health") as answer:
            assert answer.status == 200
        told = note()
    assert gone(told["pid"], told["worker"])
    assert told["gpus"] == "2"  # the one after those that train
    assert (told["dev"], told["rank"]) == ("1", None)
    assert told["argv"][:2] == ["serve", "model"]
    assert told["argv"][told["argv"].index("--max-model-len") + 1] == "99"
    assert "loading weights" in (tmp_path / "out" / LOG).read_text()


def test_it_is_gone_after_a_failure_too(recipe, fake, tmp_path):
    note = fake()
    with (
        pytest.raises(RuntimeError, match="in training"),
        generation_server(recipe, Path("model"), tmp_path),
    ):
        raise RuntimeError("in training")
    assert gone(note()["pid"], note()["worker"])


def test_a_server_that_ends_early_is_told_with_what_it_said(recipe, fake, tmp_path):
    fake("print('CUDA out of memory'); worker.kill(); sys.exit(3)")
    with (
        pytest.raises(ScalpelError, match=r"(?s)ended with 3 before.*CUDA out of memory"),
        generation_server(recipe, Path("model"), tmp_path),
    ):
        pytest.fail("the block must not begin")


def test_a_server_that_never_answers_is_given_up(recipe, fake, tmp_path):
    note = fake("time.sleep(600)")
    train = recipe.train.model_copy(update={"vllm_server_timeout": 2.0})
    slow = recipe.model_copy(update={"train": train})
    with (
        pytest.raises(ScalpelError, match=r"not answered within 2 seconds.*vllm_server_timeout"),
        generation_server(slow, Path("model"), tmp_path),
    ):
        pytest.fail("the block must not begin")
    assert gone(note()["pid"], note()["worker"])


def test_a_port_that_is_taken_is_told_and_nothing_started(recipe, port, fake, tmp_path):
    note = fake()
    with generation_server(recipe, Path("model"), tmp_path):
        first = note()["pid"]
        with (
            pytest.raises(ScalpelError, match=f"vllm_server_port = {port}: something listens"),
            generation_server(recipe, Path("model"), tmp_path),
        ):
            pytest.fail("the block must not begin")
        assert note()["pid"] == first


def test_it_ends_when_the_training_process_is_killed(recipe, port, fake, tmp_path):
    note = fake()
    script = f"""
import os, signal
from pathlib import Path
from mlflow_scalpel.recipes import load_recipe
from mlflow_scalpel.training.vllm_server import generation_server
settings = "train.use_vllm=true train.vllm_mode=server train.vllm_server_port={port} processes=2"
folder = Path({str(PROJECTS)!r}) / "grpo" / "recipes"
recipe = load_recipe("tiny", folder, stage="grpo", settings=settings)
with generation_server(recipe, Path("model"), Path({str(tmp_path)!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == -signal.SIGKILL
    told = note()
    assert gone(told["pid"])
    os.kill(told["worker"], signal.SIGKILL)  # vLLM's own end with it, the fake one's do not


@pytest.mark.parametrize("settings", ["train.use_vllm=false", "train.vllm_mode=colocate"])
def test_without_need_none_is_started(settings, fake, tmp_path):
    fake()
    recipe = load_recipe("tiny", PROJECTS / "grpo" / "recipes", stage="grpo", settings=settings)
    with generation_server(recipe, Path("model"), tmp_path):
        assert not (tmp_path / "note.json").exists()


def test_only_the_main_process_starts_one(recipe, fake, tmp_path, monkeypatch):
    fake()
    monkeypatch.setenv("RANK", "1")
    with generation_server(recipe, Path("model"), tmp_path):
        assert not (tmp_path / "note.json").exists()


def test_the_papers_server_has_the_eighth_gpu_and_what_trl_needs():
    recipe = read_recipe(PROJECTS / "grpo" / "recipes" / "olmo2-7b.yaml")
    words = command(recipe, Path("base"))
    for flag, value in {
        "--dtype": "bfloat16",
        "--weight-transfer-config": '{"backend": "nccl"}',
        "--logprobs-mode": "processed_logprobs",
        "--max-logprobs": "-1",
        "--max-model-len": "2048",
    }.items():
        assert words[words.index(flag) + 1] == value
    given = environment(recipe, {"WORLD_SIZE": "7", "ACCELERATE_USE_DEEPSPEED": "true", "A": "1"})
    assert given == {"CUDA_VISIBLE_DEVICES": "7", "VLLM_SERVER_DEV_MODE": "1", "A": "1"}
    named = environment(recipe, {"CUDA_VISIBLE_DEVICES": "8,7,6,5,4,3,2,1"})
    assert named["CUDA_VISIBLE_DEVICES"] == "1"
    with pytest.raises(ScalpelError, match="7 GPUs train and 1 serve vLLM, which makes 8"):
        environment(recipe, {"CUDA_VISIBLE_DEVICES": "0,1"})


def install(monkeypatch, found: object) -> None:
    """Let every package be found as `found`."""
    for module in ("extras", "training.requirements"):
        monkeypatch.setattr(f"mlflow_scalpel.{module}.find_spec", lambda name: found)


@pytest.mark.parametrize(
    ("stage", "settings", "said"),
    [
        (
            "grpo",
            "train.use_vllm=true",
            r"vllm, which is not installed: .*\[vllm\].*use_vllm=false",
        ),
        (
            "sft",
            "processes=2 sharding=zero3",
            "needs deepspeed, which is not installed: .*sharding=fsdp",
        ),
        ("sft", "train.use_liger_kernel=true", "needs liger_kernel, which is not installed"),
        (
            "sft",
            "train.attn_implementation=flash_attention_2",
            "needs flash_attn, which is not installed: .*attn_implementation=sdpa",
        ),
    ],
)
def test_a_package_that_is_missing_is_told_before_anything_starts(
    stage, settings, said, monkeypatch
):
    recipe = load_recipe("tiny", PROJECTS / stage / "recipes", stage=stage, settings=settings)
    install(monkeypatch, None)
    with pytest.raises(MissingPackage, match=said):
        check_installed(recipe)
    install(monkeypatch, object())
    check_installed(recipe)


def test_the_demo_needs_none_of_them(monkeypatch):
    install(monkeypatch, None)
    for stage in ("sft", "grpo"):
        check_installed(load_recipe("tiny", PROJECTS / stage / "recipes", stage=stage))
