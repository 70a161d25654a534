"""What the base of a PEFT adapter is, and where its files are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from mlflow_scalpel.checkpoints.layout import MLMODEL
from mlflow_scalpel.checkpoints.manifest import content_digest
from mlflow_scalpel.checkpoints.resolve import model_id_of, resolve
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.run_warnings import print_warning
from mlflow_scalpel.tensors.adapters import read_adapter_config, read_changes
from mlflow_scalpel.tensors.files import ADAPTER_CONFIG
from mlflow_scalpel.tensors.quantised import FloatTensors


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
    tensors that the adapter fits; the latter is said.

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
    """Params of a LoggedModel; none where `source` is no model that is known here."""
    try:
        model_id = model_id_of(source)
        if model_id is None:
            return {}
        return dict(MlflowClient().get_logged_model(model_id).params)
    except (MlflowException, ScalpelError):
        return {}


def _configured_base(adapter: Path) -> str | None:
    """What the adapter's own configuration calls its base."""
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
