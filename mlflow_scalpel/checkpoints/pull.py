"""Brings a checkpoint's files to this machine, each checked, each byte once."""

from __future__ import annotations

import errno
import filecmp
import os
import posixpath
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints import cache
from mlflow_scalpel.checkpoints.adapters import merged_with_base
from mlflow_scalpel.checkpoints.layout import (
    ADAPTER_CONFIG,
    CONFIG,
    INDEX,
    MANIFEST,
    MLMODEL,
    POINTER,
    WEIGHTS,
    checkpoint_files,
    is_adapter,
)
from mlflow_scalpel.checkpoints.manifest import (
    Manifest,
    StoredFile,
    file_damage,
    parse_manifest,
    read_manifest,
    sha256,
)
from mlflow_scalpel.checkpoints.resolve import (
    hub_snapshot,
    model_id_of,
    readable_model,
    snapshot_of,
    store_of,
)
from mlflow_scalpel.checkpoints.stores import (
    PARALLEL_FILES,
    LocalStore,
    Store,
    place,
)
from mlflow_scalpel.errors import ScalpelError

PART = ".part"  # ends the name of a file that is not all there yet


def pull(
    source: str, dst: str | Path | None = None, *, merge: bool = False, progress: bool = False
) -> Path:
    """The files of the checkpoint `source`, checked against its manifest; their directory.

    What is there and right is not fetched again, and a file that was cut off goes on where it
    stopped where the store can.

    Args:
        source: what `resolve` takes: models:/ or runs:/ URI, model ID, hub name or directory.
        dst: directory to put the files into. They are copies: what is done to them harms nobody.
            Without it they are in the cache (a hub model: in the hub's), which nobody may write to
            and which keeps them for as long as this process lives.
        merge: write an adapter as the whole model that it makes with its base.
        progress: show one bar, in bytes, on stderr.

    Raises:
        ScalpelError: there is no such model, it cannot be read, a stored file is damaged, the disk
            is full, or `dst` has a file that is not the checkpoint's.
    """
    if dst is not None and Path(dst).exists() and not Path(dst).is_dir():
        raise ScalpelError(f"{dst}: is no directory; give one, or a name that is free")
    model_id = model_id_of(source)
    if model_id is None:
        directory = Path(source) if Path(source).is_dir() else hub_snapshot(source)
        checkpoint_files(directory)
        if merge and is_adapter(directory):
            directory = merged_with_base(directory)
        return directory if dst is None else _copy(_of_directory(source, directory), dst, progress)
    model = readable_model(model_id)
    store = store_of(model)
    whole = _merged(model, store, progress) if merge else None
    if dst is None:
        return whole or cached(model, store, check=True, progress=progress)
    contents = _contents(model, store) if whole is None else _of_directory(source, whole)
    return _copy(contents, dst, progress)


def cached(
    model: LoggedModel, store: Store, *, check: bool = False, progress: bool = False
) -> Path:
    """The model's files in the cache, brought there and checked where they are not.

    A pointer's are in the hub's cache, and checked where `check` asks for it.
    """
    known = _entry(model)
    if known is not None:
        return known
    contents = _contents(model, store)
    if contents.snapshot is not None:
        if check:
            contents.check_snapshot()
        return contents.snapshot

    def fill(partial: Path) -> None:
        _bring_all(contents, partial, progress)
        if contents.manifest is not None:
            with _told_of_failure(contents.shown, MANIFEST, partial):
                contents.manifest.write(partial)
        cache.protect(partial)

    key = _key(contents.manifest.digest) if contents.manifest else model.model_id
    return cache.keep(key, contents.bytes, fill)


def _entry(model: LoggedModel) -> Path | None:
    """Where the cache has the model's files, if it has."""
    digest = model.params.get("digest", "")
    known = cache.find(_key(digest)) if re.fullmatch(r"sha256:[0-9a-f]{64}", digest) else None
    return known or cache.find(model.model_id)


def _key(digest: str) -> str:
    return digest.replace(":", "-")


def _merged(model: LoggedModel, store: Store, progress: bool) -> Path | None:
    """The adapter merged with its base; None where the model is no adapter."""
    names = _names(store)
    if not names & {ADAPTER_CONFIG, POINTER}:
        return None
    # An adapter that is here is read in place.
    local = store.local if POINTER not in names else None
    directory = local or cached(model, store, check=True, progress=progress)
    return merged_with_base(directory, model) if is_adapter(directory) else None


class _Fetch(Protocol):
    def __call__(self, name: str, target: Path, progress: Callable[[int], Any]) -> None: ...


@dataclass(frozen=True)
class _Contents:
    """What is to be brought, and from where."""

    shown: str
    """What errors and the progress bar call the model."""
    location: str
    files: Mapping[str, StoredFile]
    fetch: _Fetch
    manifest: Manifest | None = None
    beside: Mapping[str, bytes] = field(default_factory=dict)
    """Small files of ours and of MLflow, with their content."""
    local: Path | None = None
    """Where the files are if they are on this machine."""
    snapshot: Path | None = None
    """Where they are in the hub's cache."""
    entry: Path | None = None
    """Where they are in our cache."""

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
            problem = _problem((self.snapshot / name).resolve(), described)
            if problem is not None:
                raise self.damaged(name, problem)


def _contents(model: LoggedModel, store: Store) -> _Contents:
    """What a LoggedModel holds, as its manifest says."""
    shown = f"model {model.model_id} ({model.name})"
    location = str(store.local or model.artifact_location)
    with _told_of_failure(shown, "the list of its files"):
        names = _names(store)
    beside = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in (MANIFEST, MLMODEL, POINTER):
            if name in names:
                with _told_of_failure(shown, name):
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
        with _told_of_failure(shown, "the list of its files"):
            files = dict(_tree(model.artifact_location))
        if not files:
            raise ScalpelError(f"{shown}: there are no files at {location}; log it again")
        return _Contents(shown, location, files, store.fetch, local=store.local)
    entry = _entry(model) if store.local is None else None
    if entry is not None:  # it travelled before
        fetch = LocalStore(entry).fetch
        return _Contents(
            shown, str(entry), manifest.files, fetch, manifest, beside, local=entry, entry=entry
        )
    missing = sorted(set(manifest.files) - names)
    contents = _Contents(
        shown, location, manifest.files, store.fetch, manifest, beside, store.local
    )
    if missing:
        raise contents.damaged(missing[0], "is missing")
    return contents


def _of_directory(shown: str, directory: Path) -> _Contents:
    """What a directory holds that is no LoggedModel: a checkpoint, or a snapshot of the hub."""
    manifest = read_manifest(directory)
    if manifest is None:
        files = checkpoint_files(directory)
        manifest = Manifest(
            files={f.name: StoredFile(bytes=f.stat().st_size, sha256=sha256(f)) for f in files}
        )
        return _of_snapshot(shown, directory, manifest, {})
    fetch = LocalStore(directory).fetch
    beside = {MANIFEST: (directory / MANIFEST).read_bytes()}
    return _Contents(
        shown, str(directory), manifest.files, fetch, manifest, beside, local=directory
    )


def _of_snapshot(
    shown: str, snapshot: Path, manifest: Manifest | None, beside: dict[str, bytes]
) -> _Contents:
    """Files that may be links within the hub's cache, as `checkpoint_files` allows them."""
    files = checkpoint_files(snapshot)
    if manifest is not None:
        described = manifest.files
        beside = {**beside, MANIFEST: (manifest.model_dump_json(indent=1) + "\n").encode()}
    else:
        described = {file.name: _unchecked(file.stat().st_size) for file in files}

    def fetch(name: str, target: Path, progress: Callable[[int], Any]) -> None:
        file = (snapshot / name).resolve()
        target.unlink(missing_ok=True)
        try:
            place(file, target, "reflink")
        except OSError:
            place(file, target, "copy")
        progress(target.stat().st_size)

    # A copy of the files is no pointer any more.
    beside = {name: content for name, content in beside.items() if name != POINTER}
    return _Contents(
        shown, str(snapshot), described, fetch, manifest, beside, snapshot, snapshot=snapshot
    )


def _names(store: Store) -> set[str]:
    if store.local is not None:
        return {file.name for file in store.local.iterdir() if file.is_file()}
    return set(store.sizes())


def _tree(location: str) -> Iterator[tuple[str, StoredFile]]:
    """Every file of a model that has no manifest, those in folders too."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(location)
    folders: list[str | None] = [None]
    while folders:
        for entry in repository.list_artifacts(folders.pop()):
            path = posixpath.normpath(entry.path)
            if path.startswith(("/", "..")) or "\\" in path:
                raise ScalpelError(
                    f"{location}: lists {entry.path!r}, which leads out of the model; "
                    "it is not read"
                )
            if entry.is_dir:
                folders.append(path)
            else:
                yield path, _unchecked(int(entry.file_size or 0))


def _unchecked(size: int) -> StoredFile:
    """A file of which only the size is known (0 where not even that)."""
    return StoredFile(bytes=size, sha256="")


def _problem(file: Path, described: StoredFile) -> str | None:
    if described.sha256:
        return file_damage(file, described)
    size = file.stat().st_size
    if described.bytes and size != described.bytes:
        return f"has {size} bytes in place of {described.bytes}"
    return None


def _copy(contents: _Contents, dst: str | Path, progress: bool) -> Path:
    """The contents in a directory of the user's, which gets nothing that is in the way."""
    directory = Path(dst)
    for kept in filter(None, (contents.local, cache.directory())):
        if directory.resolve().is_relative_to(kept.resolve()):
            raise ScalpelError(
                f"{directory}: lies in {kept}, whose files are not to be changed; take a directory "
                "outside of it"
            )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScalpelError(f"{directory}: cannot be made: {error}; take another one") from error
    with _alone(directory):
        _refuse_foreign(contents, directory)
        _bring_all(contents, directory, progress)
        for name, content in contents.beside.items():
            with _told_of_failure(contents.shown, name, directory):
                part = directory / (name + PART)
                part.unlink(missing_ok=True)
                part.write_bytes(content)
                part.replace(directory / name)
    return directory


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let one process at a time fill a directory; the next finds it filled."""
    import fcntl

    lock = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Some network file systems lock no directories. There two pulls at once cost twice the
        # time; what they leave is checked all the same.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _refuse_foreign(contents: _Contents, directory: Path) -> None:
    """Raise ScalpelError where the directory holds a file that pull would replace or mix with."""
    for name, content in contents.beside.items():
        file = directory / name
        if file.is_symlink() or (file.exists() and file.read_bytes() != content):
            raise _in_the_way(file, "is of another checkpoint")
    for file in directory.iterdir():
        loaded = file.suffix == WEIGHTS or file.name in (INDEX, CONFIG, ADAPTER_CONFIG)
        if loaded and file.name not in contents.files:
            raise _in_the_way(file, "is no file of this checkpoint, and would be opened with it")
    there = [name for name in contents.files if os.path.lexists(directory / name)]

    def problem(name: str) -> str | None:
        file = directory / name
        if not file.resolve().is_relative_to(directory.resolve()):
            return "is a link that leads out of the directory"
        return _problem(file, contents.files[name])

    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        for name, found in zip(there, pool.map(problem, there), strict=True):
            if found is not None:
                raise _in_the_way(directory / name, found)


def _in_the_way(file: Path, why: str) -> ScalpelError:
    return ScalpelError(
        f"{file}: is there already, and {why}; pull replaces nothing of yours: move it away, or "
        "take another directory"
    )


class _Stopped(Exception):
    """Another file failed, so that this one is not needed."""


def _bring_all(contents: _Contents, directory: Path, progress: bool) -> None:
    """Bring the files that are not in the directory yet, several at a time."""
    todo = [name for name in contents.files if not _is_there(contents, directory, name)]
    _check_space(contents, directory, todo)
    stop, turn = threading.Event(), threading.Lock()
    with _bar(contents, progress) as bar, ThreadPoolExecutor(PARALLEL_FILES) as pool:
        bar.update(contents.bytes - sum(contents.files[name].bytes for name in todo))

        def advance(count: int) -> None:
            if stop.is_set():
                raise _Stopped
            with turn:
                bar.update(count)

        jobs = [pool.submit(_bring, contents, name, directory, advance) for name in todo]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _is_there(contents: _Contents, directory: Path, name: str) -> bool:
    """Whether a file that nobody refused is in place, and is a file of its own.

    (A checkpoint that was logged from this directory may share its files with the store.)
    """
    file = directory / name
    if not contents.files[name].sha256 or not file.is_file():
        return False
    return contents.local is None or not file.samefile(contents.local / name)


def _bring(contents: _Contents, name: str, directory: Path, advance: Callable[[int], Any]) -> None:
    """Bring one file under a name of its own, and give it its name when it is right."""
    described = contents.files[name]
    target = directory / name
    part = directory / (name + PART)
    target.parent.mkdir(parents=True, exist_ok=True)
    if part.is_symlink():
        part.unlink()
    begun = part.exists()
    with _told_of_failure(contents.shown, name, directory):
        if begun and described.bytes and part.stat().st_size == described.bytes:
            advance(described.bytes)
        else:
            contents.fetch(name, part, advance)
        problem = _problem(part, described)
        if problem is not None and begun:
            # What an earlier attempt left may be wrong, and the store right.
            part.unlink()
            advance(-described.bytes)
            contents.fetch(name, part, advance)
            problem = _problem(part, described)
    if problem is not None:
        part.unlink()
        raise contents.damaged(name, problem)
    if not described.sha256 and target.exists() and not filecmp.cmp(part, target, shallow=False):
        part.unlink()
        raise _in_the_way(target, "differs from the stored one")
    part.replace(target)


@contextmanager
def _told_of_failure(shown: str, name: str, directory: Path | None = None) -> Iterator[None]:
    """Turn what stores raise into an error that says what to do."""
    from requests.exceptions import RequestException

    try:
        yield
    except (MlflowException, RequestException, OSError) as error:
        if directory is not None and getattr(error, "errno", None) == errno.ENOSPC:
            free = shutil.disk_usage(directory).free
            raise ScalpelError(
                f"{directory}: the disk is full ({free} bytes free) in the middle of {name}; free "
                "some and run it again: it goes on where it stopped"
            ) from error
        raise ScalpelError(
            f"{shown}: {name} could not be fetched ({type(error).__name__}: {error}); run it "
            "again: it goes on where it stopped"
        ) from error


def _check_space(contents: _Contents, directory: Path, todo: list[str]) -> None:
    needed = 0
    for name in todo:
        part = directory / (name + PART)
        needed += contents.files[name].bytes - (part.stat().st_size if part.is_file() else 0)
    if todo and contents.local is not None and _shares_blocks(contents.local / todo[0], directory):
        return
    cache.check_space(directory, needed, contents.shown)


def _shares_blocks(file: Path, directory: Path) -> bool:
    """Whether the file system copies without taking space."""
    probe = directory / f".reflink{PART}"
    try:
        place(file, probe, "reflink")
    except (OSError, ScalpelError):
        return False
    probe.unlink()
    return True


@contextmanager
def _bar(contents: _Contents, shown: bool) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(
        total=contents.bytes,
        desc="pull",
        unit="B",
        unit_scale=True,
        disable=not shown,
    ) as bar:
        yield bar
