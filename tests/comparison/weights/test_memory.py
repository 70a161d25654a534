"""Private memory of a pass over two large checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

SHAPES = {
    "self_attn.q_proj": (2048, 2048),
    "self_attn.o_proj": (2048, 2048),
    "mlp.gate_proj": (8192, 2048),
    "mlp.up_proj": (8192, 2048),
    "mlp.down_proj": (2048, 8192),
}
LAYERS = 8  # 940 MB in bfloat16

WATCHED = """
import sys, threading
from pathlib import Path
import torch

def private():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def most_while(call):
    before, most, over = private(), [0], threading.Event()

    def watch():
        while not over.wait(0.005):
            most[0] = max(most[0], private())

    thread = threading.Thread(target=watch)
    thread.start()
    call()
    over.set()
    thread.join()
    print(most[0] - before)

torch.set_num_threads(1)
"""

WEIGHTS = """
from mlflow_scalpel.comparison.weights.files import StoredWeights
from mlflow_scalpel.comparison.weights.rows import weight_rows
from mlflow_scalpel.metrics import choose_metrics
from mlflow_scalpel.metrics.weights import Training

def call():
    base, checkpoint = (StoredWeights(Path(name)) for name in sys.argv[1:])
    assert len(list(weight_rows(base, [(checkpoint, Training(None))], metrics))) > 1000

metrics = choose_metrics(["weights", "histograms"])
most_while(call)
"""

TEXTS = """
from mlflow_scalpel.comparison.forward.divergence import Head, Side, divergences
from mlflow_scalpel.comparison.forward.probes import Probe, ProbeText

vocabulary, hidden, length, count = 49152, 16, 300, 16
items = tuple([ProbeText(tuple(range(length)), slice(100, length))] * count)
probe = Probe("texts", "texts", "", (), items)
states = [torch.randn(length, hidden) for _ in items]
base = Side(states, Head(torch.randn(vocabulary, hidden)))
other = Side([state + 0.1 for state in states], base.head)
few = Probe("texts", "texts", "", (), items[:10])
divergences(few, Side(states[:10], base.head), Side(states[:10], base.head))  # compiles
most_while(lambda: divergences(probe, base, other))
"""


def most(program: str, *arguments: Path) -> int:
    """The most private memory that a call took in a process of its own, in kB."""
    command = [sys.executable, "-c", WATCHED + program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return int(done.stdout)


@pytest.mark.slow
def test_a_pass_over_a_gigabyte_keeps_its_memory_small(tmp_path: Path):
    torch.manual_seed(0)
    drawn = {name: 0.02 * torch.randn(shape) for name, shape in SHAPES.items()}
    moved = {name: weight + 3e-5 * torch.randn(weight.shape) for name, weight in drawn.items()}
    for folder, weights in (("base", drawn), ("checkpoint", moved)):
        directory = tmp_path / folder
        directory.mkdir()
        index = {}
        for layer in range(LAYERS):
            tensors = {f"model.layers.{layer}.{n}.weight": w.bfloat16() for n, w in weights.items()}
            save_file(tensors, directory / f"model-{layer}.safetensors")
            index |= dict.fromkeys(tensors, f"model-{layer}.safetensors")
        content = json.dumps({"weight_map": index})
        (directory / "model.safetensors.index.json").write_text(content)
    assert most(WEIGHTS, tmp_path / "base", tmp_path / "checkpoint") < 1_000_000


@pytest.mark.slow
def test_logits_of_one_slice_make_room_for_those_of_the_next():
    """All of them, of both models, would be 1.9 GB."""
    assert most(TEXTS) < 500_000
