"""Files of a checkpoint as they are stored: damage, hard links, a full disk, what is left out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from mlflow_scalpel.checkpoints.artifact_store import place
from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
from mlflow_scalpel.checkpoints.logging.uploader import UploadPending
from mlflow_scalpel.checkpoints.manifest import Manifest, file_damage, read_manifest
from mlflow_scalpel.errors import ScalpelError
from tests.checkpoints.logging.in_mlflow import models_of, stored

WEIGHTS = "model.safetensors"


pytestmark = pytest.mark.usefixtures("short_requests", "one_attempt")


# Damage


def nan(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, directory / WEIGHTS)


def cut_off(directory: Path) -> None:
    os.truncate(directory / WEIGHTS, (directory / WEIGHTS).stat().st_size - 10)


def shard_missing(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def index_leads_out(directory: Path) -> None:
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def link_leads_out(directory: Path) -> None:
    (directory / "config.json").unlink()
    (directory / "config.json").symlink_to("/etc/hostname")


def only_pickles(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")


def other_architecture(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, directory / WEIGHTS)


def tensor_missing(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    del tensors["model.norm.weight"]
    save_file(tensors, directory / WEIGHTS)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (nan, r"model.safetensors: tensor model.norm.weight holds 1 values that are NaN"),
        (cut_off, r"model.safetensors: is not a complete safetensors file of \d+ bytes"),
        (shard_missing, r"model-00001-of-00002.safetensors: is missing"),
        (index_leads_out, r"places 'a' in '../../secret.safetensors'"),
        (link_leads_out, r"config.json: is a link to /etc/hostname"),
        (only_pickles, r"pytorch_model.bin is a pickle, which is never opened"),
        (
            other_architecture,
            r"norm.weight has shape \(3,\), and .* own config.json asks for \(32,\)",
        ),
        (tensor_missing, r"tensor model.norm.weight of the base is missing"),
    ],
)
def test_a_damaged_checkpoint_is_a_gap_with_its_reason(
    tracking, checkpoint, first_model, spoil, said, capsys
):
    damaged = checkpoint.with_name("checkpoint-14")
    shutil.copytree(checkpoint, damaged)
    spoil(damaged)
    with mlflow.start_run() as run:
        base = log_base(str(first_model)).model_id
        steps = {7: checkpoint, 14: damaged, 21: checkpoint}
        uploads = {
            step: log_checkpoint(path, step=step, base=base, register_as="some")
            for step, path in steps.items()
        }
        with pytest.raises(ScalpelError, match=said) as caught:
            uploads[14].wait()
        assert str(damaged) in str(caught.value)  # and not a copy of ours
        uploads[21].wait()
    states = {m.params["step"]: str(m.status) for m in models_of(run.info.run_id)}
    assert {step: states[step] for step in ("7", "14", "21")} == {
        "7": "READY", "14": "FAILED", "21": "READY",
    }  # fmt: skip
    versions = MlflowClient().search_model_versions("name = 'some'")
    assert {version.tags["step"] for version in versions} == {"7", "21"}
    assert "step 14 is FAILED" in capsys.readouterr().err


# A store on this machine


def damage(directory: Path, manifest: Manifest) -> dict[str, str]:
    found = {name: file_damage(directory / name, one) for name, one in manifest.files.items()}
    return {name: problem for name, problem in found.items() if problem is not None}


def test_a_hard_link_takes_no_bytes_and_survives_the_trainer(tracking, checkpoint, first_model):
    with mlflow.start_run():
        model = log_checkpoint(checkpoint, step=7, link="hard").wait()
    file = stored(model) / WEIGHTS
    assert file.stat().st_ino == (checkpoint / WEIGHTS).stat().st_ino
    manifest = read_manifest(stored(model))
    # the trainer saves the same step again, and then removes it
    save_file(load_file(first_model / WEIGHTS) | {"x": torch.ones(1)}, checkpoint / WEIGHTS)
    assert damage(stored(model), manifest) == {}
    shutil.rmtree(checkpoint)
    assert damage(stored(model), manifest) == {}


def test_what_is_changed_in_place_is_found(tracking, checkpoint):
    with mlflow.start_run():
        model = log_checkpoint(checkpoint, step=7, link="hard").wait()
    manifest = read_manifest(stored(model))
    with (checkpoint / WEIGHTS).open("r+b") as weights:
        weights.seek(-5, os.SEEK_END)
        weights.write(b"\xff")
    (problem,) = damage(stored(model), manifest).items()
    assert problem[0] == WEIGHTS
    assert "has SHA-256" in problem[1]
    os.truncate(checkpoint / WEIGHTS, 100)
    assert "has 100 bytes in place of" in damage(stored(model), manifest)[WEIGHTS]


def test_a_copy_is_a_file_of_its_own(tracking, checkpoint):
    with mlflow.start_run():
        model = log_checkpoint(checkpoint, step=7, link="copy").wait()
    assert (stored(model) / WEIGHTS).stat().st_ino != (checkpoint / WEIGHTS).stat().st_ino


def test_placing_unlinks_what_was_there(tmp_path):
    source, target, other = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    source.write_text("new")
    target.write_text("old")
    other.hardlink_to(target)
    place(source, target)
    assert (target.read_text(), other.read_text()) == ("new", "old")


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk is not permitted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_waited_for(tracking, checkpoint, small_disk, monkeypatch):
    experiment = mlflow.create_experiment("small", artifact_location=small_disk.as_uri())
    (small_disk / "other").write_bytes(bytes(230_000))
    with mlflow.start_run(experiment_id=experiment) as run:
        upload = log_checkpoint(checkpoint, step=7)
        shutil.rmtree(checkpoint)
        monkeypatch.setenv("SCALPEL_PATIENCE", "1")
        with pytest.raises(UploadPending, match=r"model\.safetensors: the disk is full.*upload"):
            upload.wait()
        (small_disk / "other").unlink()
        monkeypatch.setenv("SCALPEL_PATIENCE", "60")
        assert str(upload.wait().status) == "READY"
    assert len(models_of(run.info.run_id)) == 1


def test_trainer_state_stays_behind_unless_asked_for(tracking, checkpoint):
    (checkpoint / "optimizer.pt").write_bytes(b"state")
    (checkpoint / "training_args.bin").write_bytes(b"arguments")
    with mlflow.start_run():
        without = log_checkpoint(checkpoint, step=7).wait()
        with_it = log_checkpoint(checkpoint, step=8, trainer_state=True).wait()
    assert not (stored(without) / "optimizer.pt").exists()
    assert (stored(with_it) / "optimizer.pt").read_bytes() == b"state"
