"""The files of a model that a user names, and those of the base that an adapter was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints.artifact_store import (
    Store,
)
from mlflow_scalpel.checkpoints.files import (
    MLMODEL,
    POINTER,
    checkpoint_files,
)
from mlflow_scalpel.checkpoints.manifest import content_digest
from mlflow_scalpel.checkpoints.models.merging import merge_adapter, rounding_report
from mlflow_scalpel.checkpoints.reading.addresses import model_id_of, readable_model, store_of
from mlflow_scalpel.checkpoints.reading.download import copy_to, fetch_to_cache, stored_files
from mlflow_scalpel.checkpoints.reading.download_plan import (
    plan_of_directory,
    plan_of_model,
)
from mlflow_scalpel.checkpoints.reading.formats import files_of
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.run_warnings import print_warning
from mlflow_scalpel.tensors.adapters import read_adapter_config, read_changes
from mlflow_scalpel.tensors.files import (
    ADAPTER_CONFIG,
    is_adapter,
)
from mlflow_scalpel.tensors.quantised import FloatTensors


def pull(
    source: str,
    dst: str | Path | None = None,
    *,
    merge: bool = False,
    dtype: str | None = None,
    progress: bool = False,
) -> Path:
    """The files of the checkpoint `source`, checked against its manifest; their directory.

    What is there and right is not fetched again, and a file that was cut off is resumed
    where the store can.

    Args:
        source: what `resolve` takes: models:/ or runs:/ URI, model ID, hub name or directory.
        dst: directory to put the files into. They are copies: what is done to them harms nobody.
            Without it they are in the cache (a hub model: in the hub's), which nobody may write to
            and which keeps them for as long as this process lives.
        merge: write an adapter as the complete model that it makes with its base, and print
            what rounding did to the norms of its updates.
        dtype: of the merged weights (float32, ...); that of the base's unless given.
        progress: show one bar, in bytes, on stderr.

    Raises:
        ScalpelError: there is no such model, it cannot be read, a stored file is damaged, the disk
            is full, or `dst` has a file that is not the checkpoint's; `dtype` without `merge`, or
            of a model that is not an adapter.
    """
    if dtype is not None and not merge:
        raise ScalpelError(f"dtype = {dtype}: only merging has one; give merge (--merge) too")
    if dst is not None and Path(dst).exists() and not Path(dst).is_dir():
        raise ScalpelError(f"{dst}: is not a directory; give one, or a name that is free")
    model_id = model_id_of(source)
    if model_id is None:
        directory = files_of(source)
        checkpoint_files(directory)
        if merge and is_adapter(directory):
            directory = merge_with_base(directory, dtype=dtype, report=True)
        elif dtype is not None:
            raise _not_an_adapter(source, dtype)
        if dst is None:
            return directory
        return copy_to(plan_of_directory(source, directory), dst, progress)
    model = readable_model(model_id)
    store = store_of(model)
    merged = _merged(model, store, dtype, progress) if merge else None
    if merged is None and dtype is not None:
        raise _not_an_adapter(source, dtype)
    if dst is None:
        return merged or fetch_to_cache(model, store, check=True, progress=progress)
    plan = plan_of_model(model, store) if merged is None else plan_of_directory(source, merged)
    return copy_to(plan, dst, progress)


def _not_an_adapter(source: str, dtype: str) -> ScalpelError:
    return ScalpelError(
        f"dtype = {dtype}: {source} is not an adapter, so that nothing is merged and its files are "
        "given as they are; leave dtype out"
    )


def _merged(model: LoggedModel, store: Store, dtype: str | None, progress: bool) -> Path | None:
    """The adapter merged with its base; None where the model is not an adapter."""
    names = store.sizes().keys()
    if not names & {ADAPTER_CONFIG, POINTER}:
        return None
    # An adapter that is here is read in place.
    local = store.local if POINTER not in names else None
    directory = local or fetch_to_cache(model, store, check=True, progress=progress)
    if not is_adapter(directory):
        return None
    return merge_with_base(directory, model, dtype=dtype, report=True)


def resolve(source: str) -> Path:
    """A local directory with the files of the model `source`, for reading only.

    Takes what `stored_files` does. An adapter gives the directory of its base with the adapter
    merged into it, in the base's dtype.

    Raises ScalpelError where the model does not exist, is not READY, was pruned or is incomplete.
    """
    directory, model = stored_files(source)
    return merge_with_base(directory, model) if is_adapter(directory) else directory


def merge_with_base(
    adapter: Path,
    model: LoggedModel | None = None,
    *,
    dtype: str | None = None,
    report: bool = False,
) -> Path:
    """A directory with the adapter merged into its base, for reading only.

    The base is what `base_of` finds. With `report`, prints what rounding did to the updates. Raises
    ScalpelError where the base cannot be had, or does not fit.
    """
    base = base_of(adapter, model)
    digest = model.params.get("digest") if model is not None else None
    merged = merge_adapter(
        adapter, base.directory, dtype=dtype, adapter_digest=digest, base_digest=base.digest
    )
    if report:
        print(rounding_report(adapter, base.directory, merged), flush=True)
    return merged


@dataclass(frozen=True)
class Base:
    """The model that an adapter was trained on."""

    directory: Path
    digest: str | None = None
    """Of its content, where it is known without reading it."""


def base_of(adapter: Path, model: LoggedModel | None = None, given: Base | None = None) -> Base:
    """The base of the adapter in a directory.

    It is the param `base` of the adapter's LoggedModel (`model`, or the one that the MLmodel beside
    the adapter names), else `base_model_name_or_path` of its configuration. Where neither can be
    had it is `given`, if that has the digest that the LoggedModel says, or, where none is known,
    tensors that the adapter fits; the latter with a warning.

    Raises ScalpelError where no base can be had.
    """
    model = model or _logged_model(adapter)
    logged = model.params.get("base") if model is not None else None
    expected = _params(logged).get("digest") if logged else None
    if given is not None and expected is not None and expected == given.digest:
        return given
    failures = []
    for source in dict.fromkeys(filter(None, (logged, _configured_base(adapter)))):
        try:
            if _is_same(source, adapter, model):
                raise ScalpelError("it is named as its own base")
            directory = resolve(source)
            if source != logged and expected and content_digest(directory) != expected:
                raise ScalpelError(f"{directory} holds another model than {logged}, its base")
        except ScalpelError as error:
            failures.append(f"{source}: {error}")
            continue
        return Base(directory, _known_digest(source))
    if given is not None and expected is None and _fits(adapter, given.directory):
        named = _configured_base(adapter) or "no base"
        print_warning(
            "adapter_base",
            f"{adapter}: names {named}, which cannot be had here, and its tensors fit "
            f"{given.directory}, which is taken for its base; if it was trained on another model, "
            "its updates are right, and what was computed with the base's weights is not",
        )
        return given
    raise ScalpelError(
        f"{adapter}: is an adapter, and its base cannot be had ("
        + ("; ".join(failures) or "neither its logged model nor its configuration names one")
        + f"); set base_model_name_or_path in {ADAPTER_CONFIG} to a directory, hub name or "
        "models:/ URI, or log the adapter with base=..."
    )


def _fits(adapter: Path, base: Path) -> bool:
    """Whether all that the adapter changes is there, in its shapes."""
    try:
        read_changes(adapter, FloatTensors(base))
    except ScalpelError:
        return False
    return True


def _is_same(source: str, adapter: Path, model: LoggedModel | None) -> bool:
    if model is not None and source in (model.model_id, model.model_uri):
        return True
    return Path(source).is_dir() and Path(source).resolve() == adapter.resolve()


def _known_digest(source: str) -> str | None:
    """Digest of what `resolve(source)` holds, where it need not be computed."""
    model_id = model_id_of(source)
    params = _params(model_id) if model_id is not None else {}
    return params.get("digest") if params.get("kind") in ("model", "pointer") else None


def _params(source: str) -> dict[str, str]:
    """Params of a LoggedModel; none where `source` is not a model that is known here."""
    try:
        model_id = model_id_of(source)
        if model_id is None:
            return {}
        return dict(MlflowClient().get_logged_model(model_id).params)
    except (MlflowException, ScalpelError):
        return {}


def _configured_base(adapter: Path) -> str | None:
    """The base that the adapter's own configuration names."""
    config = read_adapter_config(adapter)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not name:
        return None
    if revision and not Path(name).is_dir() and ":" not in name:
        return f"{name}@{revision}"
    return str(name)


def _logged_model(directory: Path) -> LoggedModel | None:
    """The LoggedModel that the MLmodel in a directory names; None where it is not known here."""
    path = directory / MLMODEL
    if not path.is_file():
        return None
    try:
        model_id = (yaml.safe_load(path.read_bytes()) or {}).get("model_id")
        return MlflowClient().get_logged_model(model_id) if model_id else None
    except (MlflowException, yaml.YAMLError, AttributeError):
        return None
