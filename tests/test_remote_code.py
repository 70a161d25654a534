"""Code that a model brings along is not run, and nobody is asked whether to."""

from __future__ import annotations

import ast
import io
import json
import shutil
from pathlib import Path

import pytest

import mlflow_scalpel
from mlflow_scalpel.cli import main

EVIL = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "evil"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast): pass
"""


def test_every_call_of_an_auto_class_says_so():
    """Where it does not, Transformers asks on the terminal."""
    for file in Path(mlflow_scalpel.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("from_pretrained", "from_config")
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id.startswith("Auto")
            ):
                given = {word.arg for word in node.keywords}
                assert "trust_remote_code" in given, f"{file}:{node.lineno}"


@pytest.fixture
def evil(first_model: Path, tmp_path: Path) -> Path:
    """A model that Transformers opens by its own code only, which leaves a mark."""
    model = tmp_path / "evil"
    shutil.copytree(first_model, model)
    (model / "code.py").write_text(EVIL.format(mark=str(tmp_path / "mark")))
    config = json.loads((model / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (model / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("metrics", ["kl", "attention"])
def test_what_needs_its_code_is_refused(evil, tracking, tmp_path, metrics, capsys, monkeypatch):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"problem": "1+1", "solution": "2"}\n')
    words = ["compare", evil, evil, "--metrics", metrics, "--texts", texts]
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))  # to whoever asks
    assert main(list(map(str, words))) == 1
    assert "names Python files of its own (auto_map)" in capsys.readouterr().out
    assert not (tmp_path / "mark").exists()


def test_its_tokenizer_is_not_run_either(evil, tmp_path):
    from mlflow_scalpel.chat import load_tokenizer
    from mlflow_scalpel.errors import ScalpelError

    config = json.loads((evil / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "code.Tokenizer"]}}
    (evil / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ScalpelError, match="auto_map"):
        load_tokenizer(evil)
    assert not (tmp_path / "mark").exists()
