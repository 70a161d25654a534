"""The interface of a suite to a model, whichever engine answers: lm-eval's, and some more."""

from __future__ import annotations

import abc
import functools
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from mlflow_scalpel.errors import ScalpelError


class SuiteLM(TemplateLM):
    """lm-eval's interface to a model whose weights can be swapped.

    Sampling follows the task's settings alone: what generation_config.json says about temperature,
    top-k or repetition is dropped, its end-of-turn tokens are kept. `lengths[id(request)]` holds
    (new tokens, whether it ended by itself) for each completion of a request, in order.
    """

    tokenizer: PreTrainedTokenizerBase
    lengths: dict[int, list[tuple[int, bool]]]
    crowded: set[int]
    """id(request) of each whose completion had less room in the context than its task allows."""
    end_tokens: list[int]
    labels: dict[int, str]
    """The benchmark of each request that is asked, by id(request)."""
    bar: Bar
    """Makes the bar of what is asked, for who watches."""
    max_length: int
    """The model's context, in tokens."""

    def announce(self, title: str, labels: dict[int, str]) -> None:
        """Name what is asked next: `title` says of which model, `labels` which benchmarks."""
        self.labels = labels
        self.bar = bar_about(", ".join([title, *dict.fromkeys(labels.values())]))

    @property
    @abc.abstractmethod
    def scored_length(self) -> int:
        """Longest text whose log-probabilities can be had, in tokens."""

    @abc.abstractmethod
    def load_weights(self, directory: Path) -> None:
        """Take the weights of another checkpoint of the same model.

        Raises ScalpelError that names what differs where it is of another model, or where it cannot
        be opened; the weights are then those that were there before.
        """

    def log_probabilities(self, pairs: list[tuple[str, str]]) -> list[float]:
        """log p(text | context) of each pair, summed over the text's tokens; NaN if there is none.

        Unlike lm-eval's own, blanks at the end of a context stay there: a chat template ends in a
        line break, which is not one of the answer's tokens.
        """
        requests, places = [], []
        for place, (context, text) in enumerate(pairs):
            before, both = self.tok_encode(context), self.tok_encode(context + text)
            after = both[len(before) :]
            if both[: len(before)] != before:  # a token reaches over the boundary
                after = self.tok_encode(text, add_special_tokens=False)
            if after and len(before) + len(after) <= self.scored_length:
                requests.append(((context, text), before, after))
                places.append(place)
        found = [float("nan")] * len(pairs)
        made = self._loglikelihood_tokens(requests, disable_tqdm=True) if requests else []
        for place, (value, _) in zip(places, made, strict=True):
            found[place] = float(value)
        return found

    def _tokenize(self, prompts: list[str]) -> list[list[int]]:
        """Token IDs of each prompt. Raises ScalpelError for one that fills the model's context."""
        known = {prompt: self.tok_encode(prompt) for prompt in dict.fromkeys(prompts)}
        for prompt, tokens in known.items():
            if len(tokens) >= self.max_length:
                raise ScalpelError(
                    f"a prompt of {len(tokens)} tokens leaves no room in the model's context of "
                    f"{self.max_length}; take fewer shots or a shorter system prompt. It starts "
                    f"with {prompt[:80]!r}"
                )
        return [known[prompt] for prompt in prompts]

    def _split_stops(self, stops: list[str]) -> tuple[list[int], list[str]]:
        """Stop strings that are special tokens, with the end-of-turn tokens, and all others."""
        special = {
            text: number
            for text, number in self.tokenizer.get_vocab().items()
            if number in self.tokenizer.all_special_ids
        }
        ends = [*self.end_tokens, *(special[stop] for stop in stops if stop in special)]
        return list(dict.fromkeys(ends)), [s for s in stops if s and s not in special]


def end_tokens_of(stated: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a completion: the model's own, and the tokenizer's."""
    ends: Any = stated.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    ends = [*ends, tokenizer.eos_token_id]
    return list(dict.fromkeys(end for end in ends if end is not None))


LINE_SECONDS = 30.0  # between two lines

Bar = Callable[..., Any]
"""Makes a bar, as tqdm does."""


def bar_about(what: str) -> Bar:
    """The maker of the bars of the answers about something, such as the benchmarks of a model."""
    watched = sys.stderr.isatty() and "TQDM_DISABLE" not in os.environ
    return tqdm if watched else functools.partial(Lines, what)


class Lines(tqdm):  # type: ignore[type-arg]
    """A bar that prints a line every LINE_SECONDS, and none where all is done before the first.

    Libraries give bars a text of their own ("Processed prompts"), which `what` replaces.
    """

    def __init__(self, what: str, *arguments: Any, **options: Any) -> None:
        fixed = {"desc": what, "file": io.StringIO(), "miniters": 1}
        fixed |= {"mininterval": LINE_SECONDS, "delay": LINE_SECONDS}
        fixed["disable"] = bool(options.get("disable"))  # tqdm's None asks for a terminal
        super().__init__(*arguments, **{**options, **fixed})

    def display(self, *_: Any, **__: Any) -> None:
        """Print how far it is."""
        total = self.total or self.n
        line = f"{self.desc.removesuffix(': ')}: {self.n:,} of {total:,} answers"
        if 0 < self.n < total:
            rate = self.n / self.format_dict["elapsed"]
            left = self.format_interval((total - self.n) / rate)
            line += f", {rate:.3g} a second, {left} left"
        print(line, flush=True)
