"""Whole training runs with frozen weights, and one in which something writes into them."""

from __future__ import annotations

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_scalpel.comparison.run_store import stored_table
from mlflow_scalpel.run_warnings import FAILURE_TAG
from tests.projects.test_resume import SHORT, environment, home, newest_run, stage  # noqa: F401

pytestmark = pytest.mark.slow

FROZEN = (
    "'train.freeze={mode: only, layers: 1-2, modules: [q_proj, k_proj], embeddings: frozen, "
    "lm_head: trained}' train.weight_decay=1"
)

# Runs a stage in which a frozen weight is written to just before the checkpoint of step 4.
WRITER = """
import runpy, sys
import torch, transformers

real = transformers.Trainer._save_checkpoint

def save(trainer, model, *arguments, **options):
    if trainer.state.global_step == 4:
        with torch.no_grad():
            dict(trainer.model.named_parameters())["model.layers.0.mlp.up_proj.weight"][0, :3] += 1
    return real(trainer, model, *arguments, **options)

transformers.Trainer._save_checkpoint = save
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


# A base of 4 steps earns no reward, so in GRPO it is weight decay that moves what is trained.
@pytest.mark.parametrize("algorithm", ["sft", "grpo"])
def test_frozen_weights_stay_and_the_others_move(home, training_python, algorithm):  # noqa: F811
    run_id = stage(
        training_python, home, algorithm, f"model=models:/tiny-base/latest {SHORT} {FROZEN}"
    )
    run = MlflowClient().get_run(run_id)
    assert run.data.metrics["frozen/changed_elements"] == 0.0
    trained = 2 * 2 * 32 * 32  # and the output embeddings
    assert int(run.data.params["parameters_trained"]) > trained
    assert (int(run.data.params["parameters_trained"]) - trained) % 32 == 0
    table = stored_table(run_id)
    checked = table[table["metric"] == "frozen/changed_elements"]
    assert checked["step"].tolist() == [0, 2, 4, 6, 8]
    assert (checked["value"] == 0).all()
    assert set(checked["n"]) == {int(run.data.params["tensors_frozen"])}
    assert set(checked["unit"]) == {"elements"}
    last = table[(table["step"] == 8) & (table["metric"] == "weights/relative_frobenius")]
    moving = last["layer"].isin([1, 2]) & last["matrix"].isin(["q_proj", "k_proj"])
    assert moving.sum() == 4
    assert (last[moving]["value"] > 0).all()
    head = last["matrix"] == "lm_head"
    assert (last[head]["value"] > 0).all()
    assert (last[~moving & ~head]["value"] == 0).all()


def test_a_run_whose_frozen_weights_change_fails(home, training_python):  # noqa: F811
    (home / "writer.py").write_text(WRITER)
    settings = f"model=models:/tiny-base/latest {SHORT} {FROZEN}"
    words = ["writer.py", "projects/sft/sft.py", "--set", settings]
    done = training_python.run(words, cwd=home, env=environment(home))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    run = newest_run()
    assert run.info.status == "FAILED"
    said = run.data.tags[FAILURE_TAG]
    assert "step 4: 1 frozen tensors differ" in said
    assert "model.layers.0.mlp.up_proj.weight in 3 elements" in said
    assert run.data.metrics["frozen/changed_elements"] == 3.0
    assert mlflow.get_run(run.info.run_id).data.params["tensors_frozen"]
