"""Several processes of a stage: what `accelerate launch` is given, and what it says of a death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from mlflow import MlflowClient

from mlflow_scalpel.errors import RecipeError, ScalpelError
from mlflow_scalpel.recipes import load_recipe, read_recipe
from mlflow_scalpel.run_warnings import FAILURE_TAG
from mlflow_scalpel.runs.processes import launch_options
from mlflow_scalpel.training.session import check_spread

PROJECTS = Path(__file__).parents[2] / "projects"
FILES = PROJECTS / "accelerate"


SCRIPT = """
import os, sys, time
rank = os.environ["RANK"]
{body}
time.sleep(60)
"""


def understood(words: list[str]):
    """The options as accelerate takes them together with their file."""
    parsed = launch_command_parser().parse_args([*words, "script.py"])
    return _validate_launch_command(parsed)[0]


@pytest.mark.parametrize("name", ["zero2", "zero3", "fsdp"])
def test_every_configuration_is_what_accelerate_reads(name):
    config = load_config_from_file(str(FILES / f"{name}.yaml"))
    assert config.mixed_precision == "bf16"
    assert str(config.distributed_type).endswith("FSDP" if name == "fsdp" else "DEEPSPEED")


def test_checkpoints_of_sharded_weights_arrive_whole():
    files = {
        name: yaml.safe_load((FILES / f"{name}.yaml").read_text()) for name in ("zero3", "fsdp")
    }
    assert files["zero3"]["deepspeed_config"]["zero3_save_16bit_model"] is True
    assert files["fsdp"]["fsdp_config"]["fsdp_state_dict_type"] == "FULL_STATE_DICT"


def test_the_papers_recipes_train_under_zero_2():
    for stage, processes in (("sft", 8), ("grpo", 7)):
        recipe = read_recipe(PROJECTS / stage / "recipes" / "olmo2-7b.yaml")
        assert (recipe.sharding, recipe.processes) == ("zero2", processes)
        told = understood(launch_options(processes, recipe.sharding, recipe.train.bf16, FILES))
        assert told.use_deepspeed
        assert (told.zero_stage, told.num_processes, told.mixed_precision) == (2, processes, "bf16")
        assert told.gradient_clipping is None  # `auto`: the recipe's max_grad_norm


def test_fsdp_and_plain_processes():
    told = understood(launch_options(4, "fsdp", True, FILES))
    assert told.use_fsdp
    assert told.fsdp_state_dict_type == "FULL_STATE_DICT"
    assert told.num_processes == 4
    plain = understood(launch_options(2, None, False, FILES))
    assert plain.multi_gpu
    assert (plain.num_processes, plain.mixed_precision) == (2, "no")


def test_one_process_spreads_nothing():
    with pytest.raises(RecipeError, match="sharding = zero2 spreads the model over processes"):
        load_recipe("tiny", PROJECTS / "sft" / "recipes", stage="sft", settings="sharding=zero2")


def test_sharding_that_accelerate_leaves_out_is_told():
    check_spread(None, "MULTI_CPU")
    check_spread("zero2", "DEEPSPEED")
    check_spread("fsdp", "FSDP")
    with pytest.raises(ScalpelError, match=r"sharding = fsdp: accelerate runs .* as MULTI_CPU"):
        check_spread("fsdp", "MULTI_CPU")


@pytest.fixture
def launch(tracking, tmp_path):
    """Starts two processes of a script; what they ended with, what was said, and their run."""

    def launch(body: str):
        (tmp_path / "script.py").write_text(SCRIPT.format(body=body))
        experiment = mlflow.get_experiment_by_name("tests").experiment_id
        run_id = MlflowClient().create_run(experiment).info.run_id
        words = launch_options(2, None, False, tmp_path)
        done = subprocess.run(
            [sys.executable, "-m", "mlflow_scalpel.runs.processes", "launch", *words, "script.py"],
            env={**os.environ, "MLFLOW_RUN_ID": run_id},
            capture_output=True,
            text=True,
            timeout=60,
        )
        run = MlflowClient().get_run(run_id)
        said = [line for line in done.stderr.splitlines() if line]
        return done.returncode, said, (run.info.status, run.data.tags.get(FAILURE_TAG))

    return launch


def test_a_process_that_fails_has_said_it_itself(launch):
    body = 'if rank == "0": print("no such thing; do that", file=sys.stderr); sys.exit(1)'
    code, said, run = launch(body)
    assert (code, said) == (1, ["no such thing; do that"])
    assert run == ("RUNNING", None)  # which is for the stage to end


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_dies_without_a_word_is_named(launch, rank):
    code, said, run = launch(f'if rank == "{rank}": os.kill(os.getpid(), {int(signal.SIGKILL)})')
    assert code == 1
    (line,) = said
    assert line.startswith(f"process {rank} was ended by SIGKILL, ")
    assert "-P resume=" in line
    assert run == ("FAILED", line)
