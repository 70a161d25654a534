"""The tiny experiment by its own entry points: base, SFT, GRPO, evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from gpu_checks.results import Row, above, at_most, holds, not_run, seen
from gpu_checks.setup import PROJECTS, ROOT, Setup

PATIENCE = 200  # seconds that a stage may take


def environment(work: Path) -> dict[str, str]:
    """Of a stage: its store in `work`, no network, and this source."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    # What names an experiment or a run of another store.
    others = ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID")
    return {
        **{name: value for name, value in os.environ.items() if name not in others},
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "MLFLOW_TRACKING_URI": f"sqlite:///{work}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def begin(setup: Setup, stage: str, settings: str) -> subprocess.Popen[str]:
    """Start a stage of the recipe tiny; what it prints is in WORK/STAGE.log."""
    log = (setup.work / f"{stage}.log").open("w", encoding="utf-8")
    command = [sys.executable, str(PROJECTS / stage / f"{stage}.py"), "--recipe", "tiny"]
    return subprocess.Popen(
        [*command, "--set", settings],
        cwd=setup.work,
        env={**environment(setup.work), **({} if setup.on_gpu else {"CUDA_VISIBLE_DEVICES": ""})},
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(setup: Setup, stage: str, process: subprocess.Popen[str], began: float) -> Row:
    """Wait for a stage; whether it went well, and what it said last where it did not."""
    try:
        code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    seconds = time.monotonic() - began
    said = (setup.work / f"{stage}.log").read_text(encoding="utf-8").strip().splitlines()
    if code != 0:
        print("\n".join(said[-40:]), flush=True)
    note = "" if code == 0 else " / ".join(said[-3:])
    return Row(f"{stage} ends well", "ok" if code == 0 else "off", seconds, "s", note=note)


def runs(setup: Setup) -> Iterator[Row]:
    """Base, then SFT in bfloat16 and GRPO under autocast, then an evaluation of the GRPO run."""
    small = setup.small
    began = time.monotonic()
    # The base is trained on the CPU, whatever there is.
    size = "train.steps=6 text.sequences=300" if small else "train.steps=160 text.sequences=8000"
    settings = f"{size} threads={1 if small else 2}"
    yield end(setup, "base", begin(setup, "base", settings), began)

    length = "train.max_steps=12 checkpoints.count=3 rare_every=2 threads=4"
    if small:
        length = "train.max_steps=2 checkpoints.count=2 train.per_device_train_batch_size=8"
        length += (
            " rare_metrics=[] threads=1 probes.base_style.limit=4 probes.teacher_style.limit=4"
        )
    every = f"{length} checkpoints.trainer_state=true"
    began = time.monotonic()
    both = {
        "sft": f"{every} train.dtype=bfloat16 train.bf16=true",
        "grpo": f"{every} train.bf16=true train.gradient_checkpointing=true",
    }
    if small:  # one after the other, on a machine of few cores
        for stage, settings in both.items():
            yield end(setup, stage, begin(setup, stage, settings), time.monotonic())
    else:
        processes = {stage: begin(setup, stage, settings) for stage, settings in both.items()}
        for stage, process in processes.items():
            yield end(setup, stage, process, began)

    os.environ.update(environment(setup.work))
    os.chdir(setup.work)
    from mlflow import MlflowClient

    client = MlflowClient()
    found = {run.data.tags["scalpel.stage"]: run for run in client.search_runs(["0"])}
    count = 2 if small else 3
    for stage in both:
        run = found[stage]
        yield holds(f"{stage} is FINISHED", run.info.status == "FINISHED", run.info.status)
        models = client.search_logged_models(["0"], f"source_run_id = '{run.info.run_id}'")
        ready = sum(model.status == "READY" for model in models)
        yield holds(f"{stage}: {count} checkpoints READY", ready >= count, f"{ready} READY")
        metrics, name = run.data.metrics, "kl/all_tokens/base_style"
        # And so a small GRPO run, without rewards, moves nothing.
        least = -1.0 if small and stage == "grpo" else 0.0
        yield above(f"{stage}: {name}", metrics.get(name, float("nan")), least, "nats a token")
        yield seen(f"{stage}: hardware", note=run.data.params["hardware"])
        if setup.on_gpu:
            there = torch.cuda.get_device_name(0) in run.data.params["hardware"]
            yield holds(f"{stage} ran on the GPU", there)
        for key in ("cost/wall_seconds", "cost/measuring_seconds"):
            yield seen(f"{stage}: {key}", metrics[key], "s")
    rewards = client.get_metric_history(found["grpo"].info.run_id, "reward")
    best = max((one.value for one in rewards), default=float("nan"))
    # The small base has learned nothing that is rewarded.
    least = -1.0 if small else 0.0
    yield above("grpo: the best mean reward of a step", best, least, "of 1.2")
    norm = found["sft"].data.metrics.get("weights/relative_frobenius/mean", float("nan"))
    yield above("sft: weights/relative_frobenius/mean", norm, 0.0)

    began, run_id = time.monotonic(), found["grpo"].info.run_id
    settings = f"run={run_id} checkpoints=last"
    if small:
        suite = setup.work / "suite.yaml"
        suite.write_text(yaml.safe_dump(few_problems()), encoding="utf-8")
        settings += f" suite={suite} threads=1"
    yield end(setup, "evaluate", begin(setup, "evaluate", settings), began)
    done = {run.data.tags["scalpel.stage"]: run for run in client.search_runs(["0"])}
    scores = {
        key: value
        for key, value in done["evaluate"].data.metrics.items()
        if key.startswith("eval/") and not key.endswith("_stderr")
    }
    yield above("evaluate: scores", float(len(scores)), 0.0, "scores", note=json.dumps(scores))


def few_problems() -> dict[str, Any]:
    """The suite tiny with its first task alone, on four problems."""
    suites = PROJECTS / "evaluate" / "suites"
    suite = yaml.safe_load((suites / "tiny.yaml").read_text(encoding="utf-8"))
    first = suite["tasks"][0] | {"limit": 4, "generation": {"max_new_tokens": 8}}
    return suite | {"tasks": [first], "tasks_folder": str(suites.parent / "tasks")}


def processes(setup: Setup) -> Iterator[Row]:
    """SFT by two processes over NCCL, where there are two GPUs."""
    count = torch.cuda.device_count() if setup.on_gpu else 0
    if count < 2:
        yield not_run("NCCL, two processes", f"{count} GPU(s)")
        return
    began = time.monotonic()
    settings = "train.max_steps=4 checkpoints.count=2 processes=2"
    yield end(setup, "sft", begin(setup, "sft", settings), began)
    yield at_most("two processes", time.monotonic() - began, PATIENCE, "s")
