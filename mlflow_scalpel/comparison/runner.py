"""Shared by the groups that run texts: runners, rows of what failed, tokenizers, progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_scalpel.checkpoints.models.opening import CannotOpen, Failed, one_line, one_line_errors
from mlflow_scalpel.comparison.forward.probes import Probe
from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.comparison.table import metric_cells
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.registry import Metric

if TYPE_CHECKING:
    from mlflow_scalpel.checkpoints.models.swapping import SwappableModel

MERGE_DTYPE = "float32"  # an adapter is merged in it; the forward rounds to its own dtype


Progress = Callable[[int], object]
"""Called with a number of texts, or of bytes, each time so many more are done."""


class UnsupportedModel(ScalpelError):
    """The base is of a family that a group cannot run; the message says why."""


class Runner(Protocol):
    """Measures one group of metrics by running texts through its model."""

    probes: list[Probe]

    def rows(
        self, metrics: Sequence[Metric], progress: Progress | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows of each metric on each probe, of the checkpoint whose weights `model` has."""
        ...


def load_or_refuse(
    model: SwappableModel, measured: MeasuredModel, group: str, probes: Iterable[Probe]
) -> tuple[str, str] | None:
    """Make the model the checkpoint; status and reason where it cannot be run like the base."""
    texts = (text for probe in probes for pair in probe.pairs for text in pair)
    try:
        with one_line_errors():
            checkpoint = measured.complete(MERGE_DTYPE)
            reason = other_tokenizer(model.base, checkpoint, texts)
    except ScalpelError as error:
        return "not readable", f"{group}: {error}"
    if reason is not None:
        return "refused", f"{group}: {reason}"
    try:
        with one_line_errors():
            model.load_checkpoint(checkpoint)
    except CannotOpen as error:
        return "not comparable", f"{group}: {error}"
    except ScalpelError as error:
        return why_not(error, group)
    return None


def why_not(error: ScalpelError, group: str) -> tuple[str, str]:
    """Status and reason of a group that an error kept from being measured.

    Models, their files and memory fail in many ways; what fails is a row, and the rest is measured.
    """
    reason = str(error) if str(error).startswith(group) else f"{group}: {error}"
    if isinstance(error, UnsupportedModel | CannotOpen):
        return "not supported", reason
    return "not measured" if isinstance(error, Failed) else "not comparable", reason


def failed_rows(
    metrics: Sequence[Metric], probes: Sequence[Probe], dtype: str, status: str, reason: str
) -> list[dict[str, Any]]:
    """A row without a value for each metric and probe, with its reason."""
    return [
        {**place(one, probe, dtype), "status": status, "reason": reason}
        for probe in probes
        for one in metrics
    ]


def place(one: Metric, probe: Probe, dtype: str) -> dict[str, Any]:
    """The cells by which a row names its metric and texts."""
    return {**metric_cells(one), "dtype": dtype, "texts": probe.texts}


def other_tokenizer(base: Path, checkpoint: Path, texts: Iterable[str] = ()) -> str | None:
    """Why the checkpoint's tokens are not the base's, or None; one that has no tokenizer is fine.

    Texts are tokenized once, with the base's tokenizer; of a model with other tokens they would
    give a number without a meaning.

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
    """Tokens of the checkpoint's tokenizer, special ones aside, that are missing in the base's."""
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
    except Exception as error:  # tokenizers raises it bare; the row has it
        raise ScalpelError(
            f"{checkpoint}: its tokenizer cannot be loaded ({one_line(error)}); "
            "copy the base's tokenizer files into it"
        ) from error


@dataclass(frozen=True)
class Bars:
    """Opens progress bars, or none where none are wanted."""

    shown: bool

    @contextmanager
    def open(self, what: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        """A bar over `total` units; yields what is called with each number of units done."""
        from tqdm import tqdm

        # None: only where standard error is a terminal.
        disable = None if self.shown else True
        with tqdm(
            total=total, unit=unit, unit_scale=unit == "B", desc=what, disable=disable
        ) as bar:
            yield bar.update
