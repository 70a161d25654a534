"""KL on answers that the base samples itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import mlflow_scalpel
from mlflow_scalpel.comparison.forward import divergence_variants as samples
from mlflow_scalpel.comparison.forward.divergence_variants import Sampling, prompt_of, sample
from mlflow_scalpel.comparison.forward.model import ForwardModel
from mlflow_scalpel.comparison.forward.probes import build_probe
from mlflow_scalpel.errors import ScalpelError

TEXTS = [("1+1=?", "2"), ("what is the capital", "a long answer of many letters"), ("a", "b")]
METRIC = "kl_on_base_samples/answer_tokens"


@pytest.fixture(scope="module")
def pair(make_model) -> tuple[str, str]:
    return str(make_model(1)), str(make_model(2))


def prompts(model: str) -> list[tuple[int, ...]]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    return [prompt_of(item) for item in build_probe("p", TEXTS, tokenizer).items]


def test_prompts_end_where_the_answer_begins(pair):
    tokenizer = AutoTokenizer.from_pretrained(pair[0])
    for prompt, (problem, _) in zip(prompts(pair[0]), TEXTS, strict=True):
        turn = [{"role": "user", "content": problem}]
        rendered = tokenizer.apply_chat_template(turn, add_generation_prompt=True)
        assert list(prompt) == list(rendered["input_ids"])


def test_answers_are_drawn_from_the_whole_distribution(pair, monkeypatch):
    """Of the first token, by its frequency: nothing is truncated, and padding changes nothing."""
    monkeypatch.setattr(samples, "BATCH_ANSWERS", 6000)
    model = ForwardModel(Path(pair[0]))
    few = prompts(pair[0])[1:]  # of unequal length
    before = torch.random.get_rng_state()
    drawn = sample(model, few * 3000, Sampling(seed=1, max_new_tokens=1))
    assert torch.equal(before, torch.random.get_rng_state())
    for number, prompt in enumerate(few):
        with torch.no_grad():
            p = model.model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
        counts = torch.zeros_like(p)
        for answer in drawn[number::2]:
            counts[answer[0]] += 1
        spread = (p * (1 - p) / 3000).sqrt()
        assert (((counts / 3000) - p).abs() <= 5 * spread + 1e-3).all()


def test_answers_end_with_their_end_token_and_follow_the_seed(pair):
    model = ForwardModel(Path(pair[0]))
    end = AutoTokenizer.from_pretrained(pair[0]).eos_token_id
    many = prompts(pair[0]) * 20
    first = sample(model, many, Sampling(seed=3, max_new_tokens=40))
    assert first == sample(model, many, Sampling(seed=3, max_new_tokens=40))
    assert first != sample(model, many, Sampling(seed=4, max_new_tokens=40))
    assert any(answer[-1] == end for answer in first)
    for answer in first:
        assert end not in answer[:-1]
        assert answer[-1] == end or len(answer) == 40


def test_kl_over_the_sampled_tokens_alone(pair):
    base, checkpoint = pair
    table = mlflow_scalpel.compare(base, checkpoint, metrics=[METRIC], texts=TEXTS)
    (row,) = table.itertuples()
    answers = sample(ForwardModel(Path(base)), prompts(base), Sampling())
    first, second = (AutoModelForCausalLM.from_pretrained(one).eval() for one in pair)
    means = []
    for prompt, answer in zip(prompts(base), answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            log_p, log_q = (one(ids).logits[0].double().log_softmax(-1) for one in (first, second))
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        means.append(float(kl[len(prompt) - 1 : -1].mean()))
    assert row.value == pytest.approx(sum(means) / 3, rel=1e-4)
    assert row.stderr == pytest.approx(float(torch.tensor(means).std()) / 3**0.5, rel=1e-3)
    assert (row.metric, row.n, row.unit) == (METRIC, 3, "nats/token")


def test_answers_are_sampled_once_and_named_by_their_content(pair, monkeypatch):
    base, checkpoint = pair
    ask = {"metrics": [METRIC, "kl/answer_tokens"], "texts": TEXTS}
    table = mlflow_scalpel.compare(base, checkpoint, **ask).set_index("metric")
    texts = table["texts"]
    assert texts[METRIC] != texts["kl/answer_tokens"]
    assert texts[METRIC].split()[0] == texts["kl/answer_tokens"].split()[0]
    other = mlflow_scalpel.compare(base, checkpoint, sample_seed=1, **ask).set_index("metric")
    assert other["texts"][METRIC] != texts[METRIC]
    monkeypatch.setattr(samples, "sample", None)  # nothing may be sampled
    both = mlflow_scalpel.compare(base, [checkpoint, base], **ask)
    values = both[both["metric"] == METRIC].set_index("model_id")
    assert values.loc[base, "value"] == 0.0
    assert values.loc[checkpoint, "value"] == table.loc[METRIC, "value"]
    assert set(values["texts"]) == {texts[METRIC]}


def test_a_problem_that_fills_the_context_is_refused(pair):
    with pytest.raises(ScalpelError, match="leaves no room for an answer in the model's context"):
        sample(ForwardModel(Path(pair[0])), [tuple(range(5, 10)) * 20], Sampling())
