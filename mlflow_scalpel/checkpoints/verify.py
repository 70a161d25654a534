"""Checks stored checkpoints against their manifests."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints.artifact_store import Store, open_store
from mlflow_scalpel.checkpoints.files import KEPT, MANIFEST, MLMODEL, NOT_CONTENT, POINTER
from mlflow_scalpel.checkpoints.manifest import (
    Manifest,
    StoredFile,
    file_damage,
    parse_manifest,
    sha256,
    tensors_in,
)
from mlflow_scalpel.checkpoints.reading.addresses import model_id_of
from mlflow_scalpel.checkpoints.search import PRUNED_TAG, models_of_run, state_of, step_of
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.run_warnings import FAILURE_TAG
from mlflow_scalpel.server_errors import check_answered

COLUMNS = ["run_id", "step", "model_id", "result", "file", "problem", "remedy"]
BAD = ("damaged", "unreadable")
NOT_RIGHT = (*BAD, "failed", "pending")  # what nobody can use, for whatever reason
_OF_MLFLOW = ("registered_model_meta",)  # written beside a model when it is registered

Tick = Callable[[int], Any]


@dataclass(frozen=True)
class Finding:
    """One result for a stored checkpoint, or for one of its files."""

    result: str
    file: str | None = None
    problem: str | None = None
    remedy: str | None = None


def verify(*sources: str, progress: bool = False) -> pd.DataFrame:
    """Check what each source names; a run's ID (or `runs:/RUN`) names all of its checkpoints.

    Args:
        sources: run IDs, or what `model_id_of` understands (models:/ URIs, m-... IDs).
        progress: show a bar in bytes on stderr.

    Returns a table, a row per finding, at least one per checkpoint, with the columns `run_id`,
    `step`, `model_id`, `result`, `file`, `problem`, `remedy`. `result` is

    - `ok`: all is as it was logged. With a file and a problem it is something to know that changes
      nothing, such as a file that the manifest does not list and that nothing opens;
    - `damaged`: a file is missing, changed, a symbolic link, or one that the manifest does not list
      though opening the checkpoint might read it (a .json, a .safetensors ...);
    - `unreadable`: the store did not give a file, so nothing is known of it;
    - `unchecked`: there is nothing to check against, as in models that MLflow itself logged;
    - `pruned`, `pending`, `failed`: the checkpoint's state; its files are not checked.

    A local store is read in place. A remote one's files are fetched one at a time, so that the disk
    holds one file at most. A pointer to the hub is checked for its form, and against the manifest
    where its snapshot is in the hub's cache on this machine; nothing is downloaded from the hub.

    Raises ScalpelError for a source that names no run and no logged model.
    """
    models: dict[str, LoggedModel] = {}
    for source in sources:
        models |= {model.model_id: model for model in _models(source)}
    from tqdm import tqdm

    total = sum(_logged_bytes(model) for model in models.values())
    rows = []
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="verify", disable=not progress, file=sys.stderr
    ) as bar:
        for model in models.values():
            about = {
                "run_id": model.source_run_id,
                "step": step_of(model),
                "model_id": model.model_id,
            }
            rows += [about | vars(finding) for finding in findings(model, bar.update)]
    return pd.DataFrame(rows, columns=COLUMNS)


def findings(model: LoggedModel, tick: Tick = lambda count: None) -> list[Finding]:
    """The findings for one model, `ok` where nothing is wrong; `tick` gets counts of bytes read."""
    state = state_of(model)
    if state == "FAILED":
        reason = model.tags.get(FAILURE_TAG, "nobody logged why")
        return [Finding("failed", problem=reason, remedy="log the step again")]
    if state == "PENDING":
        remedy = "wait; if the process that logged it has died, start it again, or log it again"
        return [Finding("pending", problem="its upload has not ended", remedy=remedy)]
    store = open_store(model.artifact_location)
    try:
        if state == "PRUNED":
            return [_pruned(model, store)]
        found = list(_check(model, store, tick))
    except (MlflowException, OSError) as error:
        return [_unreadable(None, error)]
    return found if any(one.result != "ok" for one in found) else [*found, Finding("ok")]


def _models(source: str) -> list[LoggedModel]:
    run = re.fullmatch(r"(?:runs:/)?([0-9a-f]{32})/?", source)
    if run:
        base, found = models_of_run(run[1])
        return [base, *found] if base else found
    model_id = model_id_of(source)
    if model_id is None:
        raise ScalpelError(
            f"{source}: is neither a run nor a logged model; give a run ID, runs:/RUN, "
            "models:/NAME/VERSION or models:/m-..."
        )
    try:
        return [MlflowClient().get_logged_model(model_id)]
    except MlflowException as error:
        check_answered(error)
        raise ScalpelError(
            f"model {model_id}: there is no such logged model at {mlflow.get_tracking_uri()} "
            f"({error}); check the ID, and MLFLOW_TRACKING_URI"
        ) from error


def _check(model: LoggedModel, store: Store, tick: Tick) -> Iterator[Finding]:
    """The findings of a READY model; none where all is well."""
    sizes = store.sizes()
    remedy = _remedy(model)
    if not sizes:
        yield Finding("damaged", None, f"{model.artifact_location} holds no file", remedy)
        return
    kind = model.params.get("kind")
    if kind == "pointer" or (kind is None and POINTER in sizes):
        yield from _check_pointer(model, store, sizes, remedy)
        return
    if MANIFEST not in sizes:
        yield from _check_digest(model, store, sizes, tick)
        return
    manifest, problems = _read_manifest(model, store, remedy)
    yield from problems
    if manifest is None:
        return
    for name, described in manifest.files.items():
        problem = _file_problem(store, name, described, sizes)
        tick(described.bytes)
        if isinstance(problem, str):
            yield Finding("damaged", name, problem, remedy)
        elif problem is not None:
            yield _unreadable(name, problem)
    ours = {MANIFEST, MLMODEL, *_OF_MLFLOW}
    for name in sorted(set(sizes) - set(manifest.files) - ours):
        yield _extra(name, store)
    if MLMODEL not in sizes:
        yield Finding("ok", MLMODEL, "is missing, so that mlflow.pyfunc cannot load it", remedy)


def _file_problem(
    store: Store, name: str, described: StoredFile, sizes: dict[str, int]
) -> str | Exception | None:
    """The fault of a stored file; an exception where it could not be had."""
    if store.local is not None:
        return _damage(store.local / name, described)
    if name not in sizes:
        return "is missing"
    if sizes[name] not in (0, described.bytes):  # 0: the store does not say
        return f"has {sizes[name]} bytes in place of {described.bytes}"
    with tempfile.TemporaryDirectory(prefix="scalpel-verify-") as scratch:
        target = Path(scratch) / Path(name).name
        try:
            store.fetch(name, target)
        except (MlflowException, OSError) as error:
            return error
        return _damage(target, described)


def _damage(file: Path, described: StoredFile) -> str | None:
    """As `file_damage`, and whether the manifest describes the file's tensors as they are."""
    problem = file_damage(file, described)
    if problem is not None:
        return problem
    try:
        if tensors_in(file) != described.tensors:
            return f"is complete, but {MANIFEST} describes its tensors otherwise: it was changed"
    except ScalpelError as error:  # stored so, though its bytes are those that were logged
        return str(error)
    return None


def _check_digest(
    model: LoggedModel, store: Store, sizes: dict[str, int], tick: Tick
) -> Iterator[Finding]:
    """A model without a manifest: older ones carry at least a digest over all files."""
    logged = model.params.get("digest")
    if logged is None:
        problem = f"has no {MANIFEST}: it was not logged by mlflow-scalpel"
        remedy = "log it with mlflow_scalpel.log_checkpoint to have it checked"
        yield Finding("unchecked", MANIFEST, problem, remedy)
        return
    files = {}
    for name in sorted(set(sizes) - set(NOT_CONTENT)):
        if _is_link(store, name):
            yield _extra(name, store)
        elif name.endswith(KEPT):
            files[name] = StoredFile(bytes=sizes[name], sha256=_stored_sha256(store, name))
            tick(sizes[name])
    as_logged = Manifest(files=files).digest == logged
    if not as_logged:
        problem = f"{', '.join(files) or 'nothing'}: together are not what was logged"
        yield Finding("damaged", None, problem, _remedy(model))
    if {"kind", "bytes"} & set(model.params):  # logged with a manifest
        rest = "the other files are as logged" if as_logged else "and so cannot say what changed"
        yield Finding("damaged", MANIFEST, f"is missing; {rest}", _remedy(model))


def _stored_sha256(store: Store, name: str) -> str:
    if store.local is not None:
        return sha256(store.local / name)
    with tempfile.TemporaryDirectory(prefix="scalpel-verify-") as scratch:
        target = Path(scratch) / Path(name).name
        store.fetch(name, target)
        return sha256(target)


def _check_pointer(
    model: LoggedModel, store: Store, sizes: dict[str, int], remedy: str
) -> Iterator[Finding]:
    if POINTER not in sizes:
        yield Finding("damaged", POINTER, "is missing", remedy)
        return
    try:
        where = json.loads(_read(store, POINTER))
        repository, revision = where["repository"], where["revision"]
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository):
            raise ValueError(f"{repository!r} is not a repository")
        if not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise ValueError(f"{revision!r} is not a commit")
    except (ScalpelError, ValueError, KeyError, TypeError) as error:
        yield Finding("damaged", POINTER, f"is not a pointer to the hub ({error})", remedy)
        return
    manifest = None
    if MANIFEST in sizes:
        manifest, problems = _read_manifest(model, store, remedy)
        yield from problems
        if manifest is None:
            return
    elif {"kind", "bytes"} & set(model.params):
        yield Finding("damaged", MANIFEST, "is missing", remedy)
    yield from _check_snapshot(repository, revision, manifest)


def _check_snapshot(repository: str, revision: str, manifest: Manifest | None) -> Iterator[Finding]:
    """The hub cache's copy of what a pointer names, as far as it is there."""
    from huggingface_hub import try_to_load_from_cache

    for name, described in (manifest.files if manifest else {}).items():
        cached = try_to_load_from_cache(repository, name, revision=revision)
        if not isinstance(cached, str):
            problem = f"is not in the hub cache of this machine ({repository}), so was not checked"
            yield Finding("ok", name, problem)
            continue
        # The hub's cache keeps files as links into its blobs.
        problem_or_none = file_damage(Path(cached).resolve(), described)
        if problem_or_none is not None:
            remedy = f"delete {Path(cached).resolve()}, and it is downloaded anew when it is used"
            yield Finding("damaged", name, f"in the hub cache {problem_or_none}", remedy)


def _extra(name: str, store: Store) -> Finding:
    """A file that the manifest does not list: harmless only if nothing opens it."""
    where = f"{store.local / name}" if store.local is not None else f"{name} in the artifact store"
    if _is_link(store, name):
        return Finding("damaged", name, "is a link, and a stored file never is", f"delete {where}")
    if name.endswith(KEPT):
        problem = f"is not in {MANIFEST}, and opening the checkpoint might read it"
        return Finding("damaged", name, problem, f"delete {where}")
    return Finding("ok", name, f"is not in {MANIFEST}; nothing that opens the checkpoint reads it")


def _is_link(store: Store, name: str) -> bool:
    return store.local is not None and (store.local / name).is_symlink()


def _pruned(model: LoggedModel, store: Store) -> Finding:
    when = model.tags[PRUNED_TAG]
    left = set(store.sizes()) - set(NOT_CONTENT)
    if left:
        problem = f"was being pruned on {when}, and {', '.join(sorted(left))} is still there"
        return Finding("pruned", problem=problem, remedy="prune the run again to end it")
    return Finding("pruned", problem=f"its files were deleted on {when} to free their bytes")


def _unreadable(name: str | None, error: Exception) -> Finding:
    problem = f"could not be read ({type(error).__name__}: {error})"
    return Finding("unreadable", name, problem, "check the artifact store, then verify again")


def _remedy(model: LoggedModel) -> str:
    step = step_of(model)
    what = f"step {step}" if step else "the base"
    return f"log {what} again from the files that it was saved to, or take another checkpoint"


def _read_manifest(
    model: LoggedModel, store: Store, remedy: str
) -> tuple[Manifest | None, list[Finding]]:
    """The stored manifest, where it is one, and what is wrong with it."""
    try:
        manifest = parse_manifest(_read(store, MANIFEST), MANIFEST)
    except ScalpelError as error:
        return None, [Finding("damaged", MANIFEST, str(error), remedy)]
    logged = model.params.get("digest", manifest.digest)
    if logged == manifest.digest:
        return manifest, []
    problem = f"has the digest {manifest.digest[:19]}..., and {logged[:19]}... was logged"
    return manifest, [Finding("damaged", MANIFEST, problem, remedy)]


def _read(store: Store, name: str) -> bytes:
    """A small stored file."""
    with tempfile.TemporaryDirectory(prefix="scalpel-verify-") as scratch:
        target = Path(scratch) / Path(name).name
        store.fetch(name, target)
        return target.read_bytes()


def _logged_bytes(model: LoggedModel) -> int:
    size = model.params.get("bytes", "")
    return int(size) if size.isdecimal() and state_of(model) == "READY" else 0
