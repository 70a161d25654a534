"""Puts single weights of a checkpoint back to what they are in its base: an ablation of an update.

What evaluation and views then say of the restored model, beside the checkpoint, is what that part
of the update was worth.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from safetensors import safe_open

from mlflow_scalpel.checkpoints.layout import WEIGHTS, checkpoint_files, tensor_headers
from mlflow_scalpel.checkpoints.log import log_base, log_checkpoint
from mlflow_scalpel.checkpoints.resolve import model_id_of, resolve
from mlflow_scalpel.checkpoints.selection import select
from mlflow_scalpel.checkpoints.stores import copy_out
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.links import DESCRIPTION_TAG, run_note

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
        """What was restored, for the params of the LoggedModel."""
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
    a time: all else stays equal byte for byte. A base of another dtype is cast to the checkpoint's.

    Args:
        checkpoint, base: directory, hub name, or any URI of one model.
        out: directory to make; it must not exist.
        modules: names of modules within a layer, such as `q_proj`; None takes all of a layer.
        layers: such as "16-18" or "0-3,7", both ends included; None takes all.

    Raises:
        ScalpelError: nothing is chosen, the models lack a tensor or differ in a shape, or `out`
            exists.
    """
    if modules is None and layers is None:
        raise ScalpelError("neither modules nor layers are given; name what is to be put back")
    if out.exists():
        raise ScalpelError(f"{out}: exists, and is not written over; give another directory")
    source, before = resolve(checkpoint), _Tensors(resolve(base))
    files = checkpoint_files(source)
    headers = {file: tensor_headers(file) for file in files if file.suffix == WEIGHTS}
    chosen = set(
        select((name for tensors, _ in headers.values() for name in tensors), layers, modules)
    )
    after = _Tensors(source)
    _check(before, after, chosen)
    elements = 0
    with _whole(out) as directory:
        for file in files:
            copy_out(file, directory / file.name)
            tensors, data = headers.get(file, ({}, 0))
            here = chosen & tensors.keys()
            if not here:
                continue
            (directory / file.name).chmod(0o644)  # a stored file may be read-only
            with (directory / file.name).open("r+b") as stream:
                for name in sorted(here, key=lambda one: tensors[one]["data_offsets"][0]):
                    wt = after.read(name)
                    w0 = before.read(name).to(wt.dtype).contiguous()
                    elements += int((w0 != wt).sum())
                    stream.seek(data + tensors[name]["data_offsets"][0])
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
        delivery = log_checkpoint(
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
        return delivery.wait()


class _Tensors:
    """The tensors of a checkpoint by name, read one at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = {}
        for file in sorted(directory.glob(f"*{WEIGHTS}")):
            handle = safe_open(file, framework="pt")
            self._files.update(dict.fromkeys(handle.keys(), handle))

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def read(self, name: str) -> torch.Tensor:
        return self._files[name].get_tensor(name)


def _check(before: _Tensors, after: _Tensors, names: set[str]) -> None:
    """All names and shapes before the first copy: a refused checkpoint writes nothing."""
    for name in sorted(names):
        if name not in before:
            raise ScalpelError(
                f"{before.directory}: has no tensor {name}, which {after.directory} has; "
                "give the base that training began with"
            )
        if before.shape(name) != after.shape(name):
            raise ScalpelError(
                f"{before.directory}: its {name} has shape {before.shape(name)}, and the "
                f"checkpoint's has {after.shape(name)}; give the base that training began with"
            )


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
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
