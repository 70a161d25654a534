"""Models that are measured, with their files on this machine, and where they come from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_scalpel.checkpoints.atomic import write_atomically
from mlflow_scalpel.checkpoints.files import checkpoint_files
from mlflow_scalpel.checkpoints.manifest import content_digest, read_manifest
from mlflow_scalpel.checkpoints.reading import cache
from mlflow_scalpel.checkpoints.search import step_of
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.adapters import check_adapter
from mlflow_scalpel.tensors.files import is_adapter
from mlflow_scalpel.tensors.steps import step_of_path

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel


@dataclass(frozen=True)
class MeasuredModel:
    """One model: a base, or a checkpoint with what is known of its training."""

    directory: Path
    """Its files as they are stored: an adapter's hold only what it adds to its base."""
    model_id: str
    digest: str
    step: int | None
    run_id: str | None = None
    algorithm: str | None = None
    learning_rate_sum: float | None = None
    """Sum of the learning rates of all steps so far."""
    adapted: Path | None = None
    """The model that it is an adapter of; None where it is a complete model."""
    adapted_digest: str = ""
    """Content digest of that."""
    problem: str | None = None
    """Why nothing of it can be measured, though it is there."""
    merged: list[Path] = field(default_factory=list, compare=False, repr=False)
    """Directories that `complete` made of it."""

    def complete(self, dtype: str | None = None) -> Path:
        """A directory with the complete model, an adapter merged into its base.

        `dtype` is that of the merged weights; None is the base's. Raises ScalpelError where the two
        cannot be merged.
        """
        if self.problem is not None:
            raise ScalpelError(self.problem)
        if self.adapted is None:
            return self.directory
        from mlflow_scalpel.checkpoints.models.merging import merge_adapter

        directory = merge_adapter(
            self.directory,
            self.adapted,
            dtype=dtype,
            adapter_digest=self.digest,
            base_digest=self.adapted_digest,
        )
        if directory not in self.merged:
            self.merged.append(directory)
        return directory


def model_cells(base: MeasuredModel, checkpoint: MeasuredModel) -> dict[str, Any]:
    """The cells by which a row of the tidy table names its models."""
    return {
        "base": base.model_id,
        "base_digest": base.digest,
        "model_id": checkpoint.model_id,
        "model_digest": checkpoint.digest,
        "run_id": checkpoint.run_id,
        "algorithm": checkpoint.algorithm,
        "step": checkpoint.step,
    }


def model_from(
    source: str, *, files: bool = True, base: MeasuredModel | None = None
) -> MeasuredModel:
    """The model that `source` names: a directory, a hub name, or any URI of one checkpoint.

    Without `files` those of a logged checkpoint stay where they are, and `directory` holds nothing.
    An adapter whose own base cannot be had is taken for one of `base` where it fits (`base_of`);
    one of which nothing can be measured has a `problem`. The step of a directory is that in its
    name (`checkpoint-400`, `global_step_20/actor`), None without one. Raises ScalpelError where
    there is no such model, or where it cannot be read.
    """
    from mlflow import MlflowClient

    from mlflow_scalpel.checkpoints.reading.addresses import model_id_of
    from mlflow_scalpel.checkpoints.reading.download import stored_files

    model_id = model_id_of(source)
    if model_id is None:
        directory, _ = stored_files(source)
        local = source.startswith("runs:") or Path(source).is_dir()
        step = step_of_path(Path(source)) if local else None
        return with_adapted(
            MeasuredModel(directory, source, digest_of(directory), step), None, base
        )
    logged = MlflowClient().get_logged_model(model_id)
    rates = logged.params.get("learning_rate_sum")
    directory = stored_files(source)[0] if files else Path(source)
    model = MeasuredModel(
        directory,
        model_id,
        logged.params.get("digest") or digest_of(stored_files(source)[0]),
        step_of(logged) if "step" in logged.params else None,
        logged.source_run_id,
        logged.params.get("algorithm"),
        float(rates) if rates else None,
    )
    return with_adapted(model, logged, base) if files else model


def readable_model(
    source: str, *, files: bool = True, base: MeasuredModel | None = None
) -> MeasuredModel:
    """As `model_from`; a directory that cannot be read is a model with a `problem`.

    Raises ScalpelError where there is no such model.
    """
    try:
        return model_from(source, files=files, base=base)
    except ScalpelError as error:
        directory = Path(source)
        if not directory.is_dir():
            raise
        problem = str(error)
        digest = hashlib.sha256(problem.encode()).hexdigest()
        return MeasuredModel(directory, source, digest, step_of_path(directory), problem=problem)


def with_adapted(
    model: MeasuredModel, logged: LoggedModel | None, base: MeasuredModel | None
) -> MeasuredModel:
    """The model, with what it is an adapter of where it is one."""
    if not is_adapter(model.directory):
        return model
    from mlflow_scalpel.checkpoints.reading.pull import Base, base_of

    given = None if base is None or base.adapted else Base(base.directory, base.digest)
    try:
        check_adapter(model.directory)
        found = base_of(model.directory, logged, given)
        return replace(
            model,
            adapted=found.directory,
            adapted_digest=found.digest or digest_of(found.directory),
        )
    except ScalpelError as error:
        return replace(model, problem=str(error))


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
    write_atomically(kept, digest.encode())
    return digest
