"""The command that makes a Hugging Face model of what a trainer left, by the files that are there.

The commands are the trainers' own; none of them is run here, and no file is opened.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

_FORMAT = "save the base's config.json and tokenizer beside the result"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_STATE = ("optimizer", "scheduler", "scaler", "rng_state", "training_args", "random_states")


def how_to_convert(directory: Path) -> str:
    """The layout of a directory without safetensors, and the command that converts it; one line."""
    return converted_by(directory) or (
        "holds no .safetensors file; save the model with "
        "save_pretrained(..., safe_serialization=True)"
    )


def converted_by(directory: Path) -> str | None:
    """The same where the layout is known; None where it is not."""
    return next((text for layout in _LAYOUTS if (text := layout(directory)) is not None), None)


def _verl(directory: Path) -> str | None:
    shard = _first(directory, "model_world_size_*_rank_*.pt")
    megatron = None if shard else _first(directory, "dist_ckpt/*")
    actor = shard.parent if shard else megatron.parent.parent if megatron else None
    if actor is None:
        return None
    backend = "fsdp" if shard else "megatron"
    return (
        f"{_named(directory, actor)} holds verl's shards, and no model; merge them with: "
        f"python -m verl.model_merger merge --backend {backend} --local_dir {_q(actor)} "
        f"--target_dir {_q(actor / 'huggingface')}"
    )


def _nemo_rl(directory: Path) -> str | None:
    weights, config = directory / "policy" / "weights", directory / "config.yaml"
    if not (weights.is_dir() and config.is_file()):
        return None
    return (
        "holds NeMo RL's shards, and no model; convert them with: "
        f"python examples/converters/convert_dcp_to_hf.py --config {_q(config)} "
        f"--dcp-ckpt-path {_q(weights)} --hf-ckpt-path {_q(directory / 'hf')}"
    )


def _accelerate(directory: Path) -> str | None:
    shard = _first(directory, "pytorch_model_fsdp_*/*.distcp")
    if shard is None:
        return None
    return (
        f"{_named(directory, shard.parent)} holds FSDP's shards, and no model; merge them with: "
        f"accelerate merge-weights {_q(shard.parent)} {_q(shard.parent.parent)} ({_FORMAT})"
    )


def _megatron(directory: Path) -> str | None:
    state = (
        _first(directory, "mp_rank_*/model_optim_rng.pt")
        or _first(directory, "common.pt")
        or _first(directory, "run_config.yaml")
    )
    if state is None:
        return None
    return (
        "holds a Megatron checkpoint, and no model; export it with: "
        'python -c "from megatron.bridge import AutoBridge; '
        "AutoBridge.from_hf_pretrained('BASE').export_ckpt("
        f"'{directory}', '{directory}_hf')\""
    )


def _deepspeed(directory: Path) -> str | None:
    state = _first(directory, "mp_rank_*_model_states.pt") or _first(directory, "*_optim_states.pt")
    script = directory / "zero_to_fp32.py"
    if state is None and not script.is_file():
        return None
    if script.is_file():
        command = f"python {_q(script)} {_q(directory)} {_q(directory)} --safe_serialization"
    else:  # the step is a tag of the directory that holds it
        assert state is not None
        home, tag = state.parent.parent, state.parent.name
        result = home.parent / f"{tag}_hf" if home.name == "_actor" else home / f"{tag}_hf"
        command = (
            f"python {_q(home / 'zero_to_fp32.py')} {_q(home)} {_q(result)} --tag {tag} "
            "--safe_serialization"
        )
    return f"holds DeepSpeed's shards, and no model; merge them with: {command} ({_FORMAT})"


def _distributed(directory: Path) -> str | None:
    shard = _first(directory, "*.distcp")
    if shard is None:
        return None
    result = directory / "pytorch_model.bin"
    return (
        f"{_named(directory, shard.parent)} holds PyTorch's distributed checkpoint (DCP), and no "
        "model; where the trainer can store Hugging Face weights too (prime-rl: weights/step_N), "
        "give these, else convert it with: python -m torch.distributed.checkpoint.format_utils "
        f"dcp_to_torch {_q(shard.parent)} {_q(result)}, load that into the model, and "
        "save_pretrained"
    )


def _nemo(directory: Path) -> str | None:
    if not ((directory / "weights").is_dir() and (directory / "context").is_dir()):
        return None
    return (
        'holds a NeMo checkpoint, and no model; export it with: python -c "from nemo.collections '
        f"import llm; from pathlib import Path as P; llm.export_ckpt(path=P('{directory}'), "
        f"target='hf', output_path=P('{_beside(directory)}'))\""
    )


def _mistral(directory: Path) -> str | None:
    """Mistral's own names of tensors, which a config.json beside them would not change."""
    if not (directory / "params.json").is_file() or (directory / "model.safetensors").is_file():
        return None
    if not any(directory.glob("consolidated*.safetensors")):
        return None
    return (
        "holds Mistral's own consolidated.safetensors, and no model; convert it with Transformers' "
        "script: python src/transformers/models/mistral/convert_mistral_weights_to_hf.py "
        f"{_q(directory)} {_q(_beside(directory))}"
    )


def _gguf(directory: Path) -> str | None:
    file = next(iter(sorted(directory.glob("*.gguf"))), None)
    if file is None:
        return None
    return (
        f"holds {file.name}, and no .safetensors file; give the model that it was made of, or what "
        'Transformers makes of it: python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{directory}', gguf_file='{file.name}')"
        f".save_pretrained('{_beside(directory)}')\""
    )


def _consolidated(directory: Path) -> str | None:
    if _first(directory, "consolidated.*.pth") is None:
        return None
    return (
        "holds Meta's consolidated.*.pth, and no model; convert it with Transformers' script: "
        "python src/transformers/models/llama/convert_llama_weights_to_hf.py "
        f"--input_dir {_q(directory)} --model_size SIZE --output_dir {_q(_beside(directory))}"
    )


def _litgpt(directory: Path) -> str | None:
    if not (directory / "lit_model.pth").is_file():
        return None
    return (
        "holds LitGPT's lit_model.pth, and no model; convert it with: "
        f"litgpt convert_from_litgpt {_q(directory)} {_q(_beside(directory))}, load the model.pth "
        "that it writes, and save_pretrained"
    )


def _pickles(directory: Path) -> str | None:
    found = sorted(
        file.name
        for pattern in _PICKLES
        for file in directory.glob(pattern)
        if not file.name.startswith(_STATE)
    )
    if not found:
        return None
    names = f"{', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
    what = f"holds no .safetensors file ({names} is a pickle, which is never opened); "
    if (directory / "adapter_config.json").is_file():
        return what + "save the adapter with save_pretrained(..., safe_serialization=True)"
    if any(name.startswith("pytorch_model") for name in found):
        command = (
            "from transformers import AutoModelForCausalLM as M; "
            f"M.from_pretrained('{directory}', dtype='auto').save_pretrained('{directory}')"
        )
        return f'{what}convert it with: python -c "{command}"'
    return (
        f"{what}have the trainer write safetensors (torchtune: FullModelHFCheckpointer with "
        "safe_serialization=True), or load it and save_pretrained"
    )


_LAYOUTS: tuple[Callable[[Path], str | None], ...] = (
    _verl, _nemo_rl, _nemo, _accelerate, _megatron, _deepspeed, _distributed, _consolidated,
    _mistral, _litgpt, _gguf, _pickles,
)  # fmt: skip


def _first(directory: Path, pattern: str) -> Path | None:
    """A file that fits the pattern in the directory or up to three folders below it."""
    for prefix in ("", "*/", "*/*/", "*/*/*/"):
        for file in sorted(directory.glob(prefix + pattern)):
            if not any(part.lower().strip("_").startswith("critic") for part in file.parts):
                return file
    return None


def _named(directory: Path, inner: Path) -> str:
    return inner.relative_to(directory).as_posix() if inner != directory else "it"


def _beside(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}_hf")


def _q(path: Path) -> str:
    return shlex.quote(str(path))
