"""A checkpoint in the base's place: asked as its own files say, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.evaluation.harness import Evaluator
from mlflow_scalpel.evaluation.suite import load_suite

SUITE = """
tasks_folder: {tasks}
tasks:
  - task: tiny_problem
    label: add
    domain: in
    kind: greedy
    metric: exact_match
    limit: 10
    generation: {{max_new_tokens: 12}}
    data: {{generated: tiny_world, split: heldout, where: {{skill: add}}}}
"""


@pytest.fixture
def build(tmp_path: Path) -> Callable[[Path], Evaluator]:
    """An evaluator of a model."""

    def build(model: Path) -> Evaluator:
        suite = tmp_path / "own.yaml"
        tasks = Path(__file__).parents[2] / "projects" / "evaluate" / "tasks"
        suite.write_text(SUITE.format(tasks=tasks))
        return Evaluator(model, load_suite(str(suite), tmp_path))

    return build


def _untied(directory: Path) -> None:
    """The head apart from the embeddings, and another one."""
    model = LlamaForCausalLM.from_pretrained(directory, tie_word_embeddings=False)
    model.lm_head.weight = torch.nn.Parameter(2.0 * model.lm_head.weight.detach().flip(0))
    model.config.tie_word_embeddings = False
    model.save_pretrained(directory)


def _grown(directory: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(directory)
    model.resize_token_embeddings(model.config.vocab_size + 5, mean_resizing=False)
    model.save_pretrained(directory)


def _reconfigured(**settings: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | settings))

    return change


@pytest.mark.parametrize(
    "change",
    [
        _reconfigured(rope_parameters={"rope_type": "default", "rope_theta": 2.0}),
        _reconfigured(rms_norm_eps=0.5),
        _untied,
        _grown,
    ],
    ids=["rope", "eps", "untied", "grown"],
)
def test_a_checkpoint_is_asked_as_its_own_config_says(
    build: Callable[[Path], Evaluator],
    make_model: Callable[..., Path],
    tmp_path: Path,
    change: Callable[[Path], None],
) -> None:
    base = make_model(1, tied=True)
    other = tmp_path / "other"
    shutil.copytree(base, other)
    change(other)
    evaluator = build(base)
    pairs = [("<|user|>1+1=?<|assistant|>", "2<|end|>"), ("<|user|>ab", "cde")]
    before, likelihoods = evaluator.run().samples, evaluator.loglikelihoods(pairs)
    evaluator.load_weights(other)
    model = LlamaForCausalLM.from_pretrained(other, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(other)
    for (context, text), found in zip(pairs, evaluator.loglikelihoods(pairs), strict=True):
        ids = torch.tensor([tokenizer(context + text)["input_ids"]])
        start = len(tokenizer(context)["input_ids"])
        with torch.inference_mode():
            said = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        true = said.gather(1, ids[0, 1:, None])[start - 1 :].sum()
        assert found == pytest.approx(float(true), rel=1e-5)
    between = evaluator.run().samples
    pd.testing.assert_frame_equal(between, build(other).run().samples)
    evaluator.load_weights(base)
    pd.testing.assert_frame_equal(before, evaluator.run().samples)
    assert evaluator.loglikelihoods(pairs) == pytest.approx(likelihoods)


def test_a_checkpoint_that_writes_other_tokens_is_refused(
    build: Callable[[Path], Evaluator], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    base, padded, spoken = make_model(1), tmp_path / "padded", tmp_path / "spoken"
    for directory, tokens in ((padded, {"special_tokens": True}), (spoken, {})):
        shutil.copytree(base, directory)
        _grown(directory)
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_tokens(["<think>"], **tokens)
        tokenizer.save_pretrained(directory)
    evaluator = build(base)
    evaluator.load_weights(padded)
    with pytest.raises(ScalpelError, match=r"tokens of text .*<think>.*evaluate it by itself"):
        evaluator.load_weights(spoken)


def test_a_checkpoint_of_nan_has_no_score(
    build: Callable[[Path], Evaluator], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    base, odd = make_model(1), tmp_path / "odd"
    shutil.copytree(base, odd)
    model = LlamaForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(odd)
    evaluator = build(base)
    before = evaluator.run().samples
    with pytest.raises(ScalpelError, match="its logits are NaN"):
        evaluator.load_weights(odd)
    evaluator.load_weights(base)
    pd.testing.assert_frame_equal(before, evaluator.run().samples)
