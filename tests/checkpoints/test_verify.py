"""Damage to stored checkpoints is found and named; what is whole is called whole."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel

from mlflow_scalpel.checkpoints.artifact_store import RemoteStore, local_directory, open_store
from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
from mlflow_scalpel.checkpoints.verify import verify
from mlflow_scalpel.cli import main
from mlflow_scalpel.errors import ScalpelError

WEIGHTS = "model.safetensors"


def stored(model: LoggedModel) -> Path:
    directory = local_directory(model.artifact_location)
    assert directory is not None
    return directory


def flip(file: Path, at: int = -5) -> None:
    """Change one bit of a file in place, so that its other hard links change with it."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    with file.open("r+b") as stream:
        stream.write(content)


@pytest.fixture
def model(tracking: str, make_model: Callable[..., Path]) -> LoggedModel:
    with mlflow.start_run():
        return log_checkpoint(make_model(1), step=20, link="copy").wait()


def found(model: LoggedModel) -> tuple[str, str, str]:
    """The result, file and problem of the one finding that there is."""
    (row,) = verify(model.model_id).itertuples()
    return row.result, row.file, row.problem


def test_what_is_whole_is_ok(model):
    (row,) = verify(model.model_id).to_dict("records")
    assert (row["result"], row["step"], row["problem"]) == ("ok", 20, None)
    assert row["run_id"] == model.source_run_id


def test_a_flipped_bit_is_found(model):
    flip(stored(model) / WEIGHTS)
    result, file, problem = found(model)
    assert (result, file) == ("damaged", WEIGHTS)
    assert "has SHA-256" in problem


def test_missing_and_cut_off_files_are_found(model):
    (stored(model) / WEIGHTS).unlink()
    config = stored(model) / "config.json"
    config.write_bytes(config.read_bytes()[:-7])
    table = verify(model.model_id)
    assert list(table["result"]) == ["damaged"] * 2
    problems = dict(zip(table["file"], table["problem"], strict=True))
    assert problems[WEIGHTS] == "is missing"
    assert "in place of" in problems["config.json"]
    assert set(table["remedy"]) == {
        "log step 20 again from the files that it was saved to, or take another checkpoint"
    }


def test_a_store_that_lost_the_model_is_damaged(model):
    stored(model).rename(stored(model).with_name("elsewhere"))
    result, _, problem = found(model)
    assert (result, problem) == ("damaged", f"{model.artifact_location} holds no file")


def test_a_manifest_that_was_changed_is_found(model):
    path = stored(model) / "manifest.json"
    content = path.read_text()
    changed = json.loads(content)
    changed["files"]["config.json"]["sha256"] = "0" * 64
    path.write_text(json.dumps(changed))
    table = verify(model.model_id)
    assert list(table["file"]) == ["manifest.json", "config.json"]
    assert "was logged" in table["problem"][0]

    changed = json.loads(content)
    tensors = changed["files"][WEIGHTS]["tensors"]
    tensors["lm_head.weight"]["dtype"] = "F16"
    path.write_text(json.dumps(changed))
    result, file, problem = found(model)
    assert (result, file) == ("damaged", WEIGHTS)
    assert "manifest.json describes its tensors otherwise" in problem

    path.write_text("{")
    assert found(model)[:2] == ("damaged", "manifest.json")
    changed["files"]["../../secret"] = changed["files"].pop("config.json")
    path.write_text(json.dumps(changed))
    assert "leads out of the checkpoint" in found(model)[2]
    path.unlink()
    assert found(model)[2] == "is missing; the other files are as logged"
    flip(stored(model) / WEIGHTS)
    assert list(verify(model.model_id)["result"]) == ["damaged", "damaged"]


def test_links_in_the_store_are_damage_even_to_the_right_content(model, tmp_path):
    weights = stored(model) / WEIGHTS
    weights.rename(tmp_path / "moved")
    weights.symlink_to(tmp_path / "moved")
    assert found(model)[2] == f"is a link to {tmp_path / 'moved'}, and a stored file never is"
    weights.unlink()
    (tmp_path / "moved").rename(weights)
    (stored(model) / "notes").symlink_to("/nowhere")
    assert found(model) == ("damaged", "notes", "is a link, and a stored file never is")


def test_extra_files_are_damage_only_where_something_would_open_them(model):
    (stored(model) / "registered_model_meta").write_text("as MLflow writes it")
    (stored(model) / "notes.doc").write_text("somebody's")
    noted, whole = verify(model.model_id).itertuples()
    assert (noted.result, noted.file, whole.result) == ("ok", "notes.doc", "ok")
    (stored(model) / "adapter_model.safetensors").write_bytes(b"")
    assert "damaged" in set(verify(model.model_id)["result"])


def test_an_older_model_without_manifest_is_checked_by_its_digest(model):
    client = MlflowClient()
    known = {key: model.params[key] for key in ("step", "digest")}
    older = client.create_logged_model(
        model.experiment_id,
        source_run_id=model.source_run_id,
        params=known,
        model_type="checkpoint",
    )
    files = {f.name: f for f in stored(model).iterdir() if f.name != "manifest.json"}
    open_store(older.artifact_location).put(files, "copy")
    client.finalize_logged_model(older.model_id, "READY")
    assert list(verify(older.model_id)["result"]) == ["ok"]
    flip(stored(older) / WEIGHTS)
    assert "together are not what was logged" in found(older)[2]

    foreign = client.create_logged_model(model.experiment_id, params={"step": "1"})
    open_store(foreign.artifact_location).put(files, "copy")
    client.finalize_logged_model(foreign.model_id, "READY")
    assert found(foreign)[0] == "unchecked"


def test_a_pointer_is_checked_for_its_form_and_in_the_hubs_cache(model, tmp_path, monkeypatch):
    client = MlflowClient()
    commit = "1234567890" * 4
    params = {"step": "0", "kind": "pointer", "digest": model.params["digest"]}
    pointer = client.create_logged_model(
        model.experiment_id, params=params, model_type="checkpoint"
    )
    where = tmp_path / "pointer.json"
    where.write_text(json.dumps({"repository": "org/name", "revision": commit}))
    files = {name: stored(model) / name for name in ("manifest.json", "MLmodel")}
    open_store(pointer.artifact_location).put(files | {"pointer.json": where}, "copy")
    client.finalize_logged_model(pointer.model_id, "READY")

    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    table = verify(pointer.model_id)
    assert set(table["result"]) == {"ok"}
    assert table["problem"][0].startswith("is not in the hub cache of this machine (org/name)")

    blobs = cache / "models--org--name" / "blobs"
    snapshot = cache / "models--org--name" / "snapshots" / commit
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in stored(model).iterdir():
        if file.name not in files:
            (blobs / file.name).write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(blobs / file.name)
    assert list(verify(pointer.model_id)["problem"]) == [None]
    flip(blobs / WEIGHTS)
    assert found(pointer)[2].startswith("in the hub cache has SHA-256")
    for text in ("{", '{"repository": "../../x", "revision": "main"}', "[]"):
        (stored(pointer) / "pointer.json").write_text(text)
        assert found(pointer)[:2] == ("damaged", "pointer.json")


def test_the_command_names_each_checkpoint_of_a_run(tracking, first_model, make_model, capsys):
    client = MlflowClient()
    with mlflow.start_run() as run:
        base = log_base(str(first_model))
        models = [
            log_checkpoint(make_model(step), step=step, base=base.model_id, link="copy").wait()
            for step in (20, 40, 60)
        ]
        params = {"step": "80"}
        kinds = {"source_run_id": run.info.run_id, "model_type": "checkpoint"}
        failed = client.create_logged_model(run.info.experiment_id, params=params, **kinds)
        client.set_logged_model_tags(failed.model_id, {"scalpel.failure": "NaN in lm_head"})
        client.finalize_logged_model(failed.model_id, "FAILED")
        client.create_logged_model(run.info.experiment_id, params={"step": "90"}, **kinds)
    client.set_logged_model_tags(models[0].model_id, {"scalpel.pruned": "2026-01-02T03:04:05"})
    for file in stored(models[0]).iterdir():
        if file.name not in ("MLmodel", "manifest.json"):
            file.unlink()
    assert main(["verify", run.info.run_id]) == 1
    lines = capsys.readouterr().out.splitlines()
    said = [line.split()[1:3] for line in lines if line.startswith("step")]
    assert said == [
        ["0", "ok"],
        ["20", "pruned"],
        ["40", "ok"],
        ["60", "ok"],
        ["80", "failed"],
        ["90", "pending"],
    ]
    assert "    its files were deleted on 2026-01-02T03:04:05 to free their bytes" in lines
    assert "    NaN in lm_head" in lines

    flip(stored(models[1]) / WEIGHTS)
    assert main(["verify", f"runs:/{run.info.run_id}"]) == 1
    printed = capsys.readouterr().out
    assert "step 40      damaged" in printed
    assert f"    {WEIGHTS}: has SHA-256" in printed
    assert "    -> log step 40 again" in printed
    assert main(["verify", models[2].model_id, f"models:/{models[1].model_id}"]) == 1
    assert main(["verify", models[2].model_id]) == 0
    assert main(["verify", "m-" + "0" * 32]) == 2
    assert "there is no such logged model" in capsys.readouterr().err
    with pytest.raises(ScalpelError, match="is neither a run nor a logged model"):
        verify("some/directory")


def test_a_remote_store_is_fetched_a_file_at_a_time(
    mlflow_server, track_at, make_model, tmp_path, monkeypatch
):
    track_at(mlflow_server.uri)
    with mlflow.start_run():
        model = log_checkpoint(make_model(3, shard="30KB"), step=20).wait()
    (files,) = mlflow_server.artifacts.glob(f"*/models/{model.model_id}/artifacts")
    shards = sorted(files.glob("*.safetensors"))
    assert len(shards) > 2

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    seen = []

    def look(self, name, target, *others):
        seen.append((name, [f.name for f in scratch.rglob("*") if f.is_file()]))
        return fetch(self, name, target, *others)

    fetch = RemoteStore.fetch
    monkeypatch.setattr(RemoteStore, "fetch", look)
    assert list(verify(model.source_run_id)["result"]) == ["ok"]
    assert sorted([*dict(seen), "MLmodel"]) == sorted(file.name for file in files.iterdir())
    assert all(there == [] for _, there in seen)  # as the next file begins to come
    assert list(scratch.iterdir()) == []

    flip(shards[1])
    shards[0].unlink()
    table = verify(model.source_run_id)
    assert list(table["file"]) == [shards[0].name, shards[1].name]
    assert list(table["result"]) == ["damaged", "damaged"]
    assert table["problem"][0] == "is missing"
    assert "has SHA-256" in table["problem"][1]
