"""What `from_pretrained` needs comes back: files in folders, code, every tokenizer's own files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlflow_scalpel.checkpoints.files import KEPT, checkpoint_files, name_in
from mlflow_scalpel.checkpoints.logging.log import log_checkpoint
from mlflow_scalpel.checkpoints.manifest import make_manifest, parse_manifest
from mlflow_scalpel.checkpoints.reading.pull import pull, resolve
from mlflow_scalpel.checkpoints.search import NOTE_TAG
from mlflow_scalpel.cli import main
from mlflow_scalpel.errors import ScalpelError

TEMPLATES = {"default": "{{ messages[0].content }}", "tool_use": "TOOLS", "rag": "RAG"}
CODE = """
from transformers import LlamaForCausalLM
from .part import SIZE


class Mine(LlamaForCausalLM):
    size = SIZE
"""


def checkpoint(first_model: Path, directory: Path) -> Path:
    """With several templates, code that imports code, and what nobody needs."""
    shutil.copytree(first_model, directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = TEMPLATES
    (directory / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(directory)
    (directory / "modeling_mine.py").write_text(CODE)
    (directory / "part.py").write_text("SIZE = 3\n")
    (directory / "unnamed.py").write_text("raise SystemExit('never run')\n")
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_mine.Mine"}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "runs").mkdir()
    (directory / "runs" / "events.json").write_text("{}")
    return directory


@pytest.mark.parametrize("where", ["local", "server"])
def test_all_of_it_comes_back(tracking, first_model, tmp_path, where, request, monkeypatch):
    if where == "server":
        uri = request.getfixturevalue("mlflow_server").uri
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("kept")
    source = checkpoint(first_model, tmp_path / "outputs" / "checkpoint-5")
    (source / "tokenizer.model.v3").write_bytes(b"of Mistral")
    with mlflow.start_run():
        model = log_checkpoint(source, step=5).wait()
    here = pull(f"models:/{model.model_id}", tmp_path / "here")
    there = {path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()}
    assert {"part.py", "additional_chat_templates/rag.jinja", "tokenizer.model.v3"} <= there
    assert not {"unnamed.py", "runs/events.json"} & there
    assert AutoTokenizer.from_pretrained(here).chat_template == TEMPLATES
    loaded = AutoModelForCausalLM.from_pretrained(here, trust_remote_code=True)
    assert (type(loaded).__name__, loaded.size) == ("Mine", 3)
    assert main(["verify", f"models:/{model.model_id}"]) == 0
    assert AutoTokenizer.from_pretrained(resolve(model.model_id)).chat_template == TEMPLATES


def test_code_that_is_missing_is_told(tracking, first_model, tmp_path):
    source = checkpoint(first_model, tmp_path / "checkpoint-5")
    (source / "part.py").unlink()
    with mlflow.start_run():
        model = log_checkpoint(source, step=5).wait()
    assert "part.py is named in modeling_mine.py and is not there" in model.tags[NOTE_TAG]


def test_weights_that_the_index_does_not_name_are_left_out(tracking, make_model, tmp_path):
    source = shutil.copytree(make_model(3, shard="10KB"), tmp_path / "checkpoint-5")
    save_file(
        {"v_head.summary.weight": np.ones((1, 4), np.float32)}, source / "value_head.safetensors"
    )
    with mlflow.start_run():
        model = log_checkpoint(source, step=5).wait()
    assert "value_head.safetensors: not among the weights" in model.tags[NOTE_TAG]
    assert "value_head.safetensors" not in {path.name for path in resolve(model.model_id).iterdir()}


LIST_NAMES = """
import json, transformers
names = set()
for name in dir(transformers):
    if "Tokenizer" in name:
        try:
            files = getattr(getattr(transformers, name), "vocab_files_names", {})
        except Exception:
            continue  # a backend that is not installed
        names |= {file for file in files.values() if isinstance(file, str)}
print(json.dumps(sorted(names)))
"""


@pytest.mark.slow  # imports every tokenizer of Transformers
def test_every_tokenizers_files_are_kept():
    """Names that the tokenizers of the installed Transformers give their files."""
    done = subprocess.run(
        [sys.executable, "-c", LIST_NAMES], capture_output=True, text=True, check=True
    )
    names = json.loads(done.stdout.splitlines()[-1])
    assert len(names) > 10
    assert [name for name in names if not name.endswith(KEPT)] == []


@pytest.mark.parametrize(
    "name", ["../x.json", "/x.json", "a/../../x.json", "a//b.json", "./a.json"]
)
def test_a_manifest_names_no_place_outside(first_model, name):
    manifest = make_manifest(checkpoint_files(first_model), first_model)
    (some, *_) = manifest.files
    content = manifest.model_dump_json().replace(f'"{some}"', json.dumps(name), 1)
    with pytest.raises(ScalpelError, match="leads out of the checkpoint"):
        parse_manifest(content.encode(), "manifest.json")


def test_nan_in_float8_is_seen(tmp_path):
    import torch
    from safetensors.torch import save_file as save

    bits = {
        torch.float8_e4m3fn: 0x7F, torch.float8_e5m2: 0xFD, torch.float8_e4m3fnuz: 0x80,
        torch.float8_e5m2fnuz: 0x80, torch.float8_e8m0fnu: 0xFF,
    }  # fmt: skip
    (tmp_path / "config.json").write_text("{}")
    for dtype, bad in bits.items():
        content = torch.arange(1, 9, dtype=torch.uint8)
        save({"a": content.view(dtype)}, tmp_path / "model.safetensors")
        make_manifest(checkpoint_files(tmp_path), tmp_path)
        content[3] = bad
        assert not content.view(dtype).float().isfinite().all()
        save({"a": content.view(dtype)}, tmp_path / "model.safetensors")
        with pytest.raises(ScalpelError, match="tensor a holds 1 values that are NaN"):
            make_manifest(checkpoint_files(tmp_path), tmp_path)


def test_a_model_of_mlflows_own_flavour_is_read(tracking, first_model, tmp_path):
    """As mlflow.transformers lays it out: weights in model/, the tokenizer in components/."""
    tree = tmp_path / "logged"
    (tree / "components" / "tokenizer").mkdir(parents=True)
    (tree / "model").mkdir()
    for file in checkpoint_files(first_model):
        part = (
            "model"
            if "token" not in file.name and "chat" not in file.name
            else "components/tokenizer"
        )
        shutil.copy(file, tree / part / name_in(first_model, file))
    flavour = "flavors:\n  transformers:\n    model_binary: model\n    components: [tokenizer]\n"
    (tree / "MLmodel").write_text(flavour)
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(tree), "step_7")
    for source in (str(tree), f"runs:/{run.info.run_id}/step_7"):
        found = resolve(source)
        assert AutoTokenizer.from_pretrained(found)("abc")["input_ids"]
        assert (
            load_file(found / "model.safetensors").keys()
            == load_file(first_model / "model.safetensors").keys()
        )
    (tree / "MLmodel").write_text(flavour.replace("model_binary: model", "model_binary: ../../x"))
    with pytest.raises(ScalpelError, match="is not a place within the model"):
        resolve(str(tree))
    with pytest.raises(ScalpelError, match="no such folder among its artifacts"):
        resolve(f"runs:/{run.info.run_id}/nothing")


def test_a_log_that_lost_all_is_a_failed_run(tracking, first_model, tmp_path, capsys):
    directory = tmp_path / "run" / "checkpoint-5"
    shutil.copytree(first_model, directory)
    (directory / "model.safetensors").write_bytes(b"x" * 100)
    assert main(["log", str(tmp_path / "run"), "--base", str(first_model)]) == 1
    (run,) = MlflowClient().search_runs([mlflow.get_experiment_by_name("tests").experiment_id])
    assert run.info.status == "FAILED"
    assert "step 5 are not stored; no other is" in run.data.tags["scalpel.warning.checkpoints_lost"]
    # fixed, it is logged, and the warning is gone
    shutil.copy(first_model / "model.safetensors", directory)
    assert main(["log", str(tmp_path / "run"), "--base", str(first_model)]) == 0
    run = MlflowClient().get_run(run.info.run_id)
    assert run.info.status == "FINISHED"
    assert "scalpel.warning.checkpoints_lost" not in run.data.tags


def test_a_step_that_cannot_be_opened_is_told_beside_one_that_is(
    tracking, first_model, tmp_path, capsys
):
    shutil.copytree(first_model, tmp_path / "run" / "checkpoint-5")
    bad = tmp_path / "run" / "checkpoint-10"
    bad.mkdir()
    (bad / "pytorch_model.bin").write_bytes(b"x")
    assert main(["log", str(tmp_path / "run")]) == 1
    printed = capsys.readouterr()
    assert "step 5: models:/m-" in printed.out
    assert "step 10: is not logged: " in printed.err
    assert "pytorch_model.bin is a pickle" in printed.err
    assert main(["log", str(tmp_path / "run"), "--step", "3"]) == 2
    assert main(["log", str(tmp_path / "run" / "checkpoint-5"), "--step", "7"]) == 0
