"""Batched generation for lm-eval: its Hugging Face model with the loop over batches done anew.

lm-eval adds the end-of-turn token to the stop strings of every task, decodes the whole batch for
each of them at every step, several times the cost of a small model, and goes on until the last row
holds the same one. Here stop tokens are left to `generate`, only other stop strings are searched
for, and each row ends by itself.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from mlflow_scalpel.errors import ScalpelError

logger = logging.getLogger(__name__)


class BatchedLM(HFLM):
    """lm-eval's interface to a transformers model that is already there.

    Sampling follows the task's settings alone: what generation_config.json says about temperature,
    top-k or repetition is dropped, its end-of-turn tokens are kept. `lengths[id(request)]` holds
    (new tokens, whether it ended by itself) for each completion of a request, in order.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int
    ) -> None:
        super().__init__(
            pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=batch_size
        )
        self.lengths: dict[int, list[tuple[int, bool]]] = {}
        stated = model.generation_config.eos_token_id
        stated = [] if stated is None else [stated] if isinstance(stated, int) else list(stated)
        self.end_tokens = list(dict.fromkeys([*stated, self.tokenizer.eos_token_id]))
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
        quiet = True if disable_tqdm else None  # None: only where a terminal watches
        with tqdm(total=len(requests), desc="generate", disable=quiet, mininterval=2) as bar:
            for batch in batches:
                settings = dict(requests[batch[0]].args[1])
                made = self._generate_batch([tokens[number] for number in batch], settings)
                for number, (text, length) in zip(batch, made, strict=True):
                    texts[number], lengths[number] = text, length
                bar.update(len(batch))
        for request, length in zip(requests, lengths, strict=True):
            self.lengths.setdefault(id(request), []).append(length)
        return texts

    def log_probabilities(self, pairs: list[tuple[str, str]]) -> list[float]:
        """log p(text | context) of each pair, summed over the text's tokens; NaN if there is none.

        Unlike lm-eval's own, blanks at the end of a context stay there: a chat template ends in a
        line break, which is none of the answer's tokens.
        """
        requests, places = [], []
        for place, (context, text) in enumerate(pairs):
            before, whole = self.tok_encode(context), self.tok_encode(context + text)
            after = whole[len(before) :]
            if whole[: len(before)] != before:  # a token reaches over the seam
                after = self.tok_encode(text, add_special_tokens=False)
            if after and len(before) + len(after) <= self.max_length:
                requests.append(((context, text), before, after))
                places.append(place)
        found = [float("nan")] * len(pairs)
        made = self._loglikelihood_tokens(requests, disable_tqdm=True) if requests else []
        for place, (value, _) in zip(places, made, strict=True):
            found[place] = float(value)
        return found

    def _tokenize(self, prompts: list[str]) -> list[list[int]]:
        known = {prompt: self.tok_encode(prompt) for prompt in dict.fromkeys(prompts)}
        for prompt, tokens in known.items():
            if len(tokens) >= self.max_length:
                raise ScalpelError(
                    f"a prompt of {len(tokens)} tokens leaves no room in the model's context of "
                    f"{self.max_length}; take fewer shots or a shorter system prompt. It starts "
                    f"with {prompt[:80]!r}"
                )
        return [known[prompt] for prompt in prompts]

    def _generate_batch(
        self, prompts: list[list[int]], settings: dict[str, Any]
    ) -> list[tuple[str, tuple[int, bool]]]:
        stops = list(settings.pop("until", None) or [])
        limit = settings.pop("max_gen_toks")
        longest = len(prompts[0])  # sorted so
        room = self.max_length - longest
        if room < limit:
            logger.warning(
                "a prompt of %d tokens leaves %d of the %d new tokens that its task allows",
                longest,
                room,
                limit,
            )
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

    def _split_stops(self, stops: list[str]) -> tuple[list[int], list[str]]:
        """Stop strings that are special tokens, with the end-of-turn tokens, and all others."""
        special = {
            text: number
            for text, number in self.tokenizer.get_vocab().items()
            if number in self.tokenizer.all_special_ids
        }
        ends = [*self.end_tokens, *(special[stop] for stop in stops if stop in special)]
        return list(dict.fromkeys(ends)), [s for s in stops if s and s not in special]

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
        """Which rows of `input_ids` (B, T) are done, (B,)."""
        tail = input_ids[:, self.prompt_length :][:, -self.window :]
        texts = self.tokenizer.batch_decode(tail)
        done = [any(string in text for string in self.strings) for text in texts]
        return torch.tensor(done, device=input_ids.device)
