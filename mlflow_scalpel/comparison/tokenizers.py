"""Whether a checkpoint means by token IDs what its base means by them.

Texts are tokenized once, with the base's tokenizer; what a model of other tokens says of them would
be a number without a meaning.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlflow_scalpel.checkpoints.models.opening import one_line
from mlflow_scalpel.errors import ScalpelError


def other_tokenizer(base: Path, checkpoint: Path, texts: Iterable[str] = ()) -> str | None:
    """Why the checkpoint's tokens are not the base's, or None; one that has no tokenizer is fine.

    Tokens that were added to the base's are fine too, as long as they are in none of `texts`.
    Raises ScalpelError where its tokenizer cannot be loaded.
    """
    both = _tokenizers(base, checkpoint)
    if both is None:
        return None
    ours, theirs = (one.get_vocab() for one in both)
    differing = sorted(token for token in ours if theirs.get(token) != ours[token])
    if differing:
        return (
            f"{checkpoint}: its tokenizer is not the base's ({len(theirs)} tokens against "
            f"{len(ours)}; {len(differing)} differ, the first is {differing[0]!r}), so that it "
            "means something else by the base's token IDs; compare models of one tokenizer"
        )
    for text in dict.fromkeys(texts):
        ids = [one.encode(text, add_special_tokens=False) for one in both]
        if ids[0] != ids[1]:
            return (
                f"{checkpoint}: its tokenizer makes {len(ids[1])} tokens of the text {text[:60]!r} "
                f"and the base's {len(ids[0])}, other ones; compare them on texts that both read "
                "alike"
            )
    return None


def added_tokens(base: Path, checkpoint: Path) -> list[str]:
    """Tokens of the checkpoint's tokenizer that are text (not special) and that the base lacks."""
    both = _tokenizers(base, checkpoint)
    if both is None:
        return []
    ours, special = both[0].get_vocab(), set(both[1].all_special_tokens)
    special |= {str(one) for one in both[1].added_tokens_decoder.values() if one.special}
    return sorted(token for token in both[1].get_vocab() if token not in {*ours, *special})


def _tokenizers(base: Path, checkpoint: Path) -> tuple[Any, Any] | None:
    """Both tokenizers; None where they are the same, or the checkpoint has none."""
    from transformers import AutoTokenizer

    if not (checkpoint / "tokenizer_config.json").is_file():
        return None
    first, second = base / "tokenizer.json", checkpoint / "tokenizer.json"
    if first.is_file() and second.is_file() and first.read_bytes() == second.read_bytes():
        return None
    ours = AutoTokenizer.from_pretrained(base, trust_remote_code=False, local_files_only=True)
    try:
        return ours, AutoTokenizer.from_pretrained(
            checkpoint, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # tokenizers raises it bare; told in the row
        raise ScalpelError(
            f"{checkpoint}: its tokenizer cannot be loaded ({one_line(error)}); "
            "copy the base's tokenizer files into it"
        ) from error
