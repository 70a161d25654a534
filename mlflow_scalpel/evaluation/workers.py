"""Shares the models of an evaluation out over processes, each with one engine that stays.

With one worker the same is done in this process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mlflow_scalpel.checkpoints.models.opening import one_line_errors
from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.evaluation.record import Plan, result_file
from mlflow_scalpel.evaluation.suite import Suite
from mlflow_scalpel.recipes.measuring import EvaluateRecipe
from mlflow_scalpel.runs.signals import end_with_parent, interrupt_was_caught

_GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Order:
    """An evaluation, as a worker is given it."""

    recipe: EvaluateRecipe
    suite: Suite
    plan: Plan
    folder: Path
    """The folder of the results."""


class Measurer:
    """One engine that stays, and the weights of one model after the other in it."""

    def __init__(self, order: Order) -> None:
        from mlflow_scalpel.evaluation.harness import Evaluator

        recipe = order.recipe
        self._order = order
        self._evaluator = Evaluator(
            order.plan.base.complete(),
            order.suite,
            system_prompt=order.plan.system_prompt,
            template_date=order.plan.template_date,
            batch_size=recipe.batch_size,
            dtype=recipe.dtype,
            device=recipe.device,
            seed=recipe.seed,
            engine=recipe.engine,
            vllm_gpu_memory_utilization=recipe.vllm_gpu_memory_utilization,
        )

    def measure(self, number: int) -> str | None:
        """Measure model `number` of the plan, and write its result; why not, where it is a gap.

        A checkpoint that cannot be read or measured is a gap, whatever fails. What fails of the
        base, without which there is nothing to compare with, is raised.
        """
        try:
            errors = nullcontext() if number == 0 else one_line_errors()
            with self._order.plan.opened(number) as model, errors:
                self._measure(model, is_base=number == 0)
        except ScalpelError as error:
            if number == 0:
                raise
            return str(error)
        return None

    def _measure(self, model: MeasuredModel, is_base: bool) -> None:
        from mlflow_scalpel.evaluation.gold import score_gold_answers
        from mlflow_scalpel.evaluation.harness import Evaluation
        from mlflow_scalpel.evaluation.results import Result, now

        recipe = self._order.recipe
        self._evaluator.load_weights(model.complete())
        # With the base's seed an unchanged checkpoint would give the base's own samples.
        step = model.step or 0
        found = self._evaluator.run(seed=recipe.seed + step, title=f"step {step}")
        finished = now()
        if recipe.gold_loglik and self._order.plan.run is not None:
            base = None if is_base else self._base_rows()
            rows = score_gold_answers(self._evaluator, found.samples, base)
            found = Evaluation(found.scores, rows)
        Result(found, finished).write(result_file(self._order.folder, model))

    def _base_rows(self) -> Any:
        from mlflow_scalpel.evaluation.results import Result

        path = result_file(self._order.folder, self._order.plan.base)
        while not path.exists():  # the base goes first, so another worker is at it
            time.sleep(0.2)
        return Result.read(path).evaluation.samples


def count_workers(recipe: EvaluateRecipe, models: int) -> int:
    """Workers for so many models: those of the recipe, else one a GPU, else one."""
    wanted = recipe.workers
    if wanted is None and recipe.device is None:
        import torch

        wanted = torch.cuda.device_count()
    return max(1, min(wanted or 1, models))


def measure_all(
    order: Order, numbers: Sequence[int], workers: int, done: Callable[[int, str | None], None]
) -> None:
    """Measure models of the plan, by their numbers in order, and call `done` after each.

    `done` gets the number, and why the model is a gap where it is one. Raises ScalpelError where
    the base cannot be measured, or a worker process dies; the other workers are ended then.
    """
    if not numbers:
        return
    if workers == 1:
        measurer = Measurer(order)
        for number in numbers:
            done(number, measurer.measure(number))
        return
    import mlflow

    os.environ["TQDM_DISABLE"] = "1"  # the bars of several processes would mix
    context = multiprocessing.get_context("spawn")
    gpus = context.SimpleQueue()
    for gpu in _gpus(order.recipe, workers):
        gpus.put(gpu)
    pool = ProcessPoolExecutor(
        workers, context, initializer=_begin, initargs=(order, mlflow.get_tracking_uri(), gpus)
    )
    try:
        futures = {pool.submit(_measure, number): number for number in numbers}
        for future in as_completed(futures):
            done(futures[future], future.result())
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            interrupt_was_caught()
        for child in multiprocessing.active_children():
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise ScalpelError(
                f"one of {workers} worker processes died without a word, as when the system ends "
                "it for want of memory; make room, and take the evaluation up with resume"
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _gpus(recipe: EvaluateRecipe, workers: int) -> list[str | None]:
    """The GPU of each worker, as CUDA_VISIBLE_DEVICES names it; None leaves all as it is."""
    import torch

    count = torch.cuda.device_count()
    if recipe.device is not None or count == 0:
        return [None] * workers
    given = os.environ.get(_GPUS)
    names = given.split(",")[:count] if given else [str(gpu) for gpu in range(count)]
    return [names[worker % count] for worker in range(workers)]


_order: Order | None = None  # of this worker process, as is the next one
_measurer: Measurer | None = None


def _begin(order: Order, tracking_uri: str, gpus: Any) -> None:
    global _order
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this
    end_with_parent()
    # tqdm's own lock is a semaphore of the system, which a process that is ended leaves behind.
    tqdm.set_lock(threading.RLock())
    gpu = gpus.get()
    if gpu is not None:
        os.environ[_GPUS] = gpu  # before torch has looked at any
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    if order.recipe.threads is not None:
        import torch

        torch.set_num_threads(order.recipe.threads)
    _order = order


def _measure(number: int) -> str | None:
    global _measurer
    assert _order is not None  # _begin was here
    if _measurer is None:
        _measurer = Measurer(_order)
    return _measurer.measure(number)
