"""Suites are checked as a whole, quickly, and say what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlflow_scalpel.errors import RecipeError
from mlflow_scalpel.evaluation.suite import load_suite

PROJECT = Path(__file__).parents[2] / "projects" / "evaluate"
SUITES = PROJECT / "suites"


def task(**fields: Any) -> dict[str, Any]:
    return {
        "task": "tiny_problem",
        "label": "add",
        "domain": "in",
        "kind": "greedy",
        "metric": "exact_match",
        "generation": {"max_new_tokens": 8},
        **fields,
    }


def write(folder: Path, *tasks: dict[str, Any], **fields: Any) -> Path:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({"name": "own", **fields, "tasks": list(tasks)}))
    return path


@pytest.mark.parametrize("name", ["tiny", "smollm2-135m", "paper"])
def test_suites_of_the_project_are_sound(name: str) -> None:
    suite = load_suite(name, SUITES)
    assert suite.name == name
    assert {entry.domain for entry in suite.tasks} == {"in", "out"}


def test_loading_a_suite_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from mlflow_scalpel.evaluation.suite import load_suite;"
        f"load_suite('tiny', Path({str(SUITES)!r}));"
        "print([m for m in ('torch', 'lm_eval', 'mlflow', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_metric_name(tmp_path: Path) -> None:
    suite = load_suite(str(write(tmp_path, task())), SUITES)
    assert suite.tasks[0].metric_name == "eval/in/add/greedy"


def test_tasks_that_differ_in_their_metric_share_their_work(tmp_path: Path) -> None:
    one, other = task(metric="a"), task(metric="b", label="sub")
    suite = load_suite(str(write(tmp_path, one, other, task(kind="few", shots=1))), SUITES)
    assert suite.tasks[0].work == suite.tasks[1].work != suite.tasks[2].work


def sampled(**fields: Any) -> dict[str, Any]:
    return {"do_sample": True, "temperature": 0.6, "max_new_tokens": 8, **fields}


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([task(shot=1)], ["tasks.0.shot", "= 1"]),
        ([task(), task()], ["label add", "kind greedy", "rename"]),
        ([task(), task(kind="sampled", domain="out")], ["add", "one domain"]),
        ([{k: v for k, v in task().items() if k != "domain"}], ["tasks.0.domain", "required"]),
        ([task(domain="near")], ["domain", "near"]),
        ([task(label="a/b")], ["label", "a/b"]),
        ([task(kind="very greedy")], ["kind", "very greedy"]),
        ([task(samples=4)], ["samples = 4", "do_sample"]),
        ([task(shots=-1)], ["shots", "-1"]),
        ([task(generation={"do_sample": True, "max_new_tokens": 8})], ["temperature"]),
        ([task(generation=sampled(temperature=0))], ["temperature", "0"]),
        ([task(generation=sampled(top_p=1.5))], ["top_p", "1.5"]),
        ([task(generation={"temperature": 0.6, "max_new_tokens": 8})], ["do_sample"]),
        ([task(shots=1, data={"generated": "tiny_world"})], ["shots = 1", "set shots to 0"]),
        ([task(metric=None)], ["metric = None of add", "needs a metric"]),
        ([task(grader="math_verify")], ["metric = exact_match of add", "takes none"]),
        ([task(metric=None, grader="math_verify", generation=None)], ["reads completions"]),
        ([task(gold_pattern="####")], ["gold_pattern", "group"]),
        ([task(data={"file": "a.csv", "hub": "b/c"})], ["hub and file"]),
        ([], ["tasks"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, tasks: list[dict[str, Any]], words: list[str]) -> None:
    path = write(tmp_path, *tasks)
    with pytest.raises(RecipeError) as caught:
        load_suite(str(path), SUITES)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_folder_of_tasks_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nowhere"):
        load_suite(str(write(tmp_path, task(), tasks_folder="nowhere")), SUITES)


def test_an_unknown_suite_is_told_with_its_neighbours() -> None:
    with pytest.raises(RecipeError, match="Did you mean tiny"):
        load_suite("tinny", SUITES)


def test_data_can_be_replaced_for_a_label() -> None:
    columns = {"problem": "question", "answer": "short_answer"}
    data = {"file": "gsm8k.jsonl", "columns": columns}
    suite = load_suite("smollm2-135m", SUITES, {"GSM8K": data})
    replaced = suite.tasks[0].data
    assert replaced is not None
    assert (replaced.file, replaced.hub) == ("gsm8k.jsonl", None)
    assert replaced.columns.answer == "short_answer"
    assert suite.tasks[1].data is not None
    assert suite.tasks[1].data.hub == "HuggingFaceH4/MATH-500"


def test_data_for_a_label_that_is_not_there() -> None:
    with pytest.raises(RecipeError, match=r"data\.GSM.*GSM8K, MATH-500"):
        load_suite("smollm2-135m", SUITES, {"GSM": {"file": "a.jsonl"}})


def test_lm_eval_has_the_tasks_metrics_and_filters_of_the_paper_suite() -> None:
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    homes = ["aime", "minerva_math", "gsm8k", "gpqa/cot_zeroshot", "mmlu/default"]
    folders = [str(root / home) for home in [*homes, "leaderboard/mmlu_pro", "ifeval"]]
    # All of lm-eval's folders together take half a minute.
    manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    for entry in load_suite("paper", SUITES).tasks:
        assert entry.task in manager.all_tasks
        if entry.task in manager.all_groups:
            continue
        config = manager.task_index[entry.task].cfg
        if entry.grader != "task":
            assert config.get("output_type", "generate_until") == "generate_until"
            continue
        assert entry.metric in [metric["metric"] for metric in config["metric_list"]]
        assert entry.filter in [f["name"] for f in config.get("filter_list", [{"name": "none"}])]
        generates = config["output_type"] == "generate_until"
        assert generates == (entry.generation is not None)


def test_the_papers_suite_field_by_field() -> None:
    tasks = {entry.label: entry for entry in load_suite("paper", SUITES).tasks}
    assert {label: (t.domain, t.shots) for label, t in tasks.items()} == {
        "AIME24": ("in", 0),
        "MATH-500": ("in", 0),
        "GSM8K": ("in", 5),
        "GPQA-Diamond": ("out", 0),
        "MMLU": ("out", 5),
        "MMLU-Pro": ("out", 5),
        "IFEval_prompt": ("out", 0),
        "IFEval_inst": ("out", 0),
    }
    assert tasks["MMLU-Pro"].task == "leaderboard_mmlu_pro"
    for task in tasks.values():
        assert (task.limit, task.samples) == (None, 1)
        if task.generation is not None:
            drawn = task.generation.model_dump(exclude_none=True)
            assert drawn == {
                "do_sample": True,
                "temperature": 0.6,
                "top_p": 0.95,
                "max_new_tokens": 4096,
            }
    graders = {label: t.grader for label, t in tasks.items() if t.domain == "in"}
    assert graders == {
        "AIME24": "math_verify",
        "MATH-500": "math_verify",
        "GSM8K": "math_verify_or_number",
    }
    assert tasks["IFEval_prompt"].work == tasks["IFEval_inst"].work


def test_more_samples_go_to_the_tasks_that_sample() -> None:
    samples = {t.label: t.samples for t in load_suite("paper", SUITES, samples=16).tasks}
    assert samples.pop("MMLU") == samples.pop("MMLU-Pro") == 1
    assert set(samples.values()) == {16}
    assert {t.samples for t in load_suite("paper", SUITES).tasks} == {1}
