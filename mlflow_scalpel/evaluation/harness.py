"""Runs a suite over one model, or over several sets of its weights, in one process.

    evaluator = Evaluator(base_directory, suite, batch_size=512)
    base = evaluator.run()
    evaluator.load_weights(checkpoint_directory)
    after = evaluator.run()

Tasks, prompts, filters and graders are lm-eval's; the model and the tasks are built once.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import lm_eval.api.model
import lm_eval.api.task
import lm_eval.models.huggingface
import numpy as np
import pandas as pd
import torch
import transformers
from lm_eval.api.instance import Instance

from mlflow_scalpel.chat import DEFAULT_DATE, Messages, check_system_prompt
from mlflow_scalpel.checkpoints.reading.formats import hub_snapshot
from mlflow_scalpel.evaluation.hf_engine import (
    BatchedLM,
    check_tokenizer,
    open_model,
    open_tokenizer,
)
from mlflow_scalpel.evaluation.scoring import (
    UNREADABLE,
    GroupScore,
    gold_within,
    grades_of,
    group_score,
    left_out_words,
    target_of,
)
from mlflow_scalpel.evaluation.suite import Suite, SuiteTask
from mlflow_scalpel.evaluation.suite_lm import SuiteLM
from mlflow_scalpel.evaluation.tasks import Work, build_works
from mlflow_scalpel.metrics.capabilities.intervals import clustered_mean

logger = logging.getLogger(__name__)

_WITH_BARS: list[Any] = [lm_eval.api.model, lm_eval.api.task, lm_eval.models.huggingface]
BUILD_SEED = 1234  # lm-eval's own: order of choices and examples, the same whatever is sampled

SAMPLE_COLUMNS = (
    "domain label kind problem_id sample problem gold completion score unscored tokens finished "
    "chat_template"
).split()


@dataclass(frozen=True)
class Score:
    """One number of an evaluation."""

    metric: str
    """`eval/<domain>/<label>/<kind>`."""
    value: float
    """Mean over the problems of the mean over their samples; NaN where no problem was graded."""
    stderr: float
    """Standard error over problems, whose samples belong together; NaN for a single problem."""
    n: int
    """Problems that were graded."""
    samples: int
    """Completions per problem."""
    ungraded: int
    """Problems whose gold answer the grader cannot read; they are left out."""
    not_graded: int = 0
    """Problems with an answer that takes too long to compare; they are left out too."""
    unit: str = "accuracy"
    chat_template: bool = True
    """Whether the problems went through the model's chat template."""
    group: GroupScore | None = None
    """Of a group of tasks, what lm-eval gives for it."""
    crowded: int = 0
    """Problems whose prompt left fewer tokens of the model's context than the task allows."""


@dataclass(frozen=True)
class Evaluation:
    """The result of one run of a suite."""

    scores: list[Score]
    samples: pd.DataFrame
    """A row a problem and sample, with the columns SAMPLE_COLUMNS. `problem_id` is a digest of
    problem and gold answer; `tokens` and `finished` (ended before the token limit) are null for
    tasks that compare likelihoods, and `score` is NaN where the grader gave none; `unscored` says
    why, in the words of `comparison.capabilities.LEFT_OUT`."""


class Evaluator:
    """A suite and a model, ready to run; building it costs seconds, a run what generation costs.

    `model_directory` is a directory or a hub name; its tokenizer and chat template serve every set
    of weights, and write `template_date` where they write a date. A system prompt goes before every
    problem; an empty one switches off what the template says by itself. The engine `vllm` takes a
    directory, half a minute to start, and `vllm_gpu_memory_utilization` of the GPU's memory. Raises
    ScalpelError where a task, its data or the model cannot be had, or the template does not take
    the system prompt, before anything is generated.
    """

    def __init__(
        self,
        model_directory: str | Path,
        suite: Suite,
        *,
        system_prompt: str | None = None,
        template_date: date = DEFAULT_DATE,
        batch_size: int = 64,
        dtype: str = "float32",
        device: str | None = None,
        seed: int = 0,
        engine: Literal["hf", "vllm"] = "hf",
        vllm_gpu_memory_utilization: float = 0.9,
    ) -> None:
        self.suite = suite
        self.system_prompt = system_prompt
        self.seed = seed
        self.prompts: dict[tuple[str, str, str], str] = {}
        """The prompt of each label, kind and problem ID that the model generated for."""
        with _quiet(), _own_random(BUILD_SEED):
            self._works = build_works(suite)
            tokenizer = open_tokenizer(str(model_directory), template_date)
            self._base = Path(model_directory)
            if not self._base.is_dir():
                self._base = hub_snapshot(str(model_directory))
            self._system: Messages = []
            if any(task.chat_template for task in suite.tasks):
                what = f"{model_directory}: its chat template"
                self._system = check_system_prompt(tokenizer, system_prompt, what=what)
            self._lm: SuiteLM
            if engine == "vllm":
                from mlflow_scalpel.evaluation.vllm_engine import VllmLM

                self._lm = VllmLM(
                    self._base,
                    tokenizer,
                    batch_size=batch_size,
                    dtype=dtype,
                    gpu_memory_utilization=vllm_gpu_memory_utilization,
                )
            else:
                model = open_model(self._base, dtype, device)
                self._lm = BatchedLM(model, tokenizer, batch_size=batch_size)

    def load_weights(self, directory: str | Path) -> None:
        """Take the weights of another checkpoint of the same model.

        Raises ScalpelError that names what differs where it is of another model, or where it cannot
        be opened; the weights are then those that were there before.
        """
        check_tokenizer(self._base, Path(directory))
        self._lm.load_weights(Path(directory))

    def run(self, seed: int | None = None, title: str = "the model") -> Evaluation:
        """Generate, grade and score every task; `title` names the weights to who watches.

        The same seed (None: the evaluator's) gives the same samples on one machine with one
        batch size; the process's own random state is left as it was.
        """
        with _quiet(), _own_random(BUILD_SEED):
            torch.manual_seed(self.seed if seed is None else seed)
            self._lm.lengths.clear()
            self._lm.crowded.clear()
            self._answer_requests(title)
            parts = [self._graded(work, entry) for work in self._works for entry in work.entries]
        order = {task.metric_name: place for place, task in enumerate(self.suite.tasks)}
        parts.sort(key=lambda part: order[part[0].metric])
        rows = [row for _, part in parts for row in part]
        return Evaluation([score for score, _ in parts], pd.DataFrame(rows, columns=SAMPLE_COLUMNS))

    def loglikelihoods(self, pairs: list[tuple[str, str]]) -> list[float]:
        """log p(text | context) in nats, summed over the tokens, of each (context, text).

        Under the weights that are loaded. A text without a token, or that does not fit into the
        model's context together with its own, has NaN.
        """
        return self._lm.log_probabilities(pairs)

    def _render(self, turns: Messages, add_generation_prompt: bool = True) -> str:
        """A task's turns as text; lm-eval passes over a system prompt that is empty."""
        if self._system and not self.system_prompt and turns[0]["role"] != "system":
            turns = [*self._system, *turns]
        return self._lm.apply_chat_template(turns, add_generation_prompt)

    def _answer_requests(self, title: str) -> None:
        """Build every task's prompts and get the model's answers, all tasks together."""
        requests: dict[str, list[Instance]] = {}
        labels = {}
        for work in self._works:
            entry = work.entries[0]
            for task in work.tasks:
                task.set_fewshot_seed(BUILD_SEED)
                task.build_all_requests(
                    limit=entry.limit,
                    system_instruction=self.system_prompt or None,
                    apply_chat_template=entry.chat_template,
                    fewshot_as_multiturn=entry.chat_template,
                    chat_template=self._render if entry.chat_template else None,
                    tokenizer_name=self._lm.tokenizer_name,
                )
                for request in task.instances:
                    labels[id(request)] = entry.label
                    clones = [request] * entry.samples
                    requests.setdefault(request.request_type, []).extend(clones)
        for kind, clones in requests.items():
            self._lm.announce(title, {id(clone): labels[id(clone)] for clone in clones})
            lm_eval.models.huggingface.tqdm = self._lm.bar  # put back by _quiet
            for request, answer in zip(clones, getattr(self._lm, kind)(clones), strict=True):
                request.resps.append(answer)

    def _graded(self, work: Work, entry: SuiteTask) -> tuple[Score, list[dict[str, Any]]]:
        rows: list[dict[str, Any]] = []
        by_task: dict[str, list[list[float]]] = {}  # the scores of each problem
        crowded = 0
        reasons: list[set[str | None]] = []  # why it has none
        for task in work.tasks:
            problems = by_task.setdefault(task.task_name, [])
            groups: dict[int, list[Instance]] = {}
            for request in task.instances:
                groups.setdefault(request.doc_id, []).append(request)
            grades, unscored = grades_of(task, entry)
            for number, requests in groups.items():
                scores = [grade[number] for grade in grades]
                problems.append([score for part in scores for score in part])
                crowded += any(id(request) in self._lm.crowded for request in requests)
                reasons.append(set())
                about = _describe(task, requests, entry)
                if entry.generation is not None:
                    key = (entry.label, entry.kind, about["problem_id"])
                    self.prompts[key] = requests[0].args[0]
                for sample, part in enumerate(scores):
                    mean = float(np.mean(part))
                    why = unscored.get((sample, number), UNREADABLE) if np.isnan(mean) else None
                    reasons[-1].add(why)
                    row = {"sample": sample, "score": mean, "unscored": why}
                    rows.append({**about, **row, **self._completion(requests, sample)})
        count = sum(map(len, by_task.values()))
        for name, problems in by_task.items():
            by_task[name] = [scores for scores in problems if not np.isnan(scores).any()]
        graded = [scores for problems in by_task.values() for scores in problems]
        unreadable = sum(UNREADABLE in why for why in reasons)
        too_long = count - len(graded) - unreadable
        if unreadable or too_long:
            logger.warning("%s", left_out_words(entry.metric_name, unreadable, too_long, count))
        score = Score(
            entry.metric_name,
            *clustered_mean(graded),
            len(graded),
            entry.samples,
            unreadable,
            too_long,
            chat_template=entry.chat_template,
            group=None if work.group is None else group_score(work.group, entry, by_task),
            crowded=crowded,
        )
        return score, rows

    def _completion(self, requests: list[Instance], sample: int) -> dict[str, Any]:
        if requests[0].request_type == "generate_until":
            tokens, finished = self._lm.lengths[id(requests[0])][sample]
            text = requests[0].resps[sample]
            return {"completion": text, "tokens": tokens, "finished": finished}
        likeliest = max(requests, key=lambda request: request.resps[0][0])
        return {"completion": likeliest.args[1].strip(), "tokens": None, "finished": None}


def _describe(task: Any, requests: list[Instance], entry: SuiteTask) -> dict[str, Any]:
    doc = requests[0].doc
    problem = doc.get("problem")
    problem = problem if isinstance(problem, str) else str(task.doc_to_text(doc))
    target = target_of(task, doc, entry)
    digest = hashlib.sha256(f"{problem}\0{target}".encode()).hexdigest()[:16]
    return {
        "domain": entry.domain,
        "label": entry.label,
        "kind": entry.kind,
        "chat_template": entry.chat_template,
        "problem_id": digest,
        "problem": problem,
        "gold": gold_within(target, entry),
    }


@contextmanager
def _own_random(seed: int) -> Iterator[None]:
    """Random state of its own for Python and torch, seeded; the caller's comes back afterwards."""
    state = random.getstate()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval without its notes on defaults and its bars for the prompts of each task."""
    log, modules = logging.getLogger("lm_eval"), _WITH_BARS
    level, bars = log.level, [module.tqdm for module in modules]
    shows_bars = transformers.logging.is_progress_bar_enabled()
    log.setLevel(logging.ERROR)
    transformers.logging.disable_progress_bar()
    for module in modules:
        module.tqdm = _no_bar
    try:
        yield
    finally:
        log.setLevel(level)
        for module, bar in zip(modules, bars, strict=True):
            module.tqdm = bar
        if shows_bars:
            transformers.logging.enable_progress_bar()


def _no_bar(items: Any, **_: Any) -> Any:
    return items
