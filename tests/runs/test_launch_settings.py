"""What `accelerate launch` is told, and what it makes of the configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from mlflow_scalpel.errors import RecipeError, ScalpelError
from mlflow_scalpel.recipes import load_recipe, read_recipe
from mlflow_scalpel.runs.lifecycle import launch_options
from mlflow_scalpel.training.session import check_spread

PROJECTS = Path(__file__).parents[2] / "projects"
FILES = PROJECTS / "accelerate"


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
