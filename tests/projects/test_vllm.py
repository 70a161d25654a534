"""GRPO's completions and an evaluation by a real vLLM: opt in with SCALPEL_VLLM=PYTHON (3 minutes).

PYTHON is that of an environment with this project's dependencies and vLLM, on a GPU or a CPU;
docs/how-to/gpus.md has the commands that make one for a CPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from mlflow_scalpel.checkpoints.search import checkpoints_of_run
from mlflow_scalpel.comparison.run_store import stored_samples
from mlflow_scalpel.evaluation.record import SUITE
from mlflow_scalpel.run_warnings import FAILURE_TAG

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("SCALPEL_VLLM" not in os.environ, reason="set SCALPEL_VLLM=PYTHON"),
]

ROOT = Path(__file__).parents[2]
# Heads of 32: vLLM's attention on a CPU has none of 24.
BASE = (
    "architecture.num_attention_heads=3 train.steps=60 text.sequences=4000 train.batch_size=48 "
    "threads=2"
)
GRPO = (
    "train.use_vllm=true train.vllm_mode=colocate train.vllm_gpu_memory_utilization=0.1 "
    "train.vllm_importance_sampling_correction=true train.max_steps=6 checkpoints.count=2 "
    "train.per_device_train_batch_size=32 probes.base_style.limit=4 probes.teacher_style.limit=4 "
    "threads=2"
)

# On a CPU vLLM packs matrices for oneDNN and keeps no others (dispatch_cpu_unquantized_gemm in
# vllm/model_executor/layers/utils.py), so that TRL's colocate mode finds none to write to. Without
# oneDNN it keeps them. With `stale`, vLLM goes on with the weights of the first step.
LAUNCHER = """
import runpy, sys
from vllm import _custom_ops
from trl.generation.vllm_generation import VLLMGeneration

_custom_ops._supports_onednn = False
if sys.argv[1] == "stale":
    VLLMGeneration.sync_weights = lambda self: None
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with a base model in a tracking store of its own."""
    folder = tmp_path_factory.mktemp("vllm")
    shutil.copytree(ROOT / "projects", folder / "projects")
    (folder / "launcher.py").write_text(LAUNCHER)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    run(folder, ["projects/base/base.py"], BASE)
    yield folder
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def trained(home):
    """A GRPO run whose completions came from vLLM."""
    return run(home, ["launcher.py", "fresh", "projects/grpo/grpo.py"], GRPO)


def run(home: Path, script: list[str], settings: str, code: int = 0):
    """Run a stage in vLLM's environment; its MLflow run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run(
        [os.environ["SCALPEL_VLLM"], *script, "--set", settings],
        cwd=home,
        env=kept
        | {
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout[-4000:] + done.stderr[-8000:]
    (newest,) = MlflowClient().search_runs(["0"], max_results=1, order_by=["start_time DESC"])
    return newest


def evaluate(home: Path, settings: str):
    settings += " vllm_gpu_memory_utilization=0.1 threads=2"
    return run(home, ["projects/evaluate/evaluate.py"], settings)


def greedy(evaluated, step: int) -> pd.DataFrame:
    rows = stored_samples(evaluated.info.run_id)
    rows = rows[(rows["kind"] == "greedy") & (rows["step"] == step)]
    columns = ["label", "problem_id", "completion", "tokens", "finished", "score"]
    return rows[columns].reset_index(drop=True)


def test_grpo_with_completions_from_vllm(trained):
    assert trained.info.status == "FINISHED"
    assert 0 < trained.data.metrics["sampling/sampling_logp_difference/mean"] < 0.05
    assert "scalpel.alarm.generator_mismatch" not in trained.data.tags
    assert trained.data.metrics["cost/sequences"] == 6 * 32
    assert trained.data.metrics["cost/tokens_generated"] > 6 * 32
    _, found = checkpoints_of_run(trained.info.run_id)
    assert [(c.step, c.status) for c in found] == [(3, "READY"), (6, "READY")]


def test_a_stale_policy_fails_the_run(home):
    failed = run(
        home,
        ["launcher.py", "stale", "projects/grpo/grpo.py"],
        f"{GRPO} train.learning_rate=0.02 train.warmup_steps=0",
        code=1,
    )
    assert failed.info.status == "FAILED"
    assert "generator_mismatch" in failed.data.tags[FAILURE_TAG]


def test_vllm_answers_as_transformers_does_under_weights_that_go_through_it(home, trained):
    settings = f"run={trained.info.run_id} checkpoints=last"
    by_hf, by_vllm = evaluate(home, settings), evaluate(home, f"{settings} engine=vllm")
    for step in (0, 6):
        pd.testing.assert_frame_equal(greedy(by_hf, step), greedy(by_vllm, step))
    assert list(greedy(by_vllm, 0)["completion"]) != list(greedy(by_vllm, 6)["completion"])
    _, found = checkpoints_of_run(trained.info.run_id)
    fresh = evaluate(home, f"model=models:/{found[-1].model_id} engine=vllm")
    pd.testing.assert_frame_equal(greedy(fresh, 0), greedy(by_vllm, 6))

    rows = [stored_samples(one.info.run_id) for one in (by_hf, by_vllm)]
    # Which sampled answers are right is a matter of each engine's own random numbers.
    golds = [one.loc[one["kind"] == "greedy", "gold_loglik"].dropna() for one in rows]
    assert len(golds[0]) > 10
    pd.testing.assert_series_equal(*golds, atol=1e-4)
    kept = yaml.safe_load(mlflow.artifacts.load_text(f"runs:/{by_vllm.info.run_id}/{SUITE}"))
    assert kept["engine"] == "vllm"
    assert [name for name in kept["versions"] if name.startswith("vllm")]
