"""Brings a checkpoint's files to this machine, each checked, each byte once."""

from __future__ import annotations

import filecmp
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModel

from mlflow_scalpel.checkpoints.artifact_store import (
    PARALLEL_FILES,
    Store,
    place,
)
from mlflow_scalpel.checkpoints.atomic import locked
from mlflow_scalpel.checkpoints.external.layouts import model_in
from mlflow_scalpel.checkpoints.files import MANIFEST, POINTER, checkpoint_files
from mlflow_scalpel.checkpoints.manifest import read_manifest
from mlflow_scalpel.checkpoints.reading import cache
from mlflow_scalpel.checkpoints.reading.addresses import model_id_of, readable_model, store_of
from mlflow_scalpel.checkpoints.reading.download_plan import (
    DownloadPlan,
    cache_entry,
    cache_key,
    explain_failure,
    plan_of_model,
    problem_of,
)
from mlflow_scalpel.checkpoints.reading.formats import files_of, open_flavour, snapshot_of
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.documents import CONFIG
from mlflow_scalpel.tensors.files import ADAPTER_CONFIG, INDEX, WEIGHTS

PART = ".part"  # ends the name of a file that is not all there yet


def fetch_to_cache(
    model: LoggedModel, store: Store, *, check: bool = False, progress: bool = False
) -> Path:
    """The model's files in the cache, brought there and checked where they are not.

    What is there is checked by sizes, and by digests now and then (`cache_records.py`); a pointer's
    are in the hub's cache. Where `check` asks for it, the digests of all are compared now.
    """
    known = cache_entry(model, check=check)
    if known is not None:
        return known
    plan = plan_of_model(model, store)
    if plan.snapshot is not None:
        if check:
            plan.check_snapshot()
        return plan.snapshot

    def fill(partial: Path) -> None:
        for name, described in plan.files.items():  # of an attempt that was cut off
            left = partial / name
            if left.is_file() and problem_of(left, described) is not None:
                left.unlink()
        _bring_all(plan, partial, progress)
        if plan.manifest is not None:
            with explain_failure(plan.shown, MANIFEST, partial):
                plan.manifest.write(partial)
        cache.protect(partial)

    key = cache_key(plan.manifest.digest) if plan.manifest else model.model_id
    return cache.keep(key, plan.bytes, fill)


def copy_to(plan: DownloadPlan, dst: str | Path, progress: bool) -> Path:
    """Bring the files into a directory of the user's, in which nothing is replaced."""
    directory = Path(dst)
    for kept in filter(None, (plan.local, cache.directory())):
        if directory.resolve().is_relative_to(kept.resolve()):
            raise ScalpelError(
                f"{directory}: lies in {kept}, whose files are not to be changed; take a directory "
                "outside of it"
            )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScalpelError(f"{directory}: cannot be made: {error}; take another one") from error
    with locked(directory):
        _refuse_other_files(plan, directory)
        _bring_all(plan, directory, progress)
        for name, content in plan.beside.items():
            with explain_failure(plan.shown, name, directory):
                part = directory / (name + PART)
                part.unlink(missing_ok=True)
                part.write_bytes(content)
                part.replace(directory / name)
    return directory


def _refuse_other_files(plan: DownloadPlan, directory: Path) -> None:
    """Raise ScalpelError where the directory holds a file that pull would replace or mix with."""
    for name, content in plan.beside.items():
        file = directory / name
        if file.is_symlink() or (file.exists() and file.read_bytes() != content):
            raise _in_the_way(file, "is of another checkpoint")
    for file in directory.iterdir():
        loaded = file.suffix == WEIGHTS or file.name in (INDEX, CONFIG, ADAPTER_CONFIG)
        if loaded and file.name not in plan.files:
            raise _in_the_way(file, "is not a file of this checkpoint, and would be opened with it")
    there = [name for name in plan.files if os.path.lexists(directory / name)]

    def problem(name: str) -> str | None:
        file = directory / name
        if not file.resolve().is_relative_to(directory.resolve()):
            return "is a link that leads out of the directory"
        return problem_of(file, plan.files[name])

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


def _bring_all(plan: DownloadPlan, directory: Path, progress: bool) -> None:
    """Bring the files that are not in the directory yet, several at a time."""
    todo = [name for name in plan.files if not _is_there(plan, directory, name)]
    _check_space(plan, directory, todo)
    stop, turn = threading.Event(), threading.Lock()
    with _bar(plan, progress) as bar, ThreadPoolExecutor(PARALLEL_FILES) as pool:
        bar.update(plan.bytes - sum(plan.files[name].bytes for name in todo))

        def advance(count: int) -> None:
            if stop.is_set():
                raise _Stopped
            with turn:
                bar.update(count)

        jobs = [pool.submit(_bring, plan, name, directory, advance) for name in todo]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _is_there(plan: DownloadPlan, directory: Path, name: str) -> bool:
    """Whether a file that nobody refused is in place, and is a file of its own.

    (A checkpoint that was logged from this directory may share its files with the store.)
    """
    file = directory / name
    if not plan.files[name].sha256 or not file.is_file():
        return False
    return plan.local is None or not file.samefile(plan.local / name)


def _bring(plan: DownloadPlan, name: str, directory: Path, advance: Callable[[int], Any]) -> None:
    """Bring one file under a name of its own, and give it its name when it is right."""
    described = plan.files[name]
    target = directory / name
    part = directory / (name + PART)
    target.parent.mkdir(parents=True, exist_ok=True)
    if part.is_symlink():
        part.unlink()
    begun = part.exists()
    with explain_failure(plan.shown, name, directory):
        if begun and described.bytes and part.stat().st_size == described.bytes:
            advance(described.bytes)
        else:
            plan.fetch(name, part, advance)
        problem = problem_of(part, described)
        if problem is not None and begun:
            # What an earlier attempt left may be wrong, and the store right.
            part.unlink()
            advance(-described.bytes)
            plan.fetch(name, part, advance)
            problem = problem_of(part, described)
    if problem is not None:
        part.unlink()
        raise plan.damaged(name, problem)
    if not described.sha256 and target.exists() and not filecmp.cmp(part, target, shallow=False):
        part.unlink()
        raise _in_the_way(target, "differs from the stored one")
    part.replace(target)


def _check_space(plan: DownloadPlan, directory: Path, todo: list[str]) -> None:
    needed = 0
    for name in todo:
        part = directory / (name + PART)
        needed += plan.files[name].bytes - (part.stat().st_size if part.is_file() else 0)
    if todo and plan.local is not None and _shares_blocks(plan.local / todo[0], directory):
        return
    cache.check_space(directory, needed, plan.shown)


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
def _bar(plan: DownloadPlan, shown: bool) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(
        total=plan.bytes,
        desc="pull",
        unit="B",
        unit_scale=True,
        disable=not shown,
    ) as bar:
        yield bar


def stored_files(source: str) -> tuple[Path, LoggedModel | None]:
    """A local directory with the files of `source` as they are stored, and its LoggedModel.

    Takes what `model_id_of` does, a directory or GGUF file, a folder of a run's artifacts
    (`runs:/RUN/path`), or a hub name (`org/name`, `org/name@revision`). A local artifact store is
    read in place, a remote one through the cache. An adapter's are the adapter's alone, a GGUF
    file's those of its numbers.

    Raises ScalpelError where the model does not exist, is not READY, was pruned or is incomplete.
    """

    model_id = model_id_of(source)
    if model_id is None:
        directory = files_of(source)
        checkpoint_files(directory)
        return directory, None
    model = readable_model(model_id)
    store = store_of(model)
    directory = (
        fetch_to_cache(model, store) if store.local is None else _in_place(model, store.local)
    )
    pointer = directory / POINTER
    if pointer.is_file():
        directory = snapshot_of(pointer)
    elif not (directory / MANIFEST).is_file():  # MLflow itself stored it
        directory = model_in(open_flavour(directory))
    return directory, model


def _in_place(model: LoggedModel, directory: Path) -> Path:
    """The model's local store, all there by names and sizes; no file is read."""
    manifest = read_manifest(directory)
    pointed = (directory / POINTER).is_file()
    for name, described in manifest.files.items() if manifest and not pointed else ():
        file = directory / name
        if file.is_symlink():
            raise ScalpelError(f"{file}: is a link, and a stored file never is; it is not read")
        size = file.stat().st_size if file.is_file() else None
        if size != described.bytes:
            has = "is missing" if size is None else f"has {size} bytes, not {described.bytes}"
            raise ScalpelError(
                f"{file}: {has}: model {model.model_id} is damaged; put the file back from a "
                "copy, or log the checkpoint again"
            )
    return directory
