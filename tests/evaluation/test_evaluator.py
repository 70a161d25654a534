"""A suite over a model: completions, scores, seeds, other weights, and what is refused."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.evaluation.harness import SAMPLE_COLUMNS, Evaluator
from mlflow_scalpel.evaluation.suite import load_suite
from mlflow_scalpel.metrics.capabilities.intervals import clustered_mean

PROJECT = Path(__file__).parents[2] / "projects" / "evaluate"
TASKS = PROJECT / "tasks"
SAMPLED = {"do_sample": True, "temperature": 1.0, "max_new_tokens": 12}
CHOICE = """
task: choice
output_type: multiple_choice
test_split: test
doc_to_text: "{{problem}}"
doc_to_choice: ["A", "B", "C"]
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


def task(**fields: Any) -> dict[str, Any]:
    return {
        "task": "tiny_problem",
        "label": "add",
        "domain": "in",
        "kind": "greedy",
        "metric": "exact_match",
        "generation": {"max_new_tokens": 12},
        "data": {"generated": "tiny_world", "split": "heldout", "where": {"skill": "add"}},
        **fields,
    }


@pytest.fixture
def build(tmp_path: Path, first_model: Path) -> Callable[..., Evaluator]:
    """An evaluator of the first model on the tasks given."""

    def build(
        *tasks: dict[str, Any], model: Path = first_model, folder: Path = TASKS, **settings: Any
    ) -> Evaluator:
        suite = tmp_path / "own.yaml"
        suite.write_text(yaml.safe_dump({"tasks_folder": str(folder), "tasks": list(tasks)}))
        return Evaluator(model, load_suite(str(suite), tmp_path), **settings)

    return build


def write_rows(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return {"file": str(path)}


def test_a_suite_end_to_end(build: Callable[..., Evaluator]) -> None:
    few = {"generated": "tiny_world", "split": "all", "where": {"skill": "facts"}, "limit": 9}
    evaluation = build(
        task(),
        task(kind="sampled", generation=SAMPLED, samples=3, limit=7),
        task(label="facts", domain="out", data=few),
        batch_size=64,
    ).run()
    names = ["eval/in/add/greedy", "eval/in/add/sampled", "eval/out/facts/greedy"]
    assert [score.metric for score in evaluation.scores] == names
    assert [(score.n, score.samples) for score in evaluation.scores] == [(40, 1), (7, 3), (9, 1)]
    assert all(score.unit == "accuracy" and score.ungraded == 0 for score in evaluation.scores)
    rows = evaluation.samples
    assert list(rows.columns) == SAMPLE_COLUMNS
    assert len(rows) == 40 + 7 * 3 + 9
    some = rows[rows["kind"] == "sampled"]
    assert sorted(some["sample"].unique()) == [0, 1, 2]
    assert some.groupby("problem_id").size().eq(3).all()
    assert some["completion"].nunique() > 10  # the samples of a problem are draws of their own
    assert set(some["problem_id"]) <= set(rows.loc[rows["kind"] == "greedy", "problem_id"])
    assert rows["tokens"].between(1, 12).all()
    assert rows.loc[rows["tokens"] < 12, "finished"].all()
    first = rows.iloc[0]
    assert (first["domain"], first["label"], first["kind"]) == ("in", "add", "greedy")
    assert eval(first["problem"].removesuffix("=?")) == int(first["gold"])


def test_lm_eval_itself_gives_the_same(
    build: Callable[..., Evaluator], first_model: Path, tmp_path: Path
) -> None:
    """The loop over batches is ours: prompts, completions and grades must be lm-eval's."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    evaluator = build(task(), system_prompt="Be brief", batch_size=16)
    golds = evaluator.run().samples["completion"]
    data = write_rows(
        tmp_path / "rows.jsonl",
        [{"problem": f"{i}+1=?", "answer": gold} for i, gold in enumerate(golds)],
    )
    evaluator = build(task(data=data), system_prompt="Be brief", batch_size=16)
    ours = evaluator.run()
    (theirs_task,) = evaluator._works[0].tasks
    model = AutoModelForCausalLM.from_pretrained(first_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(first_model)
    theirs = evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16),
        {"tasks": {"t": theirs_task}, "groups": {}},
        bootstrap_iters=100,
        system_instruction="Be brief",
        apply_chat_template=True,
        fewshot_as_multiturn=True,
    )
    completions = [sample["resps"][0][0] for sample in theirs["samples"]["t"]]
    assert list(ours.samples["completion"]) == completions
    (score,) = ours.scores
    assert score.value == pytest.approx(theirs["results"]["t"]["exact_match,none"])
    assert score.stderr == pytest.approx(theirs["results"]["t"]["exact_match_stderr,none"])
    prompt = theirs["samples"]["t"][0]["arguments"][0][0]
    assert prompt == "<|system|>Be brief<|user|>0+1=?<|assistant|>"


def test_the_same_seed_repeats_and_another_does_not(build: Callable[..., Evaluator]) -> None:
    evaluator = build(task(generation=SAMPLED, samples=2, limit=10), seed=3)
    torch.manual_seed(99)
    first, again = evaluator.run(), evaluator.run()
    assert torch.initial_seed() == 99  # the caller's random state is its own
    other = evaluator.run(seed=4)
    pd.testing.assert_frame_equal(first.samples, again.samples)
    assert list(first.samples["completion"]) != list(other.samples["completion"])


@pytest.mark.parametrize("tied", [False, True])
def test_other_weights_give_other_results_and_the_first_come_back(
    build: Callable[..., Evaluator], make_model: Callable[..., Path], tied: bool
) -> None:
    one, two = make_model(1, tied=tied), make_model(2, tied=tied, shard="10KB")
    assert len(list(two.glob("*.safetensors"))) > 1
    evaluator = build(task(limit=10), model=one)
    before = evaluator.run().samples
    evaluator.load_weights(two)
    between = evaluator.run().samples
    evaluator.load_weights(one)
    pd.testing.assert_frame_equal(before, evaluator.run().samples)
    assert list(before["completion"]) != list(between["completion"])
    fresh = build(task(limit=10), model=two).run().samples
    pd.testing.assert_frame_equal(between, fresh)


def test_weights_of_another_model_are_refused(
    build: Callable[..., Evaluator],
    make_model: Callable[..., Path],
    first_model: Path,
    tmp_path: Path,
) -> None:
    evaluator = build(task(limit=2))
    with pytest.raises(ScalpelError, match=r"hidden_size = 16, and the base's has 32"):
        evaluator.load_weights(make_model(1, hidden=16))
    without_head = make_model(1, tied=True)
    shutil.copy(first_model / "config.json", without_head)
    with pytest.raises(ScalpelError, match="is missing the tensor"):
        evaluator.load_weights(without_head)
    config = json.loads((without_head / "config.json").read_text()) | {"intermediate_size": 48}
    (without_head / "config.json").write_text(json.dumps(config))
    with pytest.raises(ScalpelError, match=r"tensor \S+ has shape"):
        evaluator.load_weights(without_head)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "pytorch_model.bin").write_bytes(b"a pickle, which must not be read")
    with pytest.raises(ScalpelError, match=r"holds no \.safetensors file"):
        evaluator.load_weights(empty)
    with pytest.raises(ScalpelError, match="cannot be loaded"):
        build(task(limit=2), model=empty)


def test_scores_of_several_samples_are_clustered_by_problem(
    build: Callable[..., Evaluator], tmp_path: Path
) -> None:
    sampled = task(generation={**SAMPLED, "temperature": 0.3}, samples=4)
    draws = build(sampled).run().samples
    golds = draws[draws["sample"] == 0].set_index("problem")["completion"]
    rows = [{"problem": problem, "answer": gold or "-"} for problem, gold in golds.items()]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    evaluation = build({**sampled, "data": data}).run()
    (score,) = evaluation.scores
    means = evaluation.samples.groupby("problem_id")["score"].mean().to_numpy()
    assert 0 < score.value < 1  # the first sample of each is right, others only partly
    assert set(means) - {0.0, 1.0}
    assert score.value == pytest.approx(means.mean())
    assert score.stderr == pytest.approx(means.std(ddof=1) / np.sqrt(len(means)))
    assert score.n == len(means) == 40


def test_clustered_mean() -> None:
    assert clustered_mean([]) == pytest.approx((np.nan, np.nan), nan_ok=True)
    assert clustered_mean([[1.0, 0.0]]) == pytest.approx((0.5, np.nan), nan_ok=True)
    # 3 problems of unequal size: R = 4 / 6; residuals 2 - 4/3, 1 - 4/3, 1 - 4/3
    value, stderr = clustered_mean([[1, 1], [1, 0], [0, 1]])
    assert value == pytest.approx(4 / 6)
    assert stderr == pytest.approx(np.sqrt(3 / 2 * ((2 / 3) ** 2 + 2 * (1 / 3) ** 2) / 36))
    plain = [random.Random(i).random() for i in range(20)]
    value, stderr = clustered_mean([[score] for score in plain])
    assert value == pytest.approx(np.mean(plain))
    assert stderr == pytest.approx(np.std(plain, ddof=1) / np.sqrt(20))


def test_problems_without_a_readable_gold_are_left_out(
    build: Callable[..., Evaluator], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"problem": "1+1=?", "answer": "2"}, {"problem": "2+2=?", "answer": "see above"}]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    evaluation = build(task(task="math_problem", metric="math_verify", data=data)).run()
    (score,) = evaluation.scores
    assert (score.n, score.ungraded) == (1, 1)
    assert np.isnan(score.stderr)  # of one problem
    assert list(evaluation.samples["score"].isna()) == [False, True]
    assert "1 of 2 problems cannot be read" in caplog.text
    assert evaluation.samples["unscored"].fillna("").tolist() == ["", "ungraded"]


@pytest.mark.parametrize("by", [{"metric": "math_verify"}, {"grader": "math_verify"}])
def test_answers_that_take_too_long_are_counted_apart(
    build: Callable[..., Evaluator],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    by: dict[str, str],
) -> None:
    rows = [{"problem": "1+1=?", "answer": "2"}, {"problem": "2+2=?", "answer": "9^{9^{9}}"}]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    evaluator = build(task(task="math_problem", data=data, **{"metric": None, **by}))
    lm = evaluator._lm
    monkeypatch.setattr(lm, "generate_until", lambda requests: [
        lm.lengths.setdefault(id(request), []).append((3, True)) or r"\boxed{2}"
        for request in requests
    ])  # fmt: skip
    evaluation = evaluator.run()
    (score,) = evaluation.scores
    assert (score.value, score.n, score.ungraded, score.not_graded) == (1.0, 1, 0, 1)
    assert evaluation.samples["unscored"].fillna("").tolist() == ["", "not graded"]
    assert "1 of 2 problems have an answer that takes too long" in caplog.text


def test_a_stop_string_ends_each_row_by_itself(build: Callable[..., Evaluator]) -> None:
    free = build(task(generation={"max_new_tokens": 30})).run().samples
    letter = free["completion"].str.cat().replace(" ", "")[5]
    generation = {"max_new_tokens": 30, "until": [letter]}
    stopped = build(task(generation=generation)).run().samples
    assert [text.split(letter)[0] for text in free["completion"]] == list(stopped["completion"])
    hit = free["completion"].str.contains(letter, regex=False)
    assert hit.any()
    assert stopped.loc[hit, "finished"].all()
    assert (stopped.loc[hit, "tokens"] <= free.loc[hit, "tokens"]).all()


def test_likelihoods_of_choices(
    build: Callable[..., Evaluator], first_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "choice.yaml").write_text(CHOICE)
    rows = [{"problem": f"{i}+{i}=?", "answer": "B"} for i in range(8)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    fields = {"task": "choice", "metric": "acc", "generation": None, "data": data}
    evaluation = build(task(**fields), folder=folder).run()
    rows_seen = evaluation.samples
    assert set(rows_seen["completion"]) <= {"A", "B", "C"}
    assert rows_seen["gold"].eq("B").all()
    assert list(rows_seen["score"]) == list((rows_seen["completion"] == "B").astype(float))
    assert evaluation.scores[0].value == pytest.approx(rows_seen["score"].mean())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"task": "tiny_problme"}, ["tiny_problme", str(TASKS)]),
        ({"metric": "exact"}, ["exact", "use one of exact_match"]),
        ({"filter": "strict"}, ["strict", "use one of none"]),
        ({"generation": None}, ["generates", "generation"]),
        ({"data": {"file": "nowhere.jsonl"}}, ["nowhere.jsonl"]),
    ],
)
def test_what_a_task_lacks_is_told_before_the_model_is_loaded(
    build: Callable[..., Evaluator], fields: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ScalpelError) as caught:
        build(task(**fields), model=Path("/no/model"))
    for word in words:
        assert word in str(caught.value)


def test_a_prompt_beyond_the_context_is_refused(build: Callable[..., Evaluator]) -> None:
    with pytest.raises(ScalpelError, match="context of 96"):
        build(task(limit=1), system_prompt="x" * 100).run()


def test_where_the_context_ends_so_does_the_completion(
    build: Callable[..., Evaluator],
) -> None:
    found = build(task(limit=3), system_prompt="x" * 80).run()
    assert found.samples["tokens"].max() < 12
    assert [score.crowded for score in found.scores] == [3]
    assert [score.crowded for score in build(task(limit=3)).run().scores] == [0]


def test_a_template_that_drops_the_system_prompt_is_refused(
    build: Callable[..., Evaluator], make_model: Callable[..., Path]
) -> None:
    model = make_model(1)
    template = model / "chat_template.jinja"
    template.write_text("{% for m in messages[-1:] %}<|user|>{{ m['content'] }}{% endfor %}")
    assert len(build(task(limit=1), model=model).run().samples) == 1
    with pytest.raises(ScalpelError, match="leaves out the system prompt"):
        build(task(limit=1), model=model, system_prompt="Be brief")
    template.unlink()
    with pytest.raises(ScalpelError, match="no chat template"):
        build(task(limit=1), model=model)


def test_an_empty_system_prompt_and_the_date_reach_every_prompt(
    build: Callable[..., Evaluator], make_model: Callable[..., Path]
) -> None:
    """As Qwen2.5 has a system prompt of its own, and Llama 3.2 writes the date."""
    model = make_model(1)
    own = "{% if messages[0]['role'] != 'system' %}<|system|>you are kind{% endif %}"
    template = model / "chat_template.jinja"
    plain = template.read_text()
    template.write_text(own + "{{ strftime_now('%Y') }}" + plain)
    seen = {}
    for prompt in (None, "", "Be brief"):
        evaluator = build(
            task(limit=1), model=model, system_prompt=prompt, template_date=date(1999, 1, 2)
        )
        evaluator.run()
        (seen[prompt],) = evaluator.prompts.values()
    assert seen[None].startswith("<|system|>you are kind1999<|user|>")
    assert seen[""].startswith("1999<|system|><|user|>")
    assert seen["Be brief"].startswith("1999<|system|>Be brief<|user|>")


def test_a_grader_of_the_project_in_place_of_the_tasks(
    build: Callable[..., Evaluator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mathematics is compared as such, with the gold answer that the pattern finds."""
    golds = ["so many\n#### 1,000", "#### 7", "none of them", "#### 0.5"]
    rows = [{"problem": f"{n}+1=?", "answer": gold} for n, gold in enumerate(golds)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    fields = {"metric": None, "data": data, "gold_pattern": r"####\s*(-?[\d,.]+)"}
    evaluator = build(
        task(label="strict", grader="math_verify", **fields),
        task(label="number", grader="math_verify_or_number", **fields),
    )
    answers = {
        "0+1=?": r"\boxed{1000}",
        "1+1=?": "it is 7",
        "2+1=?": r"\boxed{7}",
        "3+1=?": r"the answer is $\frac{1}{2}$",
    }

    def generate(requests: list[Any], **_: Any) -> list[str]:
        for request in requests:
            evaluator._lm.lengths.setdefault(id(request), []).append((1, True))
        return [next(a for q, a in answers.items() if q in r.args[0]) for r in requests]

    monkeypatch.setattr(evaluator._lm, "generate_until", generate)
    evaluation = evaluator.run()
    scores = evaluation.samples.groupby("label")["score"].agg(list)
    assert scores["strict"][:2] == [1.0, 0.0]
    assert scores["number"][:2] == [1.0, 1.0]
    assert np.isnan(scores["strict"][2])  # a gold that is no mathematics is not judged
    assert scores["strict"][3] == 1.0
    assert evaluation.samples["gold"].tolist()[:4] == ["1,000", "7", "none of them", "0.5"]
    assert [score.ungraded for score in evaluation.scores] == [1, 1]
