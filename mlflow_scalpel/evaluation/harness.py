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
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.evaluation.generation import BatchedLM
from mlflow_scalpel.evaluation.grading import last_boxed, math_score
from mlflow_scalpel.evaluation.groups import GroupScore, group_score
from mlflow_scalpel.evaluation.suite import Suite, SuiteTask
from mlflow_scalpel.evaluation.suite_lm import SuiteLM
from mlflow_scalpel.evaluation.tasks import Work, build_works
from mlflow_scalpel.metrics.capabilities.success_rate import clustered_mean

logger = logging.getLogger(__name__)

_WITH_BARS: list[Any] = [lm_eval.api.model, lm_eval.api.task, lm_eval.models.huggingface]
BUILD_SEED = 1234  # lm-eval's own: order of choices and examples, the same whatever is sampled

SAMPLE_COLUMNS = (
    "domain label kind problem_id sample problem gold completion score tokens finished "
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
    """Completions a problem."""
    ungraded: int
    """Problems whose gold answer the grader cannot read; they are left out."""
    unit: str = "accuracy"
    chat_template: bool = True
    """Whether the problems went through the model's chat template."""
    group: GroupScore | None = None
    """Of a group of tasks, what lm-eval gives for it."""


@dataclass(frozen=True)
class Evaluation:
    """What one run of a suite found."""

    scores: list[Score]
    samples: pd.DataFrame
    """A row a problem and sample, with the columns SAMPLE_COLUMNS. `problem_id` is a digest of
    problem and gold answer; `tokens` and `finished` (ended before the token limit) are null for
    tasks that compare likelihoods, and `score` is NaN where the grader gave none."""


class Evaluator:
    """A suite and a model, ready to run; building it costs seconds, a run what generation costs.

    `model_directory` is a directory or a hub name; its tokenizer and chat template serve every set
    of weights. A system prompt goes before every problem. The engine `vllm` takes a directory, half
    a minute to start, and `vllm_gpu_memory_utilization` of the GPU's memory. Raises ScalpelError
    where a task, its data or the model cannot be had, before anything is generated.
    """

    def __init__(
        self,
        model_directory: str | Path,
        suite: Suite,
        *,
        system_prompt: str | None = None,
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
        """What the model read of each label, kind and problem ID that it generated for."""
        with _quiet(), _own_random(BUILD_SEED):
            self._works = build_works(suite)
            tokenizer = _load_tokenizer(str(model_directory))
            self._lm: SuiteLM
            if engine == "vllm":
                from mlflow_scalpel.evaluation.vllm_engine import VllmLM

                self._lm = VllmLM(
                    Path(model_directory),
                    tokenizer,
                    batch_size=batch_size,
                    dtype=dtype,
                    gpu_memory_utilization=vllm_gpu_memory_utilization,
                )
            else:
                model = _load_model(str(model_directory), dtype, device)
                base = Path(model_directory)
                self._lm = BatchedLM(model, tokenizer, batch_size=batch_size, base=base)
        if any(task.chat_template for task in suite.tasks):
            self._check_chat_template(str(model_directory))

    def load_weights(self, directory: str | Path) -> None:
        """Take the weights of another checkpoint of the same model, in place.

        Raises ScalpelError that names the tensor where names or shapes differ; the weights are
        then those that were there before.
        """
        self._lm.load_weights(Path(directory))

    def run(self, seed: int | None = None, title: str = "the model") -> Evaluation:
        """Generate, grade and score every task; `title` names the weights to who watches.

        The same seed (None: the evaluator's) gives the same samples on one machine with one
        batch size; the process's own random state is left as it was.
        """
        with _quiet(), _own_random(BUILD_SEED):
            torch.manual_seed(self.seed if seed is None else seed)
            self._lm.lengths.clear()
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

    def _check_chat_template(self, model: str) -> None:
        if self._lm.tokenizer.chat_template is None:
            raise ScalpelError(
                f"{model}: the tokenizer has no chat template; add chat_template.jinja to it, or "
                "set chat_template: false for the suite's tasks, or evaluate a model that was "
                "tuned to chat"
            )
        if self.system_prompt is None:
            return
        turns = [
            {"role": "system", "content": self.system_prompt},
            {"role": "user", "content": "?"},
        ]
        if self.system_prompt.strip() not in self._lm.apply_chat_template(turns):
            raise ScalpelError(
                f"{model}: its chat template leaves out the system prompt "
                f"{self.system_prompt[:60]!r}; set system_prompt to null, or mend the template"
            )

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
                    system_instruction=self.system_prompt,
                    apply_chat_template=entry.chat_template,
                    fewshot_as_multiturn=entry.chat_template,
                    chat_template=self._lm.apply_chat_template if entry.chat_template else None,
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
        for task in work.tasks:
            problems = by_task.setdefault(task.task_name, [])
            groups: dict[int, list[Instance]] = {}
            for request in task.instances:
                groups.setdefault(request.doc_id, []).append(request)
            grades = [_grade(task, entry, sample) for sample in range(entry.samples)]
            for number, requests in groups.items():
                scores = [grade[number] for grade in grades]
                problems.append([score for part in scores for score in part])
                about = _describe(task, requests, entry)
                if entry.generation is not None:
                    key = (entry.label, entry.kind, about["problem_id"])
                    self.prompts[key] = requests[0].args[0]
                for sample, part in enumerate(scores):
                    row = {"sample": sample, "score": float(np.mean(part))}
                    rows.append({**about, **row, **self._completion(requests, sample)})
        count = sum(map(len, by_task.values()))
        for name, problems in by_task.items():
            by_task[name] = [scores for scores in problems if not np.isnan(scores).any()]
        graded = [scores for problems in by_task.values() for scores in problems]
        if len(graded) < count:
            logger.warning(
                "%s: the gold answer of %d of %d problems cannot be read; they are left out",
                entry.metric_name,
                count - len(graded),
                count,
            )
        score = Score(
            entry.metric_name,
            *clustered_mean(graded),
            len(graded),
            entry.samples,
            count - len(graded),
            chat_template=entry.chat_template,
            group=None if work.group is None else group_score(work.group, entry, by_task),
        )
        return score, rows

    def _completion(self, requests: list[Instance], sample: int) -> dict[str, Any]:
        if requests[0].request_type == "generate_until":
            tokens, finished = self._lm.lengths[id(requests[0])][sample]
            text = requests[0].resps[sample]
            return {"completion": text, "tokens": tokens, "finished": finished}
        likeliest = max(requests, key=lambda request: request.resps[0][0])
        return {"completion": likeliest.args[1].strip(), "tokens": None, "finished": None}


def _grade(task: Any, entry: SuiteTask, sample: int) -> dict[int, list[float]]:
    """Scores of one sample of each problem, by document; several where the metric gives several."""
    clones = [replace(one, resps=[one.resps[sample]], filtered_resps={}) for one in task.instances]
    for ensemble in task._filters:
        if ensemble.name == entry.filter:
            ensemble.apply(clones)
    groups: dict[int, list[Instance]] = {}
    for clone in clones:
        groups.setdefault(clone.doc_id, []).append(clone)
    scores = {}
    for number, requests in groups.items():
        requests.sort(key=lambda request: request.idx)
        doc = requests[0].doc
        if entry.grader != "task":
            gold = _gold(_target(task, doc, entry), entry)
            scores[number] = [math_score(requests[0].resps[0], gold, entry.grader)]
            continue
        filtered = [request.filtered_resps[entry.filter] for request in requests]
        value = task.process_results(doc, filtered)[entry.metric]
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(v, bool | int | float | np.number) for v in values):
            raise ScalpelError(
                f"{entry.metric_name}: metric {entry.metric} of the task {entry.task} is "
                f"{value!r} for a problem and no accuracy; name another metric"
            )
        scores[number] = [float(v) for v in values]
    return scores


def _describe(task: Any, requests: list[Instance], entry: SuiteTask) -> dict[str, Any]:
    doc = requests[0].doc
    problem = doc.get("problem")
    problem = problem if isinstance(problem, str) else str(task.doc_to_text(doc))
    target = _target(task, doc, entry)
    digest = hashlib.sha256(f"{problem}\0{target}".encode()).hexdigest()[:16]
    return {
        "domain": entry.domain,
        "label": entry.label,
        "kind": entry.kind,
        "chat_template": entry.chat_template,
        "problem_id": digest,
        "problem": problem,
        "gold": _gold(target, entry),
    }


def _target(task: Any, doc: dict[str, Any], entry: SuiteTask) -> str:
    target = doc.get("answer") if entry.generation is not None else None
    if target is None:
        target = task.doc_to_target(doc)
        if isinstance(target, int) and task.OUTPUT_TYPE == "multiple_choice":
            target = task.doc_to_choice(doc)[target]
    return str(target)


def _gold(target: str, entry: SuiteTask) -> str:
    """The answer within a task's target: what the suite's pattern finds, a boxed one, or all."""
    found = re.search(entry.gold_pattern, target) if entry.gold_pattern is not None else None
    if found is not None:
        return found.group(1).strip()
    boxed = last_boxed(target)
    return target if boxed is None else boxed


def _load_tokenizer(model: str) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(
            model, local_files_only=Path(model).is_dir(), trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise _not_loaded(model, error) from error


def _load_model(model: str, dtype: str, device: str | None) -> Any:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model,
            dtype=getattr(torch, dtype),
            local_files_only=Path(model).is_dir(),
            trust_remote_code=False,
            use_safetensors=True,  # the other formats are pickles
        )
    except (OSError, ValueError) as error:
        raise _not_loaded(model, error) from error
    return loaded.to(device)


def _not_loaded(model: str, error: Exception) -> ScalpelError:
    return ScalpelError(
        f"model {model}: it cannot be loaded: {error}. Give a directory with config.json, "
        "tokenizer and safetensors files, or a name on the hub"
    )


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
