"""How a checkpoint's tensors differ from those of its base: notes, a warning, or a refusal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mlflow import MlflowClient

from mlflow_scalpel.checkpoints.differences import Differences, differences, some
from mlflow_scalpel.checkpoints.expected import expected_shapes, ties_head
from mlflow_scalpel.checkpoints.manifest import Manifest
from mlflow_scalpel.checkpoints.spool import CheckpointEntry
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.run_warnings import print_warning, warning_tag
from mlflow_scalpel.tensors.names import canonical


def compare_with_base(
    client: MlflowClient,
    manifest: Manifest,
    base: Manifest | None,
    entry: CheckpointEntry,
    directory: Path,
    run_id: str,
) -> list[str]:
    """How the checkpoint differs from its base, for a note; raises ScalpelError if in all.

    Weights of the base that are missing without a reason are warned of on the run; where the
    checkpoint's own configuration asks for them, it is not whole.
    """
    if base is None or not base.tensors:
        return []
    found = differences(base.tensors, manifest.tensors)
    if found.foreign is not None:
        raise ScalpelError(
            f"{entry.source}: shares no weights with the base {entry.base}: {found.foreign}; give "
            "the model that this training began with as the base, or none: then it is stored, and "
            "compared with what you name"
        )
    if found.heads and not ties_head(directory):
        found = replace(found, missing=(*found.missing, *found.heads))
    if found.missing or found.reshaped:
        _check_own_configuration(found, manifest, entry, directory)
    if not found.missing:
        return list(found.notes)
    what = (
        f"{len(found.missing)} of the base's {len(base.tensors)} tensors are missing "
        f"({some(found.missing)})"
    )
    message = (
        f"step {entry.step}: {what}; if the save was cut off, log the whole model again: what is "
        "missing is measured nowhere"
    )
    print_warning("checkpoint_incomplete", message, run_id)
    for key, value in warning_tag("checkpoint_incomplete", message).items():
        client.set_tag(run_id, key, value)
    return [*found.notes, what]


def _check_own_configuration(
    found: Differences, manifest: Manifest, entry: CheckpointEntry, directory: Path
) -> None:
    """Raise ScalpelError where the checkpoint's config.json asks for what its files do not hold.

    Transformers would fill it with random values, or refuse the model.
    """
    wanted = expected_shapes(directory)
    if wanted is None:
        return
    stored = {canonical(name): tensor.shape for name, tensor in manifest.tensors.items()}
    for name in found.missing:
        if canonical(name) in wanted:
            raise ScalpelError(
                f"{entry.source}: tensor {name} of the base is missing, and the checkpoint's own "
                "config.json asks for it, so that it is not whole; save it again, all of it"
            )
    for name in found.reshaped:
        shape = wanted.get(canonical(name))
        if shape is not None and shape != stored[canonical(name)]:
            raise ScalpelError(
                f"{entry.source}: tensor {name} has shape {stored[canonical(name)]}, and the "
                f"checkpoint's own config.json asks for {shape}; save weights and config together"
            )
