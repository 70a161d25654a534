"""What trainers leave on disk: the model within a step, or the command that makes one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlflow_scalpel.checkpoints.external.layouts import (
    find_steps,
    model_in,
    run_directory,
    unnamed_models,
)
from mlflow_scalpel.errors import ScalpelError


def model(directory: Path) -> Path:
    directory.mkdir(parents=True)
    save_file({"a": np.ones(2, np.float32)}, directory / "model.safetensors")
    (directory / "config.json").write_text("{}")
    return directory


def junk(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


def adapter(directory: Path) -> Path:
    junk(directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({}))
    return directory


@pytest.mark.parametrize(
    ("places", "others"),
    [
        # Transformers, TRL, LLaMA-Factory, axolotl: the final model lies beside the steps
        (["checkpoint-20", "checkpoint-40"], ["config.json", "model.safetensors"]),
        # verl, with the critic that is not what was trained
        (
            ["global_step_20/actor/huggingface", "global_step_40/actor/huggingface"],
            ["global_step_20/critic/huggingface/config.json",
             "global_step_20/critic/huggingface/model.safetensors", "global_step_20/data.pt"],
        ),
        # OpenRLHF
        (
            ["global_step20_hf", "global_step40_hf"],
            ["_actor/global_step20/mp_rank_00_model_states.pt", "global_step20/mp_rank_00_x.pt"],
        ),
        (["step_20", "step_40"], []),
        # prime-rl
        (["weights/step_20", "weights/step_40"], ["checkpoints/step_20/trainer/__0_0.distcp"]),
        # DeepSpeed within a Transformers checkpoint
        (["checkpoint-20", "checkpoint-40"], ["checkpoint-20/global_step20/mp_rank_00_x.pt"]),
        # SkyRL
        (["exports/global_step_20/policy", "exports/global_step_40/policy"], []),
        (["20", "40"], ["logs/5/x"]),
        (["iter_0000020/hf", "iter_0000040/hf"], ["iter_0000020/mp_rank_00/model_optim_rng.pt"]),
    ],
)  # fmt: skip
def test_the_model_of_each_step_is_found(tmp_path, places, others):
    made = [model(tmp_path / place) for place in places]
    junk(*(tmp_path / other for other in others))
    assert [(one.step, one.model) for one in find_steps(tmp_path)] == list(
        zip((20, 40), made, strict=True)
    )
    alone = find_steps(made[0])
    assert [(one.step, one.model) for one in alone] == [(20, made[0])]
    assert model_in(alone[0].place) == made[0]


def test_verls_adapter_is_the_model(tmp_path):
    found = adapter(tmp_path / "global_step_5" / "actor" / "lora_adapter")
    (tmp_path / "global_step_5" / "actor" / "huggingface").mkdir()
    (one,) = find_steps(tmp_path)
    assert one.model == found
    assert run_directory(found) == tmp_path


def test_epochs_from_zero_are_steps_from_one(tmp_path):
    for epoch in (0, 1):
        model(tmp_path / f"epoch_{epoch}")
    assert [one.step for one in find_steps(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    ("files", "command"),
    [
        (["actor/model_world_size_8_rank_0.pt"], "verl.model_merger merge --backend fsdp"),
        (["pytorch_model_fsdp_0/__0_0.distcp"], "accelerate merge-weights"),
        (["zero_to_fp32.py", "global_step5/x.pt"], "--safe_serialization"),
        (["mp_rank_00/model_optim_rng.pt"], "AutoBridge.from_hf_pretrained('BASE').export_ckpt"),
        (["trainer/__0_0.distcp"], "dcp_to_torch"),
        (["consolidated.00.pth"], "convert_llama_weights_to_hf.py"),
        (["pytorch_model.bin", "config.json"], "M.from_pretrained("),
        (["policy/weights/x.distcp", "config.yaml"], "convert_dcp_to_hf.py --config"),
        (["weights/__0_0.distcp", "context/model.yaml"], "llm.export_ckpt(path="),
        (["consolidated.safetensors", "params.json"], "convert_mistral_weights_to_hf.py"),
        (["model-q8_0.gguf"], "gguf_file='model-q8_0.gguf'"),
        (["lit_model.pth"], "litgpt convert_from_litgpt"),
        (["hf_model_0001_0.pt"], "torchtune"),
        (["model.safetensors"], "holds no config.json"),
    ],
)  # fmt: skip
def test_what_holds_no_model_names_its_converter(tmp_path, files, command):
    junk(*(tmp_path / "checkpoint-5" / file for file in files))
    (one,) = find_steps(tmp_path)
    assert one.model is None
    assert command in one.why
    assert "\n" not in one.why
    with pytest.raises(ScalpelError) as caught:
        model_in(one.place)
    assert command in str(caught.value)


def test_openrlhfs_shards_alone_name_the_step(tmp_path):
    junk(tmp_path / "_actor" / "global_step20" / "mp_rank_00_model_states.pt")
    junk(tmp_path / "_critic" / "global_step20" / "mp_rank_00_model_states.pt")
    (one,) = find_steps(tmp_path)
    assert "--tag global_step20" in one.why
    assert "global_step20_hf" in one.why


def test_two_directories_of_a_step_are_refused(tmp_path):
    model(tmp_path / "checkpoint-5")
    model(tmp_path / "step_5")
    with pytest.raises(ScalpelError, match=r"checkpoint-5 and .*step_5: are both of step 5"):
        find_steps(tmp_path)


def test_a_directory_without_a_step_takes_the_users(tmp_path):
    here = model(tmp_path / "final")
    assert find_steps(here) == []
    assert [(one.step, one.model) for one in find_steps(here, step=7)] == [(7, here)]


def test_several_models_in_a_step_are_named(tmp_path):
    for name in ("a", "b"):
        model(tmp_path / "step_5" / name)
    (one,) = find_steps(tmp_path)
    assert "holds several models (a, b)" in one.why


def test_links_are_no_further_steps(tmp_path):
    made = model(tmp_path / "run" / "checkpoint-40")
    (tmp_path / "run" / "latest").symlink_to("checkpoint-40")
    (tmp_path / "run" / "step_40").symlink_to("checkpoint-40")
    assert [(one.step, one.model) for one in find_steps(tmp_path / "run")] == [(40, made)]
    (latest,) = find_steps(tmp_path / "run" / "latest")
    assert (latest.step, latest.model) == (40, made)
    assert run_directory(tmp_path / "run" / "latest") == tmp_path / "run"


def test_a_step_that_is_a_link_to_another_disk_is_of_its_own_run(tmp_path):
    model(tmp_path / "disk" / "abc")
    (tmp_path / "run").mkdir()
    step = tmp_path / "run" / "checkpoint-7"
    step.symlink_to(tmp_path / "disk" / "abc")
    assert run_directory(step) == tmp_path / "run"


def test_models_whose_names_say_no_step_are_told(tmp_path):
    model(tmp_path / "run")
    for name in ("checkpoint-5", "merged", "best", "critic"):
        model(tmp_path / "run" / name)
    (tmp_path / "run" / "latest").symlink_to("checkpoint-5")
    found = find_steps(tmp_path / "run")
    told = unnamed_models(tmp_path / "run", found)
    assert told == [tmp_path / "run", tmp_path / "run" / "best", tmp_path / "run" / "merged"]
    assert unnamed_models(tmp_path / "run" / "checkpoint-5", found) == []


def test_epochs_among_steps_are_refused(tmp_path):
    model(tmp_path / "epoch_0")
    model(tmp_path / "step_100")
    with pytest.raises(ScalpelError, match=r"epoch_0 counts epochs and .*step_100 steps"):
        find_steps(tmp_path)


def test_a_step_of_a_directory_of_steps_is_refused(tmp_path):
    model(tmp_path / "checkpoint-5")
    with pytest.raises(ScalpelError, match=r"of steps \(checkpoint-5, ...\).*without --step"):
        find_steps(tmp_path, step=3)
