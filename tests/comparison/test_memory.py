"""Private memory of a pass over two large checkpoints."""

from __future__ import annotations

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

PASS = """
import sys, threading
from pathlib import Path
import torch
from mlflow_scalpel.comparison.weights import StoredWeights, weight_rows
from mlflow_scalpel.metrics import choose_metrics
from mlflow_scalpel.metrics.moments import Training

def private():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

torch.set_num_threads(1)
metrics = choose_metrics(["weights", "histograms"])
before, most, over = private(), [0], threading.Event()

def watch():
    while not over.wait(0.005):
        most[0] = max(most[0], private())

thread = threading.Thread(target=watch)
thread.start()
base, checkpoint = (StoredWeights(Path(name)) for name in sys.argv[1:])
rows = list(weight_rows(base, [(checkpoint, Training(None))], metrics))
over.set()
thread.join()
assert len(rows) > 1000, len(rows)
print(most[0] - before)
"""


@pytest.mark.slow
def test_a_pass_over_a_gigabyte_keeps_its_memory_small(tmp_path: Path):
    torch.manual_seed(0)
    drawn = {name: 0.02 * torch.randn(shape) for name, shape in SHAPES.items()}
    moved = {name: weight + 3e-5 * torch.randn(weight.shape) for name, weight in drawn.items()}
    for folder, weights in (("base", drawn), ("checkpoint", moved)):
        directory = tmp_path / folder
        directory.mkdir()
        for layer in range(LAYERS):
            tensors = {f"model.layers.{layer}.{n}.weight": w.bfloat16() for n, w in weights.items()}
            save_file(tensors, directory / f"model-{layer}.safetensors")
    command = [sys.executable, "-c", PASS, tmp_path / "base", tmp_path / "checkpoint"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert int(done.stdout) < 1_000_000  # kB
    print(f"{int(done.stdout) / 1000:.0f} MB")
