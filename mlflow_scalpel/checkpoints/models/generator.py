"""The pyfunc model of a checkpoint: prompts in, greedy completions out.

Every stored MLmodel names this module as its loader.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from mlflow_scalpel.checkpoints.files import POINTER
from mlflow_scalpel.checkpoints.reading.formats import snapshot_of
from mlflow_scalpel.checkpoints.reading.pull import merge_with_base
from mlflow_scalpel.extras import require_extra
from mlflow_scalpel.tensors.files import is_adapter


class TextGenerator:
    """Answers each prompt as a user's message, by greedy decoding."""

    def __init__(self, path: str) -> None:
        require_extra("measure", "generating with a checkpoint")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        directory = _complete_model(Path(path))
        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        self._model = AutoModelForCausalLM.from_pretrained(
            directory, use_safetensors=True, trust_remote_code=False
        ).eval()

    def predict(self, prompts: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A frame with a string column `prompt` in, one with a column `completion` out.

        `params` may hold `max_new_tokens` (64).
        """
        longest = int((params or {}).get("max_new_tokens", 64))
        completions = [self._complete(str(prompt), longest) for prompt in prompts["prompt"]]
        return pd.DataFrame({"completion": completions})

    def _complete(self, prompt: str, max_new_tokens: int) -> str:
        messages = [{"role": "user", "content": prompt}]
        ids = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]  # (1, T)
        with self._torch.inference_mode():
            out = self._model.generate(
                input_ids=ids,
                attention_mask=self._torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
        return str(self._tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def _complete_model(stored: Path) -> Path:
    """Directory of the complete model, where `stored` holds an adapter or a pointer to the hub."""
    if (stored / POINTER).is_file():
        stored = snapshot_of(stored / POINTER)
    return merge_with_base(stored) if is_adapter(stored) else stored


def _load_pyfunc(path: str) -> TextGenerator:
    """Entry point that MLflow calls with the directory of the model's files."""
    return TextGenerator(path)
