"""Puts single weights of a checkpoint back to what they are in its base: an ablation of an update.

Evaluation and views of the restored model, beside the checkpoint, show what that part of the update
was worth.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModel

from mlflow_scalpel.checkpoints.artifact_store import copy_out
from mlflow_scalpel.checkpoints.files import checkpoint_files, name_in
from mlflow_scalpel.checkpoints.logging.log import log_base, log_checkpoint
from mlflow_scalpel.checkpoints.reading.addresses import model_id_of
from mlflow_scalpel.checkpoints.reading.pull import resolve
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.links import DESCRIPTION_TAG, run_note
from mlflow_scalpel.tensors.files import FLOATS, TensorFiles
from mlflow_scalpel.tensors.names import counterparts, select
from mlflow_scalpel.tensors.sources import Source, read_source, sources

_KEPT_PARAMS = ("algorithm", "recipe", "learning_rate", "learning_rate_sum", "dtype", "max_steps")


@dataclass(frozen=True)
class Restoration:
    """A restored checkpoint on disk, and what it was made of."""

    directory: Path
    checkpoint: str
    base: str
    modules: str
    """Names of the modules that were put back; `all` for all of a layer."""
    layers: str
    """Numbers of their layers; `all` for all."""
    tensors: int
    elements: int
    """Elements of these tensors that the checkpoint had otherwise than the base."""

    def params(self) -> dict[str, str]:
        """The params of the LoggedModel that describe the restoration."""
        return {
            "restored_from": self.checkpoint,
            "restored_modules": self.modules,
            "restored_layers": self.layers,
            "restored_tensors": str(self.tensors),
            "restored_elements": str(self.elements),
        }


def restore(
    checkpoint: str,
    base: str,
    out: Path,
    *,
    modules: Sequence[str] | None = None,
    layers: str | None = None,
) -> Restoration:
    """Write the checkpoint to `out` with the chosen weights as they are in the base.

    Files are copied as they are, and the chosen tensors' bytes are then written over, one tensor at
    a time: all else is equal byte for byte. A base of another dtype is cast to the checkpoint's.

    Args:
        checkpoint, base: directory, hub name, or any URI of one model.
        out: directory to make; it must not exist.
        modules: names of modules within a layer, such as `q_proj`; None takes all of a layer.
        layers: such as "16-18" or "0-3,7", both ends included; None takes all.

    Raises:
        ScalpelError: nothing is chosen, a tensor is missing or has another shape, or `out`
            exists.
    """
    if modules is None and layers is None:
        raise ScalpelError("neither modules nor layers are given; name what is to be put back")
    if out.exists():
        raise ScalpelError(f"{out}: exists, and is not written over; give another directory")
    source = resolve(checkpoint)
    before, after = TensorFiles(resolve(base)), TensorFiles(source)
    chosen = select(after.headers, layers, modules)
    # All of it before the first copy: a refused checkpoint writes nothing. What is quantised has
    # tensors besides, and its error comes first.
    same = counterparts(after.headers, before.headers)
    _check_dtypes(before, after, {name: same[name] for name in chosen if name in same})
    of_base = sources(chosen, after, before)
    _check_dtypes(before, after, of_base)
    elements = 0
    with _written_completely(out) as directory:
        for file in checkpoint_files(source):
            copied = directory / name_in(source, file)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copy_out(file, copied)
            here = [name for name in chosen if after.headers[name].file == file]
            if not here:
                continue
            copied.chmod(0o644)  # a stored file may be read-only
            with copied.open("r+b") as stream:
                for name in sorted(here, key=lambda one: after.headers[one].begin):
                    wt = after.read(name)
                    w0 = read_source(before, of_base[name], wt)
                    elements += int((w0 != wt).sum())
                    stream.seek(after.headers[name].begin)
                    stream.write(w0.reshape(-1).view(torch.uint8).numpy().data)
    return Restoration(
        out,
        checkpoint,
        base,
        ",".join(modules) if modules else "all",
        layers or "all",
        len(chosen),
        elements,
    )


def log_restoration(restored: Restoration) -> LoggedModel:
    """Log a restored checkpoint as the LoggedModel of a run of its own, with its base as input.

    It stands at the checkpoint's step, and takes over what is known of the training.
    """
    model_id = model_id_of(restored.checkpoint)
    known: dict[str, Any] = {}
    if model_id is not None:
        known = dict(MlflowClient().get_logged_model(model_id).params)
    what = f"{restored.modules} of layers {restored.layers}"
    with mlflow.start_run(run_name=f"restore {what}") as run:
        note = run_note(run.info.run_id)
        mlflow.set_tags({"scalpel.stage": "restore", DESCRIPTION_TAG: note})
        if "algorithm" in known:
            mlflow.set_tag("scalpel.algorithm", known["algorithm"])
        mlflow.log_params({**restored.params(), "base_model": restored.base})
        upload = log_checkpoint(
            restored.directory,
            step=int(known.get("step", "0")),
            base=log_base(restored.base).model_id,
            run_id=run.info.run_id,
            name=f"restored-{restored.directory.name}",
            params={
                **{key: known[key] for key in _KEPT_PARAMS if key in known},
                **restored.params(),
            },
        )
        return upload.wait()


def _check_dtypes(before: TensorFiles, after: TensorFiles, of_base: Mapping[str, Source]) -> None:
    """Codes are not put between numbers; `of_base` says where each tensor is in the base."""
    for name, source in of_base.items():
        others = [source] if isinstance(source, str) else [its.tensor for _, its in source]
        for other in others:
            dtypes = before.headers[other].dtype, after.headers[name].dtype
            if dtypes[0] != dtypes[1] and not {*dtypes} <= {*FLOATS}:
                raise ScalpelError(
                    f"{after.directory}: its {name} is {dtypes[1]}, and the base's is {dtypes[0]}: "
                    "one of them is quantised, and its numbers mean nothing without their scales; "
                    "give both quantised in one way, or neither"
                )


@contextmanager
def _written_completely(out: Path) -> Iterator[Path]:
    """A directory that becomes `out` once all is written, and is removed where that fails."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial)
        raise
