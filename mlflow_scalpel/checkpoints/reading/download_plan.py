"""The plan of a download: a model's files, where they are, and what they should be."""

from __future__ import annotations

import errno
import posixpath
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints.artifact_store import LocalStore, Store, copy_out
from mlflow_scalpel.checkpoints.files import MANIFEST, MLMODEL, POINTER, checkpoint_files, name_in
from mlflow_scalpel.checkpoints.manifest import (
    Manifest,
    StoredFile,
    file_damage,
    parse_manifest,
    plain_manifest,
    read_manifest,
)
from mlflow_scalpel.checkpoints.reading import cache
from mlflow_scalpel.checkpoints.reading.formats import snapshot_of
from mlflow_scalpel.errors import ScalpelError


class _Fetch(Protocol):
    def __call__(self, name: str, target: Path, progress: Callable[[int], Any]) -> None: ...


@dataclass(frozen=True)
class DownloadPlan:
    """The files to bring, and the place that they come from."""

    shown: str
    """Name of the model in errors and in the progress bar."""
    location: str
    files: Mapping[str, StoredFile]
    fetch: _Fetch
    manifest: Manifest | None = None
    beside: Mapping[str, bytes] = field(default_factory=dict)
    """Small files of ours and of MLflow, with their content."""
    local: Path | None = None
    """Directory of the files, if they are on this machine."""
    snapshot: Path | None = None
    """Their directory in the hub's cache, if they are there."""
    entry: Path | None = None
    """Their directory in our cache, if they are there."""

    @property
    def bytes(self) -> int:
        return sum(described.bytes for described in self.files.values())

    def damaged(self, name: str, problem: str) -> ScalpelError:
        if self.snapshot is not None:
            remedy = f"delete {(self.snapshot / name).resolve()}, and it is downloaded again"
        elif self.entry is not None:
            remedy = f"delete {self.entry}, and it is fetched again"
        else:
            remedy = "put it back from a copy, or log the checkpoint again "
            remedy += "(`mlflow-scalpel verify` finds all that is damaged)"
        file = posixpath.join(self.location, name)
        return ScalpelError(f"{self.shown}: the stored file {file} {problem}; {remedy}")

    def check_snapshot(self) -> None:
        """Raise ScalpelError that names a file of the hub's cache that is not as it should be."""
        assert self.snapshot is not None
        for name, described in self.files.items():
            problem = problem_of((self.snapshot / name).resolve(), described)
            if problem is not None:
                raise self.damaged(name, problem)


def plan_of_model(model: LoggedModel, store: Store) -> DownloadPlan:
    """The plan for a LoggedModel, from its manifest."""
    shown = f"model {model.model_id} ({model.name})"
    location = str(store.local or model.artifact_location)
    with explain_failure(shown, "the list of its files"):
        sizes = store.sizes()
    beside = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in (MANIFEST, MLMODEL, POINTER):
            if name in sizes:
                with explain_failure(shown, name):
                    store.fetch(name, Path(folder) / name)
                beside[name] = (Path(folder) / name).read_bytes()
        manifest = None
        if MANIFEST in beside:
            manifest = parse_manifest(beside[MANIFEST], f"{location}/{MANIFEST}")
            expected = model.params.get("digest", manifest.digest)
            if manifest.digest != expected:
                raise ScalpelError(
                    f"{location}/{MANIFEST}: has the digest {manifest.digest}, and the model was "
                    f"logged with {expected}: it was changed since, and the checkpoint is not "
                    "used; put the file back from a copy, or log the checkpoint again"
                )
        elif "kind" in model.params:
            raise ScalpelError(
                f"{location}/{MANIFEST}: is missing, so that nothing can be checked; put it back "
                "from a copy, or log the checkpoint again"
            )
        else:
            print(
                f"{shown}: was stored without {MANIFEST}, so that its files cannot be checked",
                file=sys.stderr,
            )
        if POINTER in beside:
            wanted = {"files": list(manifest.files)} if manifest else {}
            snapshot = snapshot_of(Path(folder) / POINTER, **wanted)
            return _of_snapshot(shown, snapshot, manifest, beside)
    if manifest is None:
        files = {name: _unchecked(size) for name, size in sizes.items()}
        if not files:
            raise ScalpelError(f"{shown}: there are no files at {location}; log it again")
        return DownloadPlan(shown, location, files, store.fetch, local=store.local)
    entry = cache_entry(model) if store.local is None else None
    if entry is not None:  # it travelled before
        fetch = LocalStore(entry).fetch
        return DownloadPlan(
            shown, str(entry), manifest.files, fetch, manifest, beside, local=entry, entry=entry
        )
    missing = sorted(set(manifest.files) - set(sizes))
    plan = DownloadPlan(shown, location, manifest.files, store.fetch, manifest, beside, store.local)
    if missing:
        raise plan.damaged(missing[0], "is missing")
    return plan


def plan_of_directory(shown: str, directory: Path) -> DownloadPlan:
    """The plan for a directory that is not a LoggedModel: a checkpoint, or a hub snapshot."""
    manifest = read_manifest(directory)
    if manifest is None:
        return _of_snapshot(shown, directory, plain_manifest(directory), {})
    fetch = LocalStore(directory).fetch
    beside = {MANIFEST: (directory / MANIFEST).read_bytes()}
    return DownloadPlan(
        shown, str(directory), manifest.files, fetch, manifest, beside, local=directory
    )


def _of_snapshot(
    shown: str, snapshot: Path, manifest: Manifest | None, beside: dict[str, bytes]
) -> DownloadPlan:
    """Files that may be links within the hub's cache, as `checkpoint_files` allows them."""
    files = checkpoint_files(snapshot)
    if manifest is not None:
        described = manifest.files
        beside = {**beside, MANIFEST: (manifest.model_dump_json(indent=1) + "\n").encode()}
    else:
        described = {name_in(snapshot, file): _unchecked(file.stat().st_size) for file in files}

    def fetch(name: str, target: Path, progress: Callable[[int], Any]) -> None:
        copy_out((snapshot / name).resolve(), target)
        progress(target.stat().st_size)

    # A copy of the files is not a pointer any more.
    beside = {name: content for name, content in beside.items() if name != POINTER}
    return DownloadPlan(
        shown, str(snapshot), described, fetch, manifest, beside, snapshot, snapshot=snapshot
    )


def _unchecked(size: int) -> StoredFile:
    """A file of which only the size is known (0 where not even that)."""
    return StoredFile(bytes=size, sha256="")


def problem_of(file: Path, described: StoredFile) -> str | None:
    """The fault of a file that was brought, if any; by its size where no digest is known."""
    if described.sha256:
        return file_damage(file, described)
    size = file.stat().st_size
    if described.bytes and size != described.bytes:
        return f"has {size} bytes in place of {described.bytes}"
    return None


def cache_entry(model: LoggedModel, *, check: bool = False) -> Path | None:
    """The model's directory in the cache, if it is there; `check` compares the digests, too."""
    digest = model.params.get("digest", "")
    named = [cache_key(digest)] if re.fullmatch(r"sha256:[0-9a-f]{64}", digest) else []
    found = (cache.find(key, check=check) for key in (*named, model.model_id))
    return next((entry for entry in found if entry is not None), None)


def cache_key(digest: str) -> str:
    """Name of the cache entry of files with that digest."""
    return digest.replace(":", "-")


@contextmanager
def explain_failure(shown: str, name: str, directory: Path | None = None) -> Iterator[None]:
    """Turn what stores raise into an error that says what to do."""
    from requests.exceptions import RequestException

    try:
        yield
    except (MlflowException, RequestException, OSError) as error:
        if directory is not None and getattr(error, "errno", None) == errno.ENOSPC:
            free = shutil.disk_usage(directory).free
            raise ScalpelError(
                f"{directory}: the disk is full ({free} bytes free) in the middle of {name}; free "
                "some and run it again: it resumes where it stopped"
            ) from error
        raise ScalpelError(
            f"{shown}: {name} could not be fetched ({type(error).__name__}: {error}); run it "
            "again: it resumes where it stopped"
        ) from error
