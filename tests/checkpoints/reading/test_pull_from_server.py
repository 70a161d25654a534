"""Pulls from a server: resumed, each byte once, by several processes, killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.entities import LoggedModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from mlflow_scalpel.checkpoints.logging.log import log_checkpoint
from mlflow_scalpel.checkpoints.manifest import content_digest
from mlflow_scalpel.checkpoints.reading.pull import pull, resolve
from mlflow_scalpel.errors import ScalpelError

WEIGHTS = "model.safetensors"


@pytest.fixture
def remote(faulty, track_at: Callable[[str], str], first_model: Path) -> LoggedModel:
    """A checkpoint behind an `mlflow server`, seen through a proxy that counts."""
    track_at(faulty.uri)
    with mlflow.start_run():
        return log_checkpoint(first_model, step=7).wait()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A checkpoint of 8 MB: more than what sockets and buffers hold."""
    directory = tmp_path / "large"
    directory.mkdir()
    save_file({"w": torch.arange(2_000_000, dtype=torch.float32)}, directory / WEIGHTS)
    (directory / "config.json").write_text("{}")
    return directory


def same_weights(one: Path, other: Path) -> bool:
    first = AutoModelForCausalLM.from_pretrained(one).state_dict()
    second = AutoModelForCausalLM.from_pretrained(other).state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def fetched(faulty, name: str = "") -> int:
    """Bytes of artifacts that came from the server."""
    return sum(e.received for e in faulty.exchanges(rf"^GET /api/2.0/mlflow-artifacts/.*{name}"))


def test_through_a_server_each_byte_once(remote, faulty, first_model, tmp_path):
    faulty.forget()
    directory = resolve(remote.model_id)
    assert same_weights(directory, first_model)
    size = int(remote.params["bytes"])
    assert size <= fetched(faulty) < size + 40_000  # the manifest, and the list of files
    faulty.forget()
    assert resolve(remote.model_id) == directory
    assert fetched(faulty) == 0
    # What is in the cache does not travel again.
    dst = pull(remote.model_id, tmp_path / "dst")
    assert fetched(faulty, WEIGHTS) == 0
    assert same_weights(dst, first_model)
    assert not (dst / WEIGHTS).samefile(directory / WEIGHTS)


def test_a_truncated_part_is_gone_on_with(faulty, track_at, large, tmp_path, capsys):
    track_at(faulty.uri)
    with mlflow.start_run():
        model = log_checkpoint(large, step=7).wait()
    content = (large / WEIGHTS).read_bytes()
    dst = tmp_path / "dst"
    dst.mkdir()
    there = 5_000_000
    (dst / f"{WEIGHTS}.part").write_bytes(content[:there])
    pull(model.model_id, dst, progress=True)
    assert (dst / WEIGHTS).read_bytes() == content
    assert fetched(faulty, WEIGHTS) == len(content) - there
    (bar,) = capsys.readouterr().err.splitlines()[-1:]
    assert "100%" in bar
    assert "8.00M/8.00M" in bar
    assert not list(dst.glob("*.part"))

    # One that is all there needs no bytes, one that is wrong is fetched anew, as is one too long.
    for part, expected in (
        (content, 0),
        (bytes(there), 2 * len(content) - there),
        (content + b"more", len(content)),
    ):
        (dst / WEIGHTS).unlink()
        (dst / f"{WEIGHTS}.part").write_bytes(part)
        faulty.forget()
        pull(model.model_id, dst)
        assert (dst / WEIGHTS).read_bytes() == content
        assert fetched(faulty, WEIGHTS) == expected


def test_a_connection_that_breaks_is_taken_up_again(faulty, track_at, large, tmp_path):
    track_at(faulty.uri)
    with mlflow.start_run():
        model = log_checkpoint(large, step=7).wait()
    faulty.cut(f"GET .*{WEIGHTS}", after=3_000_000, times=2)
    pull(model.model_id, tmp_path / "dst")
    content = (large / WEIGHTS).read_bytes()
    assert (tmp_path / "dst" / WEIGHTS).read_bytes() == content
    assert fetched(faulty, WEIGHTS) < 1.1 * len(content)


def test_a_server_that_fails_is_named_and_a_second_call_goes_on(
    remote, faulty, first_model, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    faulty.answer(500, f"GET .*{WEIGHTS}")
    with pytest.raises(ScalpelError, match=f"{WEIGHTS} could not be fetched .*run it again"):
        pull(remote.model_id, tmp_path / "dst")
    there = {file.name for file in (tmp_path / "dst").iterdir() if file.suffix != ".part"}
    assert WEIGHTS not in there
    faulty.clear()
    faulty.forget()
    pull(remote.model_id, tmp_path / "dst")
    assert same_weights(tmp_path / "dst", first_model)
    assert not [name for name in there if fetched(faulty, f"/{name}$")]


PULL = """
import sys
from mlflow_scalpel.checkpoints.reading.pull import pull
print("ready", flush=True)
sys.stdin.readline()
print(pull(*sys.argv[1:]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("into_the_cache", [True, False])
def test_two_processes_at_once_fetch_once(
    faulty, track_at, large, tmp_path, monkeypatch, into_the_cache
):
    track_at(faulty.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    with mlflow.start_run():
        model = log_checkpoint(large, step=7).wait()
    faulty.forget()
    faulty.hang(f"GET .*{WEIGHTS}", times=1)
    where = [] if into_the_cache else [str(tmp_path / "dst")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PULL, model.model_id, *where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    # While the one waits for the server, the other has all the time to fetch it too.
    while len(faulty.exchanges(r"GET .*manifest\.json")) < 2:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    time.sleep(2)
    faulty.clear()
    directories = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    (directory,) = directories
    assert content_digest(Path(directory)) == model.params["digest"]
    assert fetched(faulty, WEIGHTS) == (large / WEIGHTS).stat().st_size


@pytest.mark.slow
def test_a_pull_that_is_killed_leaves_what_it_has(faulty, track_at, large, tmp_path, empty_cache):
    track_at(faulty.uri)
    with mlflow.start_run():
        model = log_checkpoint(large, step=7).wait()
    faulty.cut(f"GET .*{WEIGHTS}", after=3_000_000, times=1)
    faulty.hang(f"GET .*{WEIGHTS}", times=1)
    process = subprocess.Popen(
        [sys.executable, "-c", PULL, model.model_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    while len(faulty.exchanges(f"GET .*{WEIGHTS}")) < 2:  # until the second one hangs
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not list((empty_cache / "entries").iterdir())
    faulty.clear()
    faulty.forget()
    directory = pull(model.model_id)
    assert content_digest(directory) == model.params["digest"]
    assert fetched(faulty, WEIGHTS) < 6_000_000
