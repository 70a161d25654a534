"""Kinds of KL beside the group `kl`: on answers that the base samples, and as a paper computed it.

The groups are `kl_on_base_samples` and `kl_paper_compat` (arXiv 2507.10616, in bfloat16).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mlflow_scalpel.chat import context_of
from mlflow_scalpel.checkpoints.atomic import write_atomically
from mlflow_scalpel.checkpoints.reading import cache
from mlflow_scalpel.comparison.forward.divergence import SLICE_LOGITS, Divergence
from mlflow_scalpel.comparison.forward.model import ForwardModel, Head, keep
from mlflow_scalpel.comparison.forward.probes import Probe, ProbeText
from mlflow_scalpel.comparison.runner import Progress, place
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.paper_compat import bfloat16_divergence
from mlflow_scalpel.metrics.registry import Metric

BATCH_ANSWERS = 64  # answers sampled at once; a batch runs until its longest ends
_LAYOUT = 2  # goes up when answers are sampled otherwise than before


@dataclass(frozen=True)
class Sampling:
    """How the base's answers are sampled: temperature 1, the whole distribution."""

    seed: int = 0
    max_new_tokens: int = 256


class SampledDivergence:
    """`Divergence` over answers that the base samples for the probes' problems, one each."""

    def __init__(
        self,
        model: ForwardModel,
        probes: Sequence[Probe],
        sampling: Sampling,
        *,
        base_digest: str | None = None,
    ) -> None:
        """Sample; with the digest of the base, answers are kept on this machine and taken again."""
        self.model = model
        model.load_base()
        sampled = [_sampled(model, probe, sampling, base_digest) for probe in probes]
        self._divergence = Divergence(model, sampled)
        self.probes = sampled

    def rows(
        self, metrics: Sequence[Metric], progress: Progress | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows of each metric on each probe's samples."""
        return self._divergence.rows(metrics, progress)


def _sampled(
    model: ForwardModel, probe: Probe, sampling: Sampling, base_digest: str | None
) -> Probe:
    """The probe with the base's answers in place of its solutions."""
    parts = [_LAYOUT, base_digest, probe.texts, model.dtype, *astuple(sampling)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    kept = cache.directory() / "samples" / f"{key}.json"
    if base_digest is not None and kept.is_file():
        answers = json.loads(kept.read_text())
    else:
        answers = sample(model, [prompt_of(item) for item in probe.items], sampling)
        if base_digest is not None:
            write_atomically(kept, json.dumps(answers).encode())
    digest = hashlib.sha256(json.dumps(answers).encode()).hexdigest()[:16]
    items = tuple(_answered(item, ids) for item, ids in zip(probe.items, answers, strict=True))
    texts = probe.texts.replace(probe.digest, digest)
    return replace(probe, texts=texts, digest=digest, items=items)


def prompt_of(item: ProbeText) -> tuple[int, ...]:
    """The tokens before the answer."""
    return item.ids[: item.answer.start + 1]


def _answered(item: ProbeText, answer: list[int]) -> ProbeText:
    prompt = prompt_of(item)
    return ProbeText((*prompt, *answer), slice(len(prompt) - 1, len(prompt) + len(answer) - 1))


@torch.inference_mode()
def sample(
    model: ForwardModel, prompts: Sequence[tuple[int, ...]], sampling: Sampling
) -> list[list[int]]:
    """One answer's token IDs for each prompt, with its end-of-turn token where it ends.

    Raises ScalpelError where a prompt leaves no room in the model's context, or where it gives NaN.
    """
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(
        model.base, trust_remote_code=False, local_files_only=True
    )
    ends = _ends(model.model, tokenizer)
    context = context_of(model.model.config)
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    answers: list[list[int]] = [[]] * len(prompts)
    with torch.random.fork_rng():
        torch.manual_seed(sampling.seed)
        for start in range(0, len(order), BATCH_ANSWERS):
            batch = order[start : start + BATCH_ANSWERS]
            longest = len(prompts[batch[0]])
            room = sampling.max_new_tokens if context is None else context - longest
            if room < 1:
                raise ScalpelError(
                    f"kl_on_base_samples: a problem of {longest} tokens leaves no room for an "
                    f"answer in the model's context of {context}; leave it out of the texts"
                )
            # Padding on the left: what is sampled goes on from the last position.
            ids = torch.full((len(batch), longest), ends[0])  # (B, T)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(batch):
                ids[row, longest - len(prompts[index]) :] = torch.tensor(prompts[index])
                mask[row, longest - len(prompts[index]) :] = 1
            settings = GenerationConfig(
                do_sample=True,
                temperature=1.0,
                top_p=1.0,
                top_k=0,  # the default 50 truncates
                max_new_tokens=min(sampling.max_new_tokens, room),
                eos_token_id=ends,
                pad_token_id=ends[0],
            )
            try:
                made = model.model.generate(
                    input_ids=ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    generation_config=settings,
                )
            except RuntimeError as error:
                if "probability tensor" not in str(error):
                    raise
                raise ScalpelError(
                    f"kl_on_base_samples: the base's logits are NaN or infinite in {model.dtype}, "
                    "so it cannot be sampled; take another dtype"
                ) from error
            for index, row in zip(batch, made[:, longest:].tolist(), strict=True):
                end = next((at for at, token in enumerate(row) if token in ends), len(row))
                answers[index] = row[: end + 1]
    return answers


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: those of the model's generation settings, and the tokenizer's."""
    stated = model.generation_config.eos_token_id
    stated = stated if isinstance(stated, list) else [stated]
    ends = [token for token in [tokenizer.eos_token_id, *stated] if token is not None]
    if not ends:
        raise ScalpelError(
            "kl_on_base_samples: neither the base's tokenizer nor its generation_config.json names "
            "an end-of-turn token (eos_token); set one"
        )
    return list(dict.fromkeys(ends))


class PaperDivergence:
    """Runs base and checkpoints in bfloat16, text by text, one model whose weights are swapped.

    Raises ScalpelError for a model whose logits are formed in a way that `Head` does not know.
    Only the base's final hidden states are kept; its logits are made again a slice at a time.
    """

    def __init__(self, model: ForwardModel, probes: Sequence[Probe]) -> None:
        self.model = model
        self.probes = list(probes)
        model.load_base()
        for item in [item for probe in self.probes for item in probe.items][:1]:
            model.check_head(item)
        self._head = model.head(torch.bfloat16).clone()
        self._base = [keep([self._hidden(item) for item in probe.items]) for probe in self.probes]

    def rows(
        self, metrics: Sequence[Metric], progress: Progress | None = None
    ) -> Iterator[dict[str, Any]]:
        """A row for each metric and probe, of the checkpoint whose weights the model has."""
        head = self.model.head(torch.bfloat16)
        if head.vocabulary != self._head.vocabulary:
            raise ScalpelError(
                f"kl_paper_compat: the base's vocabulary has {self._head.vocabulary} tokens, and "
                f"the checkpoint's {head.vocabulary}, of which the authors' way makes NaN; see kl"
            )
        for probe, base in zip(self.probes, self._base, strict=True):
            problems = []
            for item, before in zip(probe.items, base, strict=True):
                problems.append(self._divergence(before, self._hidden(item), head))
                if progress is not None:
                    progress(1)
            for one in metrics:
                for estimate in one.function(problems):
                    yield {**place(one, probe, "bfloat16"), **estimate.columns()}

    @torch.inference_mode()
    def _hidden(self, item: ProbeText) -> Tensor:
        """Final hidden states (T, H) bfloat16."""
        return self.model.states(torch.tensor([item.ids]))[0].clone()

    @torch.inference_mode()
    def _divergence(self, before: Tensor, after: Tensor, head: Head) -> Tensor:
        """KL of each position, (T,) bfloat16."""
        step = max(1, SLICE_LOGITS // head.vocabulary)
        before = before.to(after.device)  # what is kept on disk is read by the CPU
        slices = [slice(at, at + step) for at in range(0, len(before), step)]
        return torch.cat(
            [
                bfloat16_divergence(self._head.logits(before[these]), head.logits(after[these]))
                for these in slices
            ]
        ).cpu()
