"""A step of SFT at the size of OLMo-2 1B, against what `mlflow-scalpel plan` says of it."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from gpu_checks.results import Row, not_run, seen, within
from gpu_checks.setup import PROJECTS, Setup, olmo2_1b, random_model, synchronize
from mlflow_scalpel.recipes import load_recipe
from mlflow_scalpel.recipes.base import Architecture
from mlflow_scalpel.training.arguments import sft_fields
from mlflow_scalpel.training.planning import memory, model_size, plan_run
from mlflow_scalpel.training.tiny_base import make_tokenizer

NEAR = 0.2  # how far a plan may be from what is measured
STEPS = 4  # the last one is counted, those between the first and the last are timed

# As in projects/sft/recipes/olmo2-1b.yaml, and with what may be changed there.
PLAIN = "train.use_liger_kernel=false train.gradient_checkpointing=false"
WAYS = {
    "float32, autocast, checkpointing": PLAIN.replace("pointing=false", "pointing=true"),
    "float32, autocast": PLAIN,
    "bfloat16, no autocast": f"{PLAIN} train.dtype=bfloat16 train.bf16=false",
}
LIGER = "bfloat16, Liger"


def _addmm_flops(into: Any, left: Any, right: Any, *rest: Any, **settings: Any) -> int:
    return 2 * left.shape[0] * left.shape[1] * right.shape[1]


# PyTorch's own count stops at `addmm` with a dtype for its result (seen in 2.11), which TRL's head
# uses, and leaves the one in place out.
_addmm_flops._get_raw = True  # type: ignore[attr-defined]
PRODUCTS: Any = dict.fromkeys((torch.ops.aten.addmm, torch.ops.aten.addmm_), _addmm_flops)


@dataclass
class Meter(TrainerCallback):
    """Seconds and peak memory of the steps between, and the FLOPs of the last one."""

    device: str
    seconds: float = 0.0
    peak: int = 0
    flops: int = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stack = contextlib.ExitStack()
        if state.global_step == 1 and self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        if state.global_step == STEPS - 1:
            self._counter = self._stack.enter_context(
                FlopCounterMode(display=False, custom_mapping=PRODUCTS)
            )
        synchronize(self.device)
        self._begin = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        synchronize(self.device)
        self._stack.close()
        step = state.global_step
        if step == STEPS:
            self.flops = self._counter.get_total_flops()
        elif step > 1:
            self.seconds += (time.perf_counter() - self._begin) / (STEPS - 2)
            if self.device.startswith("cuda"):
                self.peak = torch.cuda.max_memory_allocated()


def plan(setup: Setup) -> Iterator[Row]:
    """Memory within a fifth, FLOPs within a fifth, and tokens a second, in three ways."""
    losses: dict[str, float] = {}
    for way, settings in WAYS.items():
        yield from step(setup, way, settings, losses)
    if importlib.util.find_spec("liger_kernel") is None:
        yield not_run(LIGER, "liger_kernel is not installed")
    else:
        settings = WAYS["bfloat16, no autocast"].replace("kernel=false", "kernel=true")
        yield from step(setup, LIGER, settings, losses)
    first, *others = losses
    for way in others:
        yield within(f"{way}: loss of the first step", losses[way], losses[first], 0.01, "nats")


def step(setup: Setup, way: str, settings: str, losses: dict[str, float]) -> Iterator[Row]:
    """Four steps of one way; the loss of the first goes into `losses`."""
    length, batch = (64, 2) if setup.small else (1024, 8)
    given = f"train.per_device_train_batch_size={batch} train.gradient_accumulation_steps=1"
    given += f" train.max_steps={STEPS} checkpoints.count=1"
    recipe: Any = load_recipe(
        "olmo2-1b", PROJECTS / "sft" / "recipes", stage="sft", settings=f"{given} {settings}"
    )
    config = olmo2_1b(setup.small)
    size = model_size(config, recipe)
    planned = memory(size, recipe, length)
    tokens = batch * length

    rng = random.Random(0)
    rows = [
        {
            "input_ids": [rng.randrange(config.vocab_size) for _ in range(length)],
            "completion_mask": [0] * (length // 8) + [1] * (length - length // 8),
        }
        for _ in range(batch * STEPS)
    ]
    fields = sft_fields(recipe, setup.work / "plan", len(rows)) | {"save_strategy": "no"}
    fields.pop("save_steps")
    fields.pop("model_init_kwargs")  # the model is there
    if not setup.on_gpu:
        fields["use_cpu"] = True
    model = random_model(config, getattr(torch, recipe.train.dtype), setup.device)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**fields),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=make_tokenizer(Architecture(), ["add"]),
    )
    meter = Meter(setup.device)
    trainer.add_callback(meter)
    try:
        trainer.train()
    finally:
        print(meter, flush=True)  # in the log, whatever the counting of the last step does
    losses[way] = next(one["loss"] for one in trainer.state.log_history if "loss" in one)

    what = f"{way}: "
    flops = plan_run(recipe, size, sequence_tokens=length).flops / STEPS
    yield seen(f"{what}speed", tokens / meter.seconds, "tokens/s", f"{batch} x {length} tokens")
    yield seen(f"{what}rate", flops / meter.seconds / 1e12, "TFLOP/s", "by the plan's FLOPs")
    counted = float(meter.flops)
    if recipe.train.gradient_checkpointing:
        yield seen(f"{what}FLOPs", counted, "FLOP", f"once more forward; the plan says {flops:.4g}")
    else:
        yield within(f"{what}FLOPs", flops, counted, NEAR, "FLOP", "the plan's; expected: counted")
    parts = ", ".join(
        f"{name} {getattr(planned, name) / 1e9:.2f}"
        for name in ("weights", "gradients", "optimizer", "activations")
    )
    if setup.on_gpu:
        note = f"the plan's; expected: measured; {parts}"
        yield within(f"{what}memory", planned.total / 1e9, meter.peak / 1e9, NEAR, "GB", note)
    else:
        yield not_run(f"{what}memory", f"no GPU; planned {parts} GB")
    del trainer, model
    gc.collect()
    if setup.on_gpu:
        torch.cuda.empty_cache()
