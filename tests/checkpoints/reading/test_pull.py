"""Checkpoints fetched and checked: from a local store, and through a real server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from mlflow_scalpel.checkpoints.artifact_store import open_store
from mlflow_scalpel.checkpoints.files import checkpoint_files
from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
from mlflow_scalpel.checkpoints.manifest import content_digest
from mlflow_scalpel.checkpoints.reading import cache
from mlflow_scalpel.checkpoints.reading.pull import pull, resolve
from mlflow_scalpel.cli import main
from mlflow_scalpel.errors import ScalpelError

WEIGHTS = "model.safetensors"


@pytest.fixture
def logged(tracking: str, first_model: Path) -> LoggedModel:
    """A checkpoint in a local store."""
    with mlflow.start_run():
        return log_checkpoint(first_model, step=7, link="copy").wait()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A checkpoint of 8 MB: more than what sockets and buffers hold."""
    directory = tmp_path / "large"
    directory.mkdir()
    save_file({"w": torch.arange(2_000_000, dtype=torch.float32)}, directory / WEIGHTS)
    (directory / "config.json").write_text("{}")
    return directory


def store_of(model: LoggedModel) -> Path:
    directory = open_store(model.artifact_location).local
    assert directory is not None
    return directory


def same_weights(one: Path, other: Path) -> bool:
    first = AutoModelForCausalLM.from_pretrained(one).state_dict()
    second = AutoModelForCausalLM.from_pretrained(other).state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_pulled_is_the_users_own(logged, first_model, tmp_path):
    dst = pull(f"models:/{logged.model_id}", tmp_path / "new" / "mine")
    assert dst == tmp_path / "new" / "mine"
    assert same_weights(dst, first_model)
    store = store_of(logged)
    assert {f.name for f in dst.iterdir()} == {f.name for f in store.iterdir()}
    for file in store.iterdir():
        assert (dst / file.name).stat().st_ino != file.stat().st_ino
        (dst / file.name).write_bytes(b"changed")
    assert content_digest(store) == logged.params["digest"]


def test_into_the_directory_that_was_logged_by_hard_links(tracking, first_model, tmp_path):
    mine = tmp_path / "checkpoint-7"
    shutil.copytree(first_model, mine)
    with mlflow.start_run():
        model = log_checkpoint(mine, step=7, link="hard").wait()
    assert (mine / WEIGHTS).samefile(store_of(model) / WEIGHTS)
    pull(model.model_id, mine)
    (mine / WEIGHTS).write_bytes(b"changed")
    assert content_digest(store_of(model)) == model.params["digest"]


def test_a_flipped_bit_in_the_store_is_found_and_named(logged, tmp_path):
    stored = store_of(logged) / WEIGHTS
    content = bytearray(stored.read_bytes())
    content[-5] ^= 1
    stored.write_bytes(content)
    with pytest.raises(ScalpelError, match=rf"{stored} has SHA-256 .*put it back from a copy"):
        pull(logged.model_id, tmp_path / "dst")
    assert not list((tmp_path / "dst").glob(f"{WEIGHTS}*"))
    with pytest.raises(ScalpelError, match=str(stored)):
        pull(logged.model_id)
    stored.unlink()
    with pytest.raises(ScalpelError, match=rf"{stored} is missing"):
        pull(logged.model_id, tmp_path / "dst")
    with pytest.raises(ScalpelError, match=rf"{stored}: is missing"):
        resolve(logged.model_id)


def test_a_manifest_that_was_changed_is_not_believed(logged, tmp_path):
    path = store_of(logged) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][WEIGHTS]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(ScalpelError, match=r"manifest\.json: has the digest .* it was changed"):
        pull(logged.model_id, tmp_path / "dst")
    path.unlink()
    with pytest.raises(ScalpelError, match=r"manifest\.json: is missing"):
        pull(logged.model_id, tmp_path / "dst")


def test_a_link_in_the_store_is_not_followed(logged, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    stored = store_of(logged) / "config.json"
    stored.unlink()
    stored.symlink_to(secret)
    with pytest.raises(ScalpelError, match=r"config\.json"):
        pull(logged.model_id, tmp_path / "dst")
    with pytest.raises(ScalpelError, match="is a link"):
        resolve(logged.model_id)
    assert not (tmp_path / "dst" / "config.json").exists()


def test_nothing_of_the_users_is_replaced(logged, first_model, make_model, tmp_path):
    dst = tmp_path / "dst"
    dst.mkdir()
    (dst / "notes.txt").write_text("mine")
    pull(logged.model_id, dst)
    pull(logged.model_id, dst)
    (dst / "config.json").write_text("{}")
    with pytest.raises(ScalpelError, match=rf"{dst}/config\.json: is there already, and has 2"):
        pull(logged.model_id, dst)
    assert (dst / "config.json").read_text() == "{}"
    assert (dst / "notes.txt").read_text() == "mine"

    another = shutil.copytree(make_model(2), tmp_path / "another")
    (another / WEIGHTS).rename(another / "other.safetensors")
    with pytest.raises(ScalpelError, match=r"other\.safetensors: .* would be opened with it"):
        pull(logged.model_id, another)

    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / WEIGHTS).symlink_to(first_model / WEIGHTS)
    with pytest.raises(ScalpelError, match=f"{WEIGHTS}: is there already, and is a link"):
        pull(logged.model_id, linked)


def test_the_store_and_the_cache_are_no_destinations(logged, tmp_path, empty_cache):
    for kept in (store_of(logged), store_of(logged) / "below", empty_cache / "mine"):
        with pytest.raises(ScalpelError, match="whose files are not to be changed"):
            pull(logged.model_id, kept)
    with pytest.raises(ScalpelError, match="is not a directory"):
        pull(logged.model_id, __file__)


def test_a_flipped_bit_in_the_cache_is_fetched_again(logged, first_model, capfd):
    weights = pull(logged.model_id) / "model.safetensors"
    before, content = weights.stat(), bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a disk does it
    assert pull(logged.model_id) / "model.safetensors" == weights
    assert weights.read_bytes() == (first_model / "model.safetensors").read_bytes()
    assert "is damaged (model.safetensors has other bytes" in capfd.readouterr().err


def test_into_the_cache_once(logged, first_model, empty_cache):
    directory = pull(logged.model_id)
    assert directory.is_relative_to(empty_cache)
    assert same_weights(directory, first_model)
    assert not any(os.stat(file).st_mode & 0o222 for file in directory.iterdir())
    before = (directory / WEIGHTS).stat()
    assert pull(logged.model_id) == directory
    assert (directory / WEIGHTS).stat().st_ino == before.st_ino


def test_a_model_without_a_manifest_comes_unchecked(tracking, tmp_path, capsys):
    folder = tmp_path / "by-mlflow"
    (folder / "model").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}\n")
    (folder / "model" / "weights").write_bytes(b"0123")
    client = MlflowClient()
    experiment = mlflow.get_experiment_by_name("tests").experiment_id
    model = client.create_logged_model(experiment, name="old")
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    dst = pull(model.model_id, tmp_path / "dst")
    assert (dst / "model" / "weights").read_bytes() == b"0123"
    assert (dst / "MLmodel").is_file()
    assert "cannot be checked" in capsys.readouterr().err
    assert (pull(model.model_id) / "model" / "weights").read_bytes() == b"0123"
    pull(model.model_id, dst)
    (dst / "model" / "weights").write_bytes(b"4567")
    with pytest.raises(ScalpelError, match="weights: is there already, and differs"):
        pull(model.model_id, dst)


def test_directories_and_hub_names(tracking, first_model, tmp_path, fake_hub):
    assert same_weights(pull(str(first_model), tmp_path / "one"), first_model)
    revision = fake_hub("org/name", first_model)
    assert same_weights(pull(f"org/name@{revision}", tmp_path / "two"), first_model)
    assert not any(file.is_symlink() for file in (tmp_path / "two").iterdir())


def test_a_pointer_is_checked_against_its_digests(tracking, first_model, tmp_path, fake_hub):
    revision = fake_hub("org/name", first_model)
    with mlflow.start_run():
        base = log_base(f"org/name@{revision}")
    snapshot = pull(base.model_id)
    assert snapshot == resolve(base.model_id)
    assert snapshot.name == revision
    dst = pull(base.model_id, tmp_path / "dst")
    assert same_weights(dst, first_model)
    assert not (dst / "pointer.json").exists()
    assert resolve(str(dst)) == dst
    blob = (snapshot / WEIGHTS).resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    for dst in (None, tmp_path / "damaged"):
        with pytest.raises(ScalpelError, match=rf"{WEIGHTS} has SHA-256 .*delete {blob}"):
            pull(base.model_id, dst)


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], str]:
    """Put a model into a hub cache as the hub's library keeps it; there is no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(name: str, directory: Path) -> str:
        revision = "0123456789abcdef" * 2 + "01234567"
        home = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (home / "blobs").mkdir(parents=True)
        (home / "snapshots" / revision).mkdir(parents=True)
        for number, file in enumerate(checkpoint_files(directory)):
            shutil.copyfile(file, home / "blobs" / str(number))
            (home / "snapshots" / revision / file.name).symlink_to(f"../../blobs/{number}")
        return revision

    return put


def test_the_command_prints_the_directory_and_nothing_else(logged, tmp_path, capsys):
    assert main(["pull", logged.model_id, "--dst", str(tmp_path / "dst"), "--merge"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/dst\n"
    assert main(["pull", "models:/none/1"]) == 2
    refused = capsys.readouterr()
    assert "models:/none/1" in refused.err
    assert not refused.out


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", where], check=False)
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


def test_a_full_disk(tracking, large, small_disk, monkeypatch):
    with mlflow.start_run():
        model = log_checkpoint(large, step=7).wait()
    needed = model.params["bytes"]
    with pytest.raises(ScalpelError, match=rf"needs {needed} bytes .* and the disk has \d+ free"):
        pull(model.model_id, small_disk / "dst")
    monkeypatch.setenv("SCALPEL_CACHE", str(small_disk / "cache"))
    with pytest.raises(ScalpelError, match=rf"needs {needed} bytes"):
        pull(model.model_id)
    # A disk that others fill meanwhile.
    monkeypatch.setattr(cache, "check_space", lambda *_: None)
    with pytest.raises(ScalpelError, match="disk is full"):
        pull(model.model_id, small_disk / "dst")
    assert not (small_disk / "dst" / WEIGHTS).exists()
