"""What is measured: models with their files on this machine, and where they come from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from mlflow_scalpel.checkpoints import cache
from mlflow_scalpel.checkpoints.layout import checkpoint_files
from mlflow_scalpel.checkpoints.manifest import content_digest, read_manifest
from mlflow_scalpel.tensors.steps import step_of_name


@dataclass(frozen=True)
class Subject:
    """One model: a base, or a checkpoint with what is known of its training."""

    directory: Path
    model_id: str
    digest: str
    step: int | None
    run_id: str | None = None
    algorithm: str | None = None
    learning_rate_sum: float | None = None
    """Sum of the learning rates of all steps so far."""


def subject_from(source: str, *, files: bool = True) -> Subject:
    """The model that `source` names: a directory, a hub name, or any URI of one checkpoint.

    Without `files` those of a logged checkpoint stay where they are, and `directory` holds nothing.
    The step of a directory is that in its name (`checkpoint-400`, `step-400`), None without one.
    Raises ScalpelError where there is no such model, or where it cannot be read.
    """
    from mlflow import MlflowClient

    from mlflow_scalpel.checkpoints import model_id_of, resolve

    model_id = model_id_of(source)
    directory = resolve(source) if files or model_id is None else Path(source)
    if model_id is None:
        step = step_of_name(Path(source).name)
        return Subject(directory, source, digest_of(directory), step)
    model = MlflowClient().get_logged_model(model_id)
    rates = model.params.get("learning_rate_sum")
    return Subject(
        directory,
        model_id,
        model.params.get("digest") or digest_of(resolve(source)),
        int(model.params.get("step", "0")),
        model.source_run_id,
        model.params.get("algorithm"),
        float(rates) if rates else None,
    )


def digest_of(directory: Path) -> str:
    """The content digest of the files in a directory; they are hashed once, until they change.

    Changed means another name, size, time of change or inode of any of the files.
    """
    manifest = read_manifest(directory)
    if manifest is not None:
        return manifest.digest
    states = [(str(file), file.stat()) for file in checkpoint_files(directory)]
    seen = [(name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in states]
    key = hashlib.sha256(json.dumps([str(directory.resolve()), seen]).encode()).hexdigest()
    kept = cache.directory() / "digests" / key
    if kept.is_file():
        return kept.read_text()
    digest = content_digest(directory)
    cache.write_whole(kept, digest.encode())
    return digest
