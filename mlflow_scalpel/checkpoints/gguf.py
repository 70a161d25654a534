"""Models in GGUF files (llama.cpp), unpacked once to what everything else reads."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from mlflow_scalpel.checkpoints import cache
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.files import WEIGHTS

SUFFIX = ".gguf"


def unpacked(source: Path) -> Path:
    """A directory of safetensors with the model of `source`, or `source` where it is no GGUF.

    `source` is a GGUF file, or a directory that holds one and no safetensors. Transformers
    dequantises it to float32 and gives its tensors the names that the unquantised model has; the
    result is kept in the cache of this machine until the file changes.

    Raises ScalpelError where a directory holds several, or where Transformers cannot read it: for
    most families it needs the package gguf.
    """
    file = _file_of(source)
    if file is None:
        return source
    state = file.stat()
    seen = [str(file.resolve()), state.st_ino, state.st_size, state.st_mtime_ns]
    key = hashlib.sha256(json.dumps(seen).encode()).hexdigest()
    target = cache.directory() / "gguf" / key / file.stem
    if target.is_dir():
        return target
    partial = target.parent / f".{uuid.uuid4().hex}"
    partial.mkdir(parents=True)
    try:
        _unpack(file, partial)
        partial.rename(target)
    except ScalpelError:
        raise
    except Exception as error:  # of any type, by what the file holds; told by name
        text = " ".join(str(error).split())[:400]
        raise ScalpelError(
            f"{file}: is a GGUF file, which Transformers cannot unpack ({type(error).__name__}: "
            f"{text}); install gguf (pip install 'mlflow-scalpel[gguf]'), or give the safetensors "
            "that it was made from"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _file_of(source: Path) -> Path | None:
    if source.suffix == SUFFIX and source.is_file():
        found = [source]
    elif source.is_dir() and not any(source.glob(f"*{WEIGHTS}")):
        found = sorted(source.glob(f"*{SUFFIX}"))
    else:
        return None
    if len(found) > 1:
        raise ScalpelError(
            f"{source}: holds {', '.join(file.name for file in found[:4])}, and it is not known "
            "which one is meant; give the path of the file (parts of one model: join them with "
            "llama-gguf-split --merge first)"
        )
    return found[0] if found else None


def _unpack(file: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    how: Any = {"gguf_file": file.name, "local_files_only": True}
    opener: Any = AutoModelForCausalLM
    model, info = opener.from_pretrained(
        file.parent,
        dtype=torch.float32,
        output_loading_info=True,
        trust_remote_code=False,
        **how,
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])[0]
        raise ScalpelError(f"{file}: has no tensor from which Transformers could make {missing}")
    config = model.config
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    # A model that was never quantised, since one that was is not saved.
    plain = type(model)._from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.save_pretrained(directory)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, trust_remote_code=False, **how)
    except (KeyError, ValueError, TypeError, AttributeError, ImportError) as error:
        print(
            f"WARNING: {file}: Transformers cannot read its tokenizer ({type(error).__name__}: "
            f"{error}); that of the base is taken for it",
            flush=True,
        )
    else:
        tokenizer.save_pretrained(directory)
