"""Tasks and groups without the chat template, beside lm-eval's own `simple_evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.evaluation.harness import Evaluator
from mlflow_scalpel.evaluation.record import Plan, score_table
from mlflow_scalpel.evaluation.results import Result
from mlflow_scalpel.evaluation.suite import load_suite

SIZES = {"few": 5, "many": 14}
SYSTEM = "Be brief"


def write_tasks(folder: Path, *, weight_by_size: bool = True) -> Path:
    """Two tasks of choices of unequal size and their group, and one that generates."""
    folder.mkdir()
    metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    for name, size in SIZES.items():
        rows = [{"problem": f"{i}+{size}=", "answer": i % 3} for i in range(size)]
        file = folder / f"{name}.jsonl"
        file.write_text("\n".join(json.dumps(row) for row in rows))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file), "train": str(file)}},
            "output_type": "multiple_choice",
            "test_split": "test",
            "fewshot_split": "train",
            "doc_to_text": "{{problem}}",
            "doc_to_choice": ["1", "12", "7"],
            "doc_to_target": "answer",
            "description": "Sums. ",
            "metric_list": [metric],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    wanted = {"metric": "acc", "weight_by_size": weight_by_size}
    group = {"group": "both", "task": list(SIZES), "aggregate_metric_list": [wanted]}
    (folder / "both.yaml").write_text(yaml.safe_dump(group))
    generates = {
        **{k: task[k] for k in ("dataset_path", "dataset_kwargs", "test_split", "fewshot_split")},
        "task": "says",
        "output_type": "generate_until",
        "doc_to_text": "{{problem}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["="], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{**metric, "metric": "exact_match"}],
    }
    (folder / "says.yaml").write_text(yaml.safe_dump(generates))
    return folder


def evaluator_of(model: Path, folder: Path, **task: Any) -> Evaluator:
    fields = {"domain": "in", "kind": "plain", "chat_template": False, "shots": 2, **task}
    suite = folder.parent / "suite.yaml"
    suite.write_text(yaml.safe_dump({"tasks_folder": str(folder), "tasks": [fields]}))
    return Evaluator(model, load_suite(str(suite), folder.parent), system_prompt=SYSTEM)


def theirs_of(model: Path, folder: Path, task: str) -> dict[str, Any]:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    lm = HFLM(pretrained=loaded, tokenizer=AutoTokenizer.from_pretrained(model), batch_size=64)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(
        lm,
        tasks=[task],
        num_fewshot=2,
        task_manager=manager,
        system_instruction=SYSTEM,
        bootstrap_iters=100,
    )


@pytest.mark.parametrize("weight_by_size", [True, False])
def test_a_group_of_choices(make_model, tmp_path: Path, weight_by_size: bool) -> None:
    model = make_model(1)
    (model / "chat_template.jinja").unlink()  # not needed without
    folder = write_tasks(tmp_path / "tasks", weight_by_size=weight_by_size)
    evaluator = evaluator_of(model, folder, task="both", label="both", metric="acc")
    ours = evaluator.run()
    theirs = theirs_of(model, folder, "both")
    for task in evaluator._works[0].tasks:
        found = {
            request.args: request.resps[0][0] for request in task.instances
        }  # log-likelihood by prompt and choice
        wanted = {
            tuple(args): response[0][0]
            for sample in theirs["samples"][task.task_name]
            for args, response in zip(sample["arguments"], sample["resps"], strict=True)
        }
        assert found.keys() == wanted.keys()
        assert found == pytest.approx(wanted, abs=1e-5)
        assert next(iter(found))[0].startswith("Be brief")
        assert "<|" not in next(iter(found))[0]
    (score,) = ours.scores
    result = theirs["results"]["both"]
    assert score.group is not None
    assert score.group.value == pytest.approx(result["acc,none"])
    assert score.group.stderr == pytest.approx(result["acc_stderr,none"])
    assert (score.n, score.chat_template) == (19, False)
    # Ours is over all problems, so the value is the one weighted by size.
    assert (score.value == pytest.approx(score.group.value)) == weight_by_size
    plain = ours.samples["score"]
    assert score.value == pytest.approx(plain.mean())
    assert score.stderr == pytest.approx(plain.std(ddof=1) / 19**0.5)
    assert not ours.samples["chat_template"].any()

    measured_model = MeasuredModel(model, "m", "sha256:a", 0)
    Result(ours, 5).write(tmp_path / "kept.parquet")
    kept = Result.read(tmp_path / "kept.parquet").evaluation
    assert kept.scores == ours.scores
    table = score_table(kept, measured_model, Plan(measured_model, SYSTEM), "float32").set_index(
        "metric"
    )
    assert table.loc["lm_eval/in/both/plain", "stderr"] == pytest.approx(result["acc_stderr,none"])
    assert "without the chat template" in table.loc["eval/in/both/plain", "reason"]
    assert "2 tasks" in table.loc["lm_eval/in/both/plain", "reason"]


def test_a_task_that_generates(make_model, tmp_path: Path) -> None:
    model, folder = make_model(1), write_tasks(tmp_path / "tasks")
    task = {"task": "says", "label": "says", "metric": "exact_match"}
    evaluator = evaluator_of(model, folder, **task, generation={"max_new_tokens": 6})
    ours = evaluator.run()
    samples = theirs_of(model, folder, "says")["samples"]["says"]
    (loaded,) = evaluator._works[0].tasks
    assert [r.args[0] for r in loaded.instances] == [s["arguments"][0][0] for s in samples]
    assert list(ours.samples["completion"]) == [s["resps"][0][0] for s in samples]
    assert ours.scores[0].group is None


def test_a_task_without_problems_is_refused(make_model, tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks")
    file = folder / "none.py"
    file.write_text("def nothing(docs):\n    return docs.select([])\n")
    task = yaml.safe_load((folder / "few.yaml").read_text()) | {"task": "empty"}
    text = yaml.safe_dump(task) + "process_docs: !function none.nothing\n"
    (folder / "empty.yaml").write_text(text)
    with pytest.raises(ScalpelError, match="task empty: it has no problem"):
        evaluator_of(make_model(1), folder, task="empty", label="empty", metric="acc")
