"""Which files of a checkpoint directory are the checkpoint, and whether they are whole."""

from __future__ import annotations

from pathlib import Path

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.files import WEIGHTS, TensorFiles, is_adapter, weight_files

# Everything that Transformers and PEFT need to open a model and its tokenizer.
KEPT = (WEIGHTS, ".json", ".jinja", ".txt", ".model", ".tiktoken", ".md")
# What else a trainer leaves there: larger than the weights, and pickles but for the first. It stays
# behind unless asked for.
TRAINER_STATE = (
    "trainer_state.json",
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "training_args.bin",
)
CONFIG = "config.json"

# Files of ours and of MLflow beside the checkpoint's own in a LoggedModel.
MANIFEST = "manifest.json"
POINTER = "pointer.json"
MLMODEL = "MLmodel"
NOT_CONTENT = (MANIFEST, POINTER, MLMODEL)

# What marks a LoggedModel as one of ours, and what its tags say.
MODEL_TYPE = "checkpoint"
FAILURE_TAG = "scalpel.failure"  # why it is FAILED
PRUNED_TAG = "scalpel.pruned"  # when its bytes were freed (ISO time)


def checkpoint_files(directory: Path, *, trainer_state: bool = False) -> list[Path]:
    """The files that make up the checkpoint in `directory`, sorted by name.

    With `trainer_state` also what only resuming needs. Raises ScalpelError where there are no
    safetensors weights or no config, or where a file is a link out of the directory.
    """
    if not directory.is_dir():
        raise ScalpelError(f"{directory}: there is no such directory; give a checkpoint's")
    left_out = {file for pattern in TRAINER_STATE for file in directory.glob(pattern)}
    files = sorted(
        file
        for file in directory.iterdir()
        if file.is_file() and file.name not in NOT_CONTENT and file.suffix in KEPT
        if file not in left_out
    )
    weights = weight_files(directory)
    files = [file for file in files if file.suffix != WEIGHTS or file in weights]
    if not is_adapter(directory) and not (directory / CONFIG).is_file():
        raise ScalpelError(f"{directory}: holds no {CONFIG}; save it beside the weights")
    if trainer_state:
        files = sorted([*files, *left_out])
    for file in files:
        _refuse_foreign_link(file)
    return files


def _refuse_foreign_link(file: Path) -> None:
    if not file.is_symlink():
        return
    target = file.resolve()
    # The hub's cache keeps a snapshot as links into the blobs of the same repository.
    homes = (file.parent.resolve(), file.parent.resolve().parents[1] / "blobs")
    if not any(target.is_relative_to(home) for home in homes):
        raise ScalpelError(
            f"{file}: is a link to {target}, outside of the checkpoint; put the file itself there"
        )


def check_whole(directory: Path) -> None:
    """Raise ScalpelError that names the file where the checkpoint's weights are not all there.

    Compares the header of every safetensors file with the file's size, and the index with the
    shards; no tensor is read.
    """
    checkpoint_files(directory)
    TensorFiles(directory)
