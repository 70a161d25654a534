"""A tokenizer that splits text as Qwen2.5, Llama 3 and OLMo-2 do, with any chat template."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import trl
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Qwen2.5's own pattern: line breaks are one piece with the blanks before them.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MARKS = re.compile(
    r"<[|｜][^<>|｜]*[|｜]>|<(?:start|end)_of_turn>|<\|?turn\|?>|</s>|\[gMASK\]|<sop>"
)
_TEXT = ["a line\n\nand one\n", "assistant\n\n", ">\n", "\n\n\n", "What is it?"] * 20

REAL = Path(trl.__file__).parent / "chat_templates"


def make_tokenizer(
    template: str | None, *, eos: str = "<|im_end|>", bos: str = "<|begin|>", extra: str = ""
) -> PreTrainedTokenizerFast:
    """Its special tokens are those that the template (and `extra`) writes, `eos` and `bos`."""
    marks = dict.fromkeys([eos, bos, *_MARKS.findall((template or "") + extra)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()), eos_token=eos, bos_token=bos
    )
    fast.add_special_tokens({"additional_special_tokens": list(marks)})
    fast.pad_token = eos
    fast.chat_template = template
    return fast


@functools.cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_TEXT, trainer)
    return str(tokenizer.to_str())
