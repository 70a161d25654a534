"""Which files of a checkpoint directory are the checkpoint, and the digest of their content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mlflow_scalpel.errors import ScalpelError

# Everything that Transformers needs to open a model and its tokenizer. What is not listed stays
# behind: optimizer, scheduler and RNG state, and training_args.bin are pickles, and larger than the
# weights.
KEPT = (".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".md")
LEFT_OUT = ("trainer_state.json",)
POINTER = "pointer.json"


def checkpoint_files(directory: Path) -> list[Path]:
    """The files that make up the checkpoint in `directory`, sorted by name.

    Raises ScalpelError where there are no safetensors weights or no config.
    """
    if not directory.is_dir():
        raise ScalpelError(f"{directory}: there is no such directory; give a checkpoint's")
    files = sorted(
        file
        for file in directory.iterdir()
        if file.is_file() and file.suffix in KEPT and file.name not in LEFT_OUT
    )
    if not any(file.suffix == ".safetensors" for file in files):
        pickles = sorted(file.name for file in directory.glob("*.bin"))
        found = f" ({', '.join(pickles)} is a pickle, which is never opened)" if pickles else ""
        raise ScalpelError(
            f"{directory}: holds no .safetensors file{found}; "
            "save the model with save_pretrained(..., safe_serialization=True)"
        )
    if not (directory / "config.json").is_file():
        raise ScalpelError(f"{directory}: holds no config.json; save it beside the weights")
    return files


def content_digest(directory: Path) -> str:
    """SHA-256 over names and content of the checkpoint's files, as "sha256:<64 hex digits>"."""
    whole = hashlib.sha256()
    for file in checkpoint_files(directory):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(f"{digest}  {file.name}\n".encode())
    return f"sha256:{whole.hexdigest()}"
