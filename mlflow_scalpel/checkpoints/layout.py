"""Which files of a checkpoint directory are the checkpoint, and whether they are whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mlflow_scalpel.errors import ScalpelError

WEIGHTS = ".safetensors"
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
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Files of ours and of MLflow beside the checkpoint's own in a LoggedModel.
MANIFEST = "manifest.json"
POINTER = "pointer.json"
MLMODEL = "MLmodel"
NOT_CONTENT = (MANIFEST, POINTER, MLMODEL)

# What marks a LoggedModel as one of ours, and what its tags say.
MODEL_TYPE = "checkpoint"
FAILURE_TAG = "scalpel.failure"  # why it is FAILED
PRUNED_TAG = "scalpel.pruned"  # when its bytes were freed (ISO time)

_SHARD = re.compile(r".*-(\d+)-of-(\d+)\.safetensors$")
STEP_DIRECTORY = re.compile(r"^(?:checkpoint|step|global_step)[-_]?(\d+)$")


def is_adapter(directory: Path) -> bool:
    """Whether the directory holds a PEFT adapter (such as LoRA) and not a whole model."""
    return (directory / ADAPTER_CONFIG).is_file()


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
    if not any(file.suffix == WEIGHTS for file in files):
        pickles = sorted(file.name for file in directory.glob("*.bin"))
        found = f" ({', '.join(pickles)} is a pickle, which is never opened)" if pickles else ""
        raise ScalpelError(
            f"{directory}: holds no .safetensors file{found}; "
            "save the model with save_pretrained(..., safe_serialization=True)"
        )
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
    files = {file.name: file for file in checkpoint_files(directory)}
    index = directory / INDEX
    if index.is_file():
        for shard, names in _shards(index).items():
            if Path(shard).name != shard:
                raise ScalpelError(
                    f"{index}: names the shard {shard!r}, which is no plain file name; "
                    "it leads out of the checkpoint, and is not followed"
                )
            if shard not in files:
                raise ScalpelError(
                    f"{directory / shard}: is missing, and {INDEX} says that it holds "
                    f"{len(names)} tensors; copy it there, or save the checkpoint again"
                )
            lacking = sorted(names - set(tensor_headers(files[shard])[0]))
            if lacking:
                raise ScalpelError(
                    f"{files[shard]}: lacks the tensor {lacking[0]}, which {INDEX} places there; "
                    "save the checkpoint again"
                )
    else:
        _check_numbered(directory, list(files))
    for file in files.values():
        if file.suffix == WEIGHTS:
            tensor_headers(file)


def _check_numbered(directory: Path, names: list[str]) -> None:
    """Raise ScalpelError where there are shards and no index, which is written after all of them.

    Without it nobody can tell whether the last shards are missing, or open the model.
    """
    weights = [name for name in names if name.endswith(WEIGHTS)]
    shards = [match for name in weights if (match := _SHARD.match(name))]
    if not shards or len(shards) < len(weights):  # one whole file among them, which is what is read
        return
    there = {int(match[1]) for match in shards}
    count = max(int(match[2]) for match in shards)
    found = f"{len(there)} of {count} shards" if len(there) < count else "all shards"
    raise ScalpelError(
        f"{directory / INDEX}: is missing, beside {found}: the save was cut off, or still goes on; "
        "save or copy the checkpoint again"
    )


def _shards(index: Path) -> dict[str, set[str]]:
    """Names of the tensors of each shard, as the index says."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError) as error:
        raise ScalpelError(
            f"{index}: is no readable index ({error}); save the checkpoint again"
        ) from error
    shards: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        shards.setdefault(shard, set()).add(tensor)
    return shards


def tensor_headers(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Name -> {dtype, shape, data_offsets} of a safetensors file's tensors, and where data begins.

    Raises ScalpelError where the header cannot be read, or the file is shorter or longer than it
    says.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            if not 0 < length <= size - 8:
                raise ValueError(f"its header would have {length} bytes of {size}")
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ScalpelError(
                f"{file}: is no whole safetensors file ({error}); save the checkpoint again"
            ) from error
    if size != 8 + length + end:
        raise ScalpelError(
            f"{file}: has {size} bytes, and its header speaks of {8 + length + end}: it is cut "
            "off or still being written; save or copy it again"
        )
    return dict(header), 8 + length
