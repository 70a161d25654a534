"""Real runs of a base with a template or an end token of the recipe's: what is learned stops."""

from __future__ import annotations

import json
import os
from pathlib import Path

import mlflow
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlflow_scalpel.checkpoints.reading.pull import resolve
from mlflow_scalpel.checkpoints.search import checkpoints_of_run
from mlflow_scalpel.comparison.run_queries import ClientSource, evaluations_of
from mlflow_scalpel.comparison.run_store import get_run, stored_samples, stored_table
from mlflow_scalpel.run_warnings import FAILURE_TAG, warnings_of
from tests.interpreters import Interpreter

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TURNS = "<|{{ m['role'] }}|>{{ m['content'] }}{{ '<|system|>' if m['role'] == 'assistant' }}"
TEMPLATE = "{% for m in messages %}" + TURNS + "{% endfor %}"
TEMPLATE += "{{ '<|assistant|>' if add_generation_prompt }}"


@pytest.fixture
def home(tracking, make_model, tmp_path) -> Path:
    """A folder with a base, data of one answer, a template, and a suite that asks for it."""
    (tmp_path / "base").symlink_to(make_model(1))
    rows = [
        {"problem": f"{a}+{b}=?", "answer": "ok", "solution": "ok"}
        for a in range(8)
        for b in range(8)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    task = {
        "task": "tiny_problem",
        "label": "say",
        "domain": "in",
        "kind": "greedy",
        "metric": "exact_match",
        "generation": {"max_new_tokens": 12},
        "data": {"file": str(tmp_path / "data.jsonl"), "rows": "0:8"},
    }
    tasks = str(ROOT / "projects/evaluate/tasks")
    suite = yaml.safe_dump({"tasks_folder": tasks, "tasks": [task]})
    (tmp_path / "suite.yaml").write_text(suite)
    return tmp_path


def stage(
    python: Interpreter, home: Path, name: str, settings: str, code: int = 0
) -> tuple[str, str]:
    """Run a stage of its tiny recipe as a process; its run's ID, and what it printed."""
    done = python.run(
        [ROOT / f"projects/{name}/{name}.py", "--set", settings],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_EXPERIMENT_NAME": "tests"},
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    experiment = mlflow.get_experiment_by_name("tests").experiment_id
    (run,) = mlflow.MlflowClient().search_runs(
        [experiment], max_results=1, order_by=["start_time DESC"]
    )
    return run.info.run_id, done.stdout + done.stderr


SFT = (
    "model=base data.generated=null data.where={} data.file=data.jsonl "
    "data.columns.solution=solution 'probes={p: {file: data.jsonl, columns: {solution: solution}, "
    "limit: 4}}' metrics=[kl/all_tokens] rare_metrics=[] train.max_steps=60 "
    "train.learning_rate=3e-3 train.per_device_train_batch_size=16 checkpoints.count=1 threads=1 "
)
EVALUATE = "suite=suite.yaml threads=1 gold_loglik=false"


def test_a_model_learns_to_stop_with_the_recipes_template_and_end_token(home, training_python):
    own = "chat_template=own.jinja 'eos_token=<|system|>'"
    run_id, _ = stage(training_python, home, "sft", SFT + own)
    run = get_run(run_id)
    assert warnings_of(run.data.tags) == []
    assert run.data.params["eos_token"] == "<|system|>"
    _, (checkpoint,) = checkpoints_of_run(run_id)

    # What anybody else pulls says it all, and stops.
    pulled = resolve(f"models:/{checkpoint.model_id}")
    tokenizer = AutoTokenizer.from_pretrained(pulled)
    model = AutoModelForCausalLM.from_pretrained(pulled)
    assert (tokenizer.chat_template, tokenizer.eos_token) == (TEMPLATE, "<|system|>")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+2=?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    made = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    assert tokenizer.decode(made[0]) == "<|user|>1+2=?<|assistant|>ok<|system|>"

    # The base is asked with the same template, and all that it was measured on has it too.
    evaluation, printed = stage(training_python, home, "evaluate", f"{EVALUATE} run={run_id}")
    rows = stored_samples(evaluation)
    assert list(rows[rows["step"] == 60]["completion"]) == ["ok"] * 8
    assert rows[rows["step"] == 60]["finished"].all()
    (text,) = set(stored_table(run_id).query("metric == 'kl/all_tokens'")["texts"])
    assert text.startswith("p sha256:")
    # The untrained base babbles, which is said of both runs.
    assert "few completions ended before the token limit: say (greedy) at step 0" in printed
    for one in (evaluation, run_id):
        assert "at step 60" not in str(warnings_of(get_run(one).data.tags))
        assert "at step 0: 0 of 8" in str(warnings_of(get_run(one).data.tags))
    assert len(evaluations_of(ClientSource(), get_run(run_id))) == 1


def test_an_end_of_turn_that_is_no_end_token_is_told_from_the_start_to_the_end(
    home, training_python
):
    run_id, printed = stage(training_python, home, "sft", SFT + "chat_template=own.jinja")
    assert "Set eos_token: '<|system|>'" in printed
    evaluation, _ = stage(training_python, home, "evaluate", f"{EVALUATE} run={run_id}")
    assert not stored_samples(evaluation)["finished"].any()
    said = str(warnings_of(get_run(run_id).data.tags))
    assert "which ends no completion of this model" in said
    assert "say (greedy) at step 60: 0 of 8" in said


@pytest.mark.parametrize(
    ("template", "settings", "said"),
    [
        ("{{ messages[0].content }}", "", "cuts text out of 64 of 64 answers"),
        (None, "", "never stops"),  # the base's own template ends no turn
        (TEMPLATE, "eos_token=end", "eos_token = 'end': is not a token"),
        (
            TEMPLATE.replace("in messages", "in messages if m['role'] != 'system'"),
            "system_prompt=brief",
            "leaves out the system prompt 'brief'",
        ),
    ],
)
def test_what_cannot_be_right_is_refused_before_the_model_is_loaded(
    home, training_python, template, settings, said
):
    if template is not None:
        (home / "other.jinja").write_text(template)
        settings += " chat_template=other.jinja"
    run_id, printed = stage(training_python, home, "sft", f"{SFT} probes={{}} {settings}", code=1)
    assert said in printed
    assert said in get_run(run_id).data.tags[FAILURE_TAG]
    assert "Loading weights" not in printed
