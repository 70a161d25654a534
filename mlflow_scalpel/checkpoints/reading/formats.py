"""Models that are stored in other ways, each as a directory that Transformers can open.

The hub; GGUF files (llama.cpp), unpacked once; folders of a run's artifacts; and what MLflow's own
flavours stored: `mlflow.transformers` puts the weights into `model/` and the tokenizer into
`components/tokenizer`, `mlflow.pyfunc` (as Transformers' callback logs checkpoints)
a directory under `artifacts/`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints.artifact_store import open_store, place
from mlflow_scalpel.checkpoints.external.layouts import model_in
from mlflow_scalpel.checkpoints.files import (
    KEPT,
    MANIFEST,
    MLMODEL,
    checkpoint_files,
    is_inner_name,
    name_in,
)
from mlflow_scalpel.checkpoints.reading import cache
from mlflow_scalpel.checkpoints.reading.addresses import split_artifact
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.extras import install_command, require_extra
from mlflow_scalpel.tensors.files import WEIGHTS

# Code too, since a snapshot is complete or not; it is run for nobody who does not ask for it.
_SAFE_FILES = (*(f"*{suffix}" for suffix in KEPT), "*.py")
_COMPONENTS = ("tokenizer", "processor", "image_processor", "feature_extractor")
_TOKENIZER = "tokenizer_config.json"
_LARGEST = 1 << 20  # bytes of an MLmodel
SUFFIX = ".gguf"


def files_of(source: str) -> Path:
    """The directory of a model that is not a LoggedModel: local, among artifacts, or on the hub.

    A directory may be a trainer's, with the model within it, or what an MLflow flavour wrote.
    Raises ScalpelError where there is no such model, or several.
    """
    artifact = split_artifact(source)
    if artifact is not None:
        return model_in(open_flavour(artifact_directory(*artifact)))
    local = unpack_gguf(Path(source))
    return model_in(open_flavour(local)) if local.is_dir() else hub_snapshot(source)


def hub_snapshot(
    name: str, revision: str | None = None, files: Sequence[str] = _SAFE_FILES
) -> Path:
    """The hub model's files in the local hub cache, downloaded where they are missing.

    Args:
        name: `org/name`, or `org/name@revision`.
        revision: branch, tag or commit, instead of one in the name; the main branch if neither.
        files: names or patterns of what is needed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, named = name.partition("@")
    revision = revision or named or None
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ScalpelError(
            f"model = {name}: is neither a local directory nor a model that could be had from the "
            f"hub ({type(error).__name__}: {error}); check the name, the network, and HF_TOKEN "
            "where the model is gated"
        ) from error


def snapshot_of(pointer: Path, files: Sequence[str] = _SAFE_FILES) -> Path:
    """The hub snapshot that a stored `pointer.json` names, at the commit that it names."""
    try:
        named = json.loads(pointer.read_bytes())
        repository, revision = str(named["repository"]), str(named["revision"])
    except (ValueError, KeyError, TypeError) as error:
        raise ScalpelError(
            f"{pointer}: names no hub model ({type(error).__name__}: {error}); log the base again"
        ) from error
    return hub_snapshot(repository, revision, files)


def artifact_directory(run_id: str, path: str) -> Path:
    """The directory of a run's artifact, in its local store or brought into the cache.

    Raises ScalpelError where there is no such directory, or it cannot be had.
    """
    shown = f"runs:/{run_id}/{path}"
    if not is_inner_name(path):
        raise ScalpelError(f"model = {shown}: leads out of the run's artifacts; name one of them")
    store = open_store(f"{MlflowClient().get_run(run_id).info.artifact_uri}/{path}")
    try:
        sizes = store.sizes()
    except (MlflowException, OSError) as error:
        raise ScalpelError(f"model = {shown}: cannot be read ({error}); check the path") from error
    if not sizes:
        raise ScalpelError(
            f"model = {shown}: the run has no model of that name, and no such folder among its "
            "artifacts; look at the artifacts on the run's page"
        )
    if store.local is not None:
        return store.local

    def fill(partial: Path) -> None:
        for name in sizes:
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            store.fetch(name, target)
        cache.protect(partial)

    seen = hashlib.sha256(repr((shown, sorted(sizes.items()))).encode()).hexdigest()
    try:
        return cache.keep(f"artifacts-{seen}", sum(sizes.values()), fill)
    except (MlflowException, OSError) as error:
        raise ScalpelError(
            f"model = {shown}: could not be fetched ({type(error).__name__}: {error}); try again"
        ) from error


def open_flavour(directory: Path) -> Path:
    """The directory that Transformers can open of a model that MLflow's own flavours stored.

    The directory itself where it is not such a model, or is one of ours. Where weights and
    tokenizer lie apart, they are put together in the cache; no weight is copied where the file
    system can link.

    Raises ScalpelError where the MLmodel cannot be read, or names a place outside of the model.
    """
    if not (directory / MLMODEL).is_file() or (directory / MANIFEST).is_file():
        return directory
    flavours = _flavours(directory / MLMODEL)
    transformers = _mapping(flavours.get("transformers"))
    for key in ("peft_adaptor", "model_binary"):
        if key in transformers:
            model = model_in(_inside(directory, transformers[key]))
            return _with_components(directory, model)
    if "source_model_name" in transformers:
        name, revision = (
            transformers["source_model_name"],
            transformers.get("source_model_revision"),
        )
        raise ScalpelError(
            f"{directory}: was logged without its weights, as a reference to {name} on the hub; "
            f"give {name}{f'@{revision}' if revision else ''} itself"
        )
    artifacts = _mapping(_mapping(flavours.get("python_function")).get("artifacts"))
    for entry in artifacts.values():
        folder = _inside(directory, _mapping(entry).get("path"))
        if folder.is_dir():
            return model_in(folder)
    return directory


def _flavours(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"it has {file.stat().st_size} bytes")
        content = yaml.safe_load(file.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ScalpelError(
            f"{file}: is not a readable MLmodel ({type(error).__name__}: {error}); log the model "
            "again"
        ) from error
    return _mapping(_mapping(content).get("flavors"))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _inside(directory: Path, name: Any) -> Path:
    if not isinstance(name, str) or not is_inner_name(name):
        raise ScalpelError(
            f"{directory / MLMODEL}: names {name!r}, which is not a place within the model; "
            "log the model again"
        )
    return directory / name


def _with_components(directory: Path, model: Path) -> Path:
    """The model's directory, with tokenizer and processor from the components where it has none."""
    components = [
        folder for name in _COMPONENTS if (folder := directory / "components" / name).is_dir()
    ]
    if (model / _TOKENIZER).is_file() or not components:
        return model
    files = {name_in(model, file): file for file in checkpoint_files(model)}
    for folder in components:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and not file.is_symlink() and file.suffix in KEPT:
                files.setdefault(name_in(folder, file), file)
    states = [(name, str(file), (s := file.stat()).st_ino, s.st_size, s.st_mtime_ns)
              for name, file in sorted(files.items())]  # fmt: skip
    key = f"together-{hashlib.sha256(json.dumps(states).encode()).hexdigest()}"

    def fill(partial: Path) -> None:
        for name, file in files.items():
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            place(file, target, None if file.suffix == WEIGHTS else "copy")

    return cache.keep(key, sum(file.stat().st_size for file in files.values()), fill)


def unpack_gguf(source: Path) -> Path:
    """A directory of safetensors with the model of `source`, or `source` where it is not GGUF.

    `source` is a GGUF file, or a directory that holds one and no safetensors. Transformers
    dequantises it to float32 and gives its tensors the names that the unquantised model has; the
    result is kept in the cache of this machine until the file changes.

    Raises ScalpelError where a directory holds several, or where Transformers cannot read it: for
    most families it needs the package gguf.
    """
    file = _gguf_in(source)
    if file is None:
        return source
    state = file.stat()
    seen = [str(file.resolve()), state.st_ino, state.st_size, state.st_mtime_ns]
    key = hashlib.sha256(json.dumps(seen).encode()).hexdigest()
    target = cache.directory() / "gguf" / key / file.stem
    if target.is_dir():
        return target
    require_extra("measure", f"{file}: a model in GGUF")
    partial = target.parent / f".{uuid.uuid4().hex}"
    partial.mkdir(parents=True)
    try:
        _unpack(file, partial)
        partial.rename(target)
    except ScalpelError:
        raise
    except Exception as error:  # of any type, by what the file holds; named in the message
        text = " ".join(str(error).split())[:400]
        raise ScalpelError(
            f"{file}: is a GGUF file, which Transformers cannot unpack ({type(error).__name__}: "
            f"{text}); install gguf ({install_command('gguf')}), or give the safetensors "
            "that it was made from"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _gguf_in(source: Path) -> Path | None:
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
