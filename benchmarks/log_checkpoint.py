"""Seconds and bytes that logging a checkpoint takes: ours, MLflow's own, and Transformers'.

    python benchmarks/log_checkpoint.py --gigabytes 1 --server

Random weights of a Llama in bfloat16 are saved with `save_pretrained`; beside them lies an
`optimizer.pt` of twice their size, as AdamW in bfloat16 has it. Then, one after the other:

- `log_checkpoint`: mlflow_scalpel.log_checkpoint(directory), which leaves the optimizer behind;
- `log_model`: mlflow.transformers.log_model(model and tokenizer in memory), which saves them once
  more (MLflow 3.17 also takes a directory, but fails with the pipelines of Transformers 5);
- `MLflowCallback`: on_save of Transformers' callback with HF_MLFLOW_LOG_ARTIFACTS=1, as the Trainer
  calls it, which stores the optimizer too.

`blocked` is until the call returns, which is what training waits for; `ready` is until the model is
READY. `on disk` is what all of the scratch directory takes more than before: checkpoints, stores,
spool; a file with several hard links counts once. What was written before is flushed to the disk
before each call, and each way logs a tiny checkpoint first, so that imports do not count. No way
waits until what it wrote is on the disk itself.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # log_model asks it for a model card
os.environ["HF_MLFLOW_LOG_ARTIFACTS"] = "1"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"

import machine
import mlflow
import torch
from mlflow import MlflowClient
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import MLflowCallback
from transformers.utils.logging import disable_progress_bar

import mlflow_scalpel
from mlflow_scalpel.checkpoints.logging.uploads import close_uploaders

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.servers import Server

LAYERS = 8
VOCABULARY = 8192
STEP = 1
TINY = 0.0005  # GB of the checkpoint that warms up


@dataclass(frozen=True)
class Saved:
    """A checkpoint on the disk, twice: as the Trainer leaves it, and without the optimizer."""

    trainer: Path
    """Holds `checkpoint-1`, with optimizer."""
    bare: Path
    seconds: list[float]
    """That `save_pretrained` took each time."""
    bytes: int
    """Of the weights."""


@dataclass(frozen=True)
class Row:
    """One measurement; seconds, and bytes."""

    way: str
    store: str
    round: int
    blocked_seconds: float
    ready_seconds: float
    disk_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the weights")
    parser.add_argument("--server", action="store_true", help="through an `mlflow server` too")
    parser.add_argument("--rounds", type=int, default=3, help="the table shows the median")
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, default=Path("log_checkpoint.json"))
    arguments = parser.parse_args()
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    disable_progress_bar()
    result: dict[str, Any] = {"gigabytes": arguments.gigabytes}
    result["machine"] = machine.describe(arguments.workdir)
    with tempfile.TemporaryDirectory(dir=arguments.workdir, prefix="benchmark-") as name:
        scratch = Path(name)
        # MLflow's own temporary copies, too, belong to the disk that is measured.
        tempfile.tempdir = str(scratch / "tmp")
        (scratch / "tmp").mkdir()
        tiny = save(scratch / "tiny", TINY)
        saved = save(scratch / "checkpoint", arguments.gigabytes, arguments.rounds)
        result |= {"weights_bytes": saved.bytes, "save_pretrained_seconds": saved.seconds}
        rows = list(measure_store("local", scratch, tiny, saved, arguments.rounds))
        if arguments.server:
            rows += measure_store("server", scratch, tiny, saved, arguments.rounds)
    result["rows"] = [asdict(row) for row in rows]
    print(table(saved, rows))
    machine.write(arguments.json, result)


def save(folder: Path, gigabytes: float, rounds: int = 1) -> Saved:
    """Save a random model of about so many bytes as a Trainer would, as often as asked."""
    directory, bare = folder / f"checkpoint-{STEP}", folder / "bare"
    model = random_llama(gigabytes * 1e9 / 2)
    seconds = []
    for _ in range(rounds):
        shutil.rmtree(directory, ignore_errors=True)
        os.sync()
        begin = time.perf_counter()
        model.save_pretrained(directory)
        seconds.append(time.perf_counter() - begin)
    tokenizer().save_pretrained(directory)
    shutil.copytree(directory, bare, copy_function=os.link)
    moments = {
        name: {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for name in ("exp_avg", "exp_avg_sq")
    }
    torch.save(moments, directory / "optimizer.pt")
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    return Saved(folder, bare, seconds, size)


def random_llama(parameters: float) -> LlamaForCausalLM:
    """A Llama of about so many bfloat16 parameters, in a few layers."""
    per_square = LAYERS * (
        4 + 3 * 2.75
    )  # attention's four matrices and the MLP's three, each layer
    width = (math.sqrt(VOCABULARY**2 + 4 * per_square * parameters) - VOCABULARY) / (2 * per_square)
    hidden = max(64, 64 * round(width / 64))
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=int(2.75 * hidden),
        num_hidden_layers=LAYERS,
        num_attention_heads=hidden // 64,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "word": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<unk>")


def measure_store(
    store: str, scratch: Path, tiny: Saved, saved: Saved, rounds: int
) -> Iterator[Row]:
    """Measure every way against one store, in turn, as often as asked."""
    with tracked(store, scratch) as artifacts:
        for number in range(-1, rounds):
            for way, log in WAYS.items():
                row = measure(way, store, number, log, scratch, saved if number >= 0 else tiny)
                shutil.rmtree(artifacts)
                artifacts.mkdir()
                if number >= 0:
                    print(row, file=sys.stderr)
                    yield row


@contextlib.contextmanager
def tracked(store: str, scratch: Path) -> Iterator[Path]:
    """Track on SQLite, directly or through a server; the directory where files end up."""
    folder = scratch / store
    artifacts = folder / "artifacts"
    artifacts.mkdir(parents=True)
    server = Server(folder)
    if store == "server":
        server.start()
        mlflow.set_tracking_uri(server.uri)
        mlflow.set_experiment("benchmark")
    else:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment("benchmark", artifact_location=artifacts.as_uri())
        mlflow.set_experiment("benchmark")
    try:
        yield artifacts
    finally:
        server.stop()


def measure(
    way: str,
    store: str,
    number: int,
    log: Callable[[Saved], Callable[[], Callable[[], object]]],
    scratch: Path,
    saved: Saved,
) -> Row:
    """Log the checkpoint into a run of its own; raises where it is not READY afterwards."""
    with mlflow.start_run() as run:
        call = log(saved)
        os.sync()
        before = disk_bytes(scratch)
        begin = time.perf_counter()
        wait = call()
        blocked = time.perf_counter() - begin
        wait()
        ready = time.perf_counter() - begin
        close_uploaders()
        added = disk_bytes(scratch) - before
    (model,) = MlflowClient().search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'"
    )
    if str(model.status) != "READY":
        raise RuntimeError(f"{way} left its model {model.status}")
    return Row(way, store, number, blocked, ready, added)


def by_scalpel(saved: Saved) -> Callable[[], Callable[[], object]]:
    directory = saved.trainer / f"checkpoint-{STEP}"
    return lambda: mlflow_scalpel.log_checkpoint(directory, step=STEP).wait


def by_log_model(saved: Saved) -> Callable[[], Callable[[], object]]:
    components = {
        "model": AutoModelForCausalLM.from_pretrained(saved.bare),
        "tokenizer": AutoTokenizer.from_pretrained(saved.bare),
    }

    def call() -> Callable[[], object]:
        mlflow.transformers.log_model(
            components,
            name=f"checkpoint-{STEP}",
            task="text-generation",
            pip_requirements=["torch", "transformers"],  # unless given, it wants torchvision
        )
        return lambda: None

    return call


def by_callback(saved: Saved) -> Callable[[], Callable[[], object]]:
    arguments = TrainingArguments(output_dir=str(saved.trainer), use_cpu=True, report_to="none")
    state = TrainerState(global_step=STEP)
    callback = MLflowCallback()
    callback.setup(arguments, state, None)
    mlflow.flush_async_logging()

    def call() -> Callable[[], object]:
        callback.on_save(arguments, state, TrainerControl())
        return lambda: None

    return call


WAYS: dict[str, Callable[[Saved], Callable[[], Callable[[], object]]]] = {
    "log_checkpoint": by_scalpel,
    "log_model": by_log_model,
    "MLflowCallback": by_callback,
}


def disk_bytes(folder: Path) -> int:
    """Bytes that everything below `folder` takes on the disk, each file once for all its links."""
    taken = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # SQLite's journal comes and goes
                found = os.lstat(os.path.join(parent, name))
                taken[found.st_dev, found.st_ino] = 512 * found.st_blocks
    return sum(taken.values())


def table(saved: Saved, rows: list[Row]) -> str:
    """The medians as a Markdown table; what save_pretrained took is its first row."""
    lines = [
        "| way | store | training is blocked | until READY | on disk |",
        "| --- | --- | ---: | ---: | ---: |",
        f"| `save_pretrained` | | {statistics.median(saved.seconds):.3f} s | "
        f"| {saved.bytes / 1e9:.3f} GB |",
    ]
    for way, store in dict.fromkeys((row.way, row.store) for row in rows):
        same = [row for row in rows if (row.way, row.store) == (way, store)]
        blocked = statistics.median(row.blocked_seconds for row in same)
        ready = statistics.median(row.ready_seconds for row in same)
        added = statistics.median(row.disk_bytes for row in same)
        lines.append(
            f"| `{way}` | {store} | {blocked:.3f} s | {ready:.3f} s | {added / 1e9:.3f} GB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
