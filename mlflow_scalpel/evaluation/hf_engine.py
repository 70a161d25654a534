"""The suite's model in Transformers: lm-eval's Hugging Face model, with another loop over batches.

lm-eval adds the end-of-turn token to the stop strings of every task, decodes the whole batch for
each of them at every step, several times the cost of a small model, and goes on until the last row
holds the same one. Here stop tokens are left to `generate`, only other stop strings are searched
for, and each row ends by itself.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from mlflow_scalpel.chat import context_of, load_tokenizer
from mlflow_scalpel.checkpoints.models.opening import CannotOpen
from mlflow_scalpel.checkpoints.models.swapping import SwappableModel
from mlflow_scalpel.comparison.runner import added_tokens, other_tokenizer
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.evaluation.suite_lm import SuiteLM, end_tokens_of


class BatchedLM(HFLM, SuiteLM):
    """A transformers model that is already there, and the checkpoints that are put into its place.

    A batch of other size or other neighbours gives other samples for the same seed.
    """

    def __init__(
        self, swapped: SwappableModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int
    ) -> None:
        super().__init__(
            pretrained=swapped.model, backend="causal", tokenizer=tokenizer, batch_size=batch_size
        )
        self._swapped = swapped
        self.lengths = {}
        self.crowded = set()
        self.announce("a model", {})
        self.end_tokens = end_tokens_of(swapped.model.generation_config, self.tokenizer)
        self._take(swapped.model)

    @property
    def scored_length(self) -> int:
        return self.max_length

    def load_weights(self, directory: Path) -> None:
        self._swapped.load_checkpoint(directory)
        self._take(self._swapped.model)
        with torch.inference_mode():
            some = torch.tensor([[self.end_tokens[0] if self.end_tokens else 0]])  # (1, T)
            logits = self.model(input_ids=some.to(self.device)).logits  # (1, T, V)
        if torch.isnan(logits).any():
            raise ScalpelError(
                f"{directory}: its logits are NaN, so that it says nothing; weights of it are NaN "
                "or overflow: `mlflow-scalpel compare` names them"
            )

    def _take(self, model: PreTrainedModel) -> None:
        """Ask this model, which ends its completions as the base does."""
        self._model, self._config = model, model.config
        self._max_length = context_of(model.config)
        model.generation_config = GenerationConfig(
            eos_token_id=self.end_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            bos_token_id=self.tokenizer.bos_token_id,
        )

    @torch.no_grad()
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """A completion for each request, in their order; requests of equal settings share batches.

        Raises ScalpelError for a prompt that fills the model's context. Where a prompt leaves less
        room than the task's token limit, its batch ends at the context's end.
        """
        tokens = self._tokenize([request.args[0] for request in requests])
        batches: list[list[int]] = []
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        for members in groups.values():
            members.sort(key=lambda number: (-len(tokens[number]), number))
            size = int(self.batch_size)
            batches += [members[start : start + size] for start in range(0, len(members), size)]

        texts = [""] * len(requests)
        lengths = [(0, False)] * len(requests)
        with self.bar(total=len(requests), disable=disable_tqdm, mininterval=2) as bar:
            for batch in batches:
                settings = dict(requests[batch[0]].args[1])
                if self.max_length - len(tokens[batch[0]]) < settings["max_gen_toks"]:
                    self.crowded |= {id(requests[number]) for number in batch}
                made = self._generate_batch([tokens[number] for number in batch], settings)
                for number, (text, length) in zip(batch, made, strict=True):
                    texts[number], lengths[number] = text, length
                bar.update(len(batch))
        for request, length in zip(requests, lengths, strict=True):
            self.lengths.setdefault(id(request), []).append(length)
        return texts

    def _generate_batch(
        self, prompts: list[list[int]], settings: dict[str, Any]
    ) -> list[tuple[str, tuple[int, bool]]]:
        stops = list(settings.pop("until", None) or [])
        limit = settings.pop("max_gen_toks")
        longest = len(prompts[0])  # sorted so
        room = self.max_length - longest
        pad = self.tokenizer.pad_token_id
        inputs = torch.full((len(prompts), longest), pad)  # (B, T), padded on the left
        mask = torch.zeros_like(inputs)
        for place, prompt in enumerate(prompts):
            inputs[place, longest - len(prompt) :] = torch.tensor(prompt)
            mask[place, longest - len(prompt) :] = 1

        ends, searched = self._split_stops(stops)
        extra = {}
        if searched:
            criteria = StopStrings(self.tokenizer, searched, longest)
            extra["stopping_criteria"] = StoppingCriteriaList([criteria])
        output = self.model.generate(
            input_ids=inputs.to(self.device),
            attention_mask=mask.to(self.device),
            max_new_tokens=min(limit, room),
            eos_token_id=ends,
            pad_token_id=pad,
            **settings,
            **extra,
        )
        rows = [self._until_end(row, ends) for row in output[:, longest:].tolist()]
        texts = self.tokenizer.batch_decode([row for row, _ in rows], skip_special_tokens=True)
        made = []
        for (row, ended), text in zip(rows, texts, strict=True):
            kept = postprocess_generated_text(text, searched, None)
            if kept != text:
                ended = True
                while row and row[-1] == pad:  # what follows a stop string
                    row = row[:-1]
            made.append((kept, (len(row), ended)))
        return made

    @staticmethod
    def _until_end(row: list[int], ends: list[int]) -> tuple[list[int], bool]:
        """The new tokens up to and with the first end token, and whether there is one."""
        for place, token in enumerate(row):
            if token in ends:
                return row[: place + 1], True
        return row, False


class StopStrings(StoppingCriteria):
    """Ends each row of a batch whose new text holds one of some strings."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, strings: list[str], prompt_length: int
    ) -> None:
        self.tokenizer = tokenizer
        self.strings = strings
        self.prompt_length = prompt_length
        # Two more tokens than the longest string has: it may come in other tokens than its own.
        self.window = 2 + max(
            len(tokenizer.encode(string, add_special_tokens=False)) for string in strings
        )

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """For each row of `input_ids` (B, T) whether it is done, (B,)."""
        tail = input_ids[:, self.prompt_length :][:, -self.window :]
        texts = self.tokenizer.batch_decode(tail)
        done = [any(string in text for string in self.strings) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def open_tokenizer(model: str, template_date: date) -> Any:
    """The tokenizer of a directory or hub name, whose template writes that date.

    Raises ScalpelError where it cannot be had.
    """
    try:
        return load_tokenizer(model, template_date, local_files_only=Path(model).is_dir())
    except (OSError, ValueError) as error:
        raise _not_loaded(model, error) from error


def open_model(model: Path, dtype: str, device: str | None) -> SwappableModel:
    """The model of a directory on a device, by default a GPU where there is one.

    Raises ScalpelError where it cannot be had.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return SwappableModel(model, dtype=dtype, device=device)
    except CannotOpen as error:
        raise _not_loaded(str(model), error) from error


def check_tokenizer(base: Path, checkpoint: Path) -> None:
    """Raise ScalpelError unless the base's tokenizer reads and writes for the checkpoint too."""
    reason = other_tokenizer(base, checkpoint)
    if reason is not None:
        raise ScalpelError(reason)
    added = added_tokens(base, checkpoint)
    if added:
        raise ScalpelError(
            f"{checkpoint}: its tokenizer has tokens of text that the base's has not "
            f"({len(added)}, the first is {added[0]!r}): what it answers would be read without "
            "them; evaluate it by itself (model=...)"
        )


def _not_loaded(model: str, error: Exception) -> ScalpelError:
    return ScalpelError(
        f"model {model}: it cannot be loaded: {error}. Give a directory with config.json, "
        "tokenizer and safetensors files, or a name on the hub"
    )
