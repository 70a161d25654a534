"""Recipes of the `evaluate` and `compare` stages."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from mlflow_scalpel.recipes.fields import Dtype, Fraction, Recipe


def run_id_of(run: str | None) -> Any:
    """The run ID in `runs:/RUN_ID`, which stands for all checkpoints of the run."""
    if run is None:
        return None
    bare = run.removeprefix("runs:/")
    if "#" in bare:
        raise ValueError(
            f"{run} names one checkpoint, and all of a run are wanted; write runs:/"
            f"{bare.partition('#')[0]}"
        )
    return bare


class EvaluateRecipe(Recipe):
    """A recipe of `mlflow run . -e evaluate`."""

    stage: Literal["evaluate"]
    suite: str
    """Name under projects/evaluate/suites/, or the path of a suite's YAML."""
    data: dict[str, dict[str, Any]] = {}
    """Data of single tasks, by label, in place of all that the suite says of theirs."""
    model: str | None = None
    """One model: a hub name, a local directory, a models:/ URI, or runs:/RUN_ID#step=400."""
    run: str | None = None
    """A training run whose base and checkpoints are evaluated, by its ID or as runs:/RUN_ID; give
    either this or model."""
    checkpoints: Literal["all", "first_and_last", "last"] | PositiveInt = "all"
    """Which of the run's checkpoints: a number takes so many, evenly spaced, the last included."""
    samples: PositiveInt | None = None
    """Completions a problem of every task that samples, for pass@k; null takes the suite's."""
    system_prompt: str | None = None
    """Goes before every problem; for a run, null takes the one it was trained with. An empty one
    switches off what the chat template says by itself."""
    template_date: date | None = None
    """What chat templates write that ask for the current date; null takes the run's, or
    2024-07-26."""
    batch_size: PositiveInt = 64
    dtype: Dtype = "float32"
    device: str | None = None
    """Torch device of every worker; null gives each a GPU in turn, or the CPU without any."""
    workers: PositiveInt | None = None
    """Processes that share out the models, each with one in memory whose weights it swaps; null
    takes one a GPU, or one in all without any GPU, or where a device is given."""
    engine: Literal["hf", "vllm"] = "hf"
    """What generates: Transformers, or vLLM (the extra `mlflow-scalpel[vllm]`)."""
    vllm_gpu_memory_utilization: Fraction = 0.9
    """Share of the GPU's memory that vLLM takes; on a CPU, of the main memory."""
    seed: NonNegativeInt = 0
    """Of the base's samples; those of a checkpoint at step s have seed + s, so that base and
    checkpoint differ by chance as much as the base does from itself (capabilities/lost_null)."""
    gold_loglik: bool = True
    """For a run: the gold answer's log-likelihood under the base, for problems that it gets right,
    and under each checkpoint, for those that it lost. Costs two forward passes a problem, which is
    little beside generating."""
    best: str | None = None
    """A metric of this evaluation (eval/in/sums/greedy ...): the alias best-<run ID> of the
    registered model goes to the run's version with the largest value."""

    _bare_run = field_validator("run")(run_id_of)

    @model_validator(mode="after")
    def _device_of_the_engine(self) -> EvaluateRecipe:
        if self.engine == "vllm" and self.device is not None:
            raise ValueError(
                f"device = {self.device} with engine = vllm, which takes the first GPU of "
                "CUDA_VISIBLE_DEVICES; set that, and device=null"
            )
        return self

    @model_validator(mode="after")
    def _one_model(self) -> EvaluateRecipe:
        if self.model is not None and self.run is not None:
            raise ValueError(
                f"both model = {self.model} and run = {self.run} are given; set one of them to null"
            )
        return self


class CompareRecipe(Recipe):
    """A recipe of `mlflow run . -e compare`."""

    stage: Literal["compare"]
    runs: list[str] = Field(default=[])
    """Training runs to set side by side, two or more: run IDs, or runs:/RUN_ID."""
    title: str = "What post-training did"

    @field_validator("runs")
    @classmethod
    def _bare_runs(cls, runs: list[str]) -> list[str]:
        return [run_id_of(run) for run in runs]
