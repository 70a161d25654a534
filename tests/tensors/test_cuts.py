"""Fused projections are cut as the models' own forward passes cut them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mlflow_scalpel.tensors.cuts import Cut
from mlflow_scalpel.tensors.files import Header
from mlflow_scalpel.tensors.places import places
from tests.tensors.tiny_families import tiny_model

Pieces = dict[str, Cut]


def cut_tensors(family: str, **fields: Any) -> tuple[Any, dict[str, Pieces]]:
    """A tiny model in float64, and the pieces of each tensor that is cut, by their last name."""
    torch.manual_seed(0)
    model = tiny_model(family, **fields).double().eval()
    model.set_experts_implementation("eager")  # which takes float64
    headers = {
        name: Header(Path("x"), name, "F64", tuple(one.shape), 0, 0)
        for name, one in model.state_dict().items()
    }
    found: dict[str, Pieces] = {}
    for (_, matrix), piece in places(headers, model.config.to_dict()).items():
        if piece.cut is not None:
            found.setdefault(piece.tensor, {})[matrix] = piece.cut
    return model, found


def outputs_of(cut: Cut, shape: tuple[int, ...]) -> list[int]:
    """Which outputs of a projection a piece takes."""
    number = torch.arange(shape[1 if cut.transposed else 0])
    stored = number.expand(*shape) if cut.transposed else number[:, None].expand(*shape)
    return cut.of(stored)[:, 0].tolist()


@torch.inference_mode()
def roles(model: Any, module: str, count: int) -> list[str]:
    """What each output of a fused projection is, seen by changing it at the first position.

    There is one key to look at for the first query: so it changes nothing. A key changes later
    positions only, and a value the first one too.
    """
    ids = torch.tensor([[5, 7, 11, 13]]).expand(count + 1, -1)  # one for each output, and one as is

    def change(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        for row in range(count):
            changed[row, 0, row] += 0.5
        return changed

    hook = model.get_submodule(module).register_forward_hook(change)
    logits = model(input_ids=ids, use_cache=False).logits  # (count + 1, T, V)
    hook.remove()
    moved = (logits - logits[-1]).abs().amax(2) > 1e-11  # (count + 1, T)
    first, later = moved[:-1, 0].tolist(), moved[:-1, 1:].any(1).tolist()
    return [
        "v_proj" if now else "k_proj" if then else "q_proj"
        for now, then in zip(first, later, strict=True)
    ]


SOFTMAX = {
    "phi3": {},
    "phi4_multimodal": {},
    "dbrx": {},
    "mpt": {},
    "gpt2": {},
    "gpt-sw3": {},
    "openai-gpt": {},
    "gpt_bigcode": {"multi_query": True},
    "gpt_bigcode one key a query": {"multi_query": False},
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "bloom": {},
    "persimmon": {},
    "fuyu": {},
    "falcon": {"multi_query": True, "new_decoder_architecture": False},
    "falcon one key a query": {"multi_query": False, "new_decoder_architecture": False},
    "falcon in groups": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "codegen": {},
    "jetmoe": {},
}


@pytest.mark.parametrize("case", SOFTMAX)
def test_queries_keys_and_values(case: str) -> None:
    model, tensors = cut_tensors(case.split()[0], **SOFTMAX[case])
    checked = 0
    for name, pieces in tensors.items():
        if not {"k_proj", "v_proj"} <= pieces.keys():
            continue
        module, shape = name.removesuffix(".weight"), tuple(model.state_dict()[name].shape)
        cut = next(iter(pieces.values()))
        found = roles(model, module, shape[1 if cut.transposed else 0])
        for matrix, one in pieces.items():
            here = {found[output] for output in outputs_of(one, shape)}
            assert here == {matrix}, (name, matrix, here)
        checked += 1
    assert checked


MIXTURES = (
    "qwen3_moe", "mixtral", "gpt_oss", "llama4_text", "aria_text", "granitemoe", "jetmoe",
    "minimax", "deepseek_v3", "lfm2_moe", "jamba", "gemma4_text", "qwen3_5_moe_text",
    "longcat_flash",
)  # fmt: skip
DENSE = (
    "phi3", "phi4_multimodal", "glm", "glm4", "modernbert-decoder", "zamba2", "granitemoehybrid",
    "granitemoeshared", "granitemoe_swa", "minimax_m3_vl_text",
)  # fmt: skip


@pytest.mark.parametrize("family", [*DENSE, *MIXTURES])
@torch.inference_mode()
def test_gate_and_up(family: str) -> None:
    """An MLP's output is an affine function of the scale of `up`, and no such of that of `gate`."""
    model, tensors = cut_tensors(family)
    checked: set[str] = set()
    known = set()  # a module that several layers share is looked at in the first
    for name, pieces in tensors.items():
        ends = {matrix.rpartition(".")[2] for matrix in pieces}
        if ends != {"gate_proj", "up_proj"} or ends & {"q_proj"}:
            continue
        stored = model.state_dict()[name]
        if stored.data_ptr() in known:
            continue
        known.add(stored.data_ptr())
        module = name.removesuffix(".weight").rpartition(".")[0]
        for end in ends:
            scaled = [
                _output(model, module, stored, pieces, end, scale) for scale in (0.5, 1.0, 1.5)
            ]
            bend = (scaled[2] - 2 * scaled[1] + scaled[0]).abs().max()
            straight = float(bend) < 1e-12 * float(scaled[1].abs().max())
            assert straight == (end == "up_proj"), (name, end, bend)
            checked.add(end)
    assert checked == {"gate_proj", "up_proj"}


def _output(
    model: Any, module: str, stored: torch.Tensor, pieces: Pieces, end: str, scale: float
) -> torch.Tensor:
    """What a module gives for random states, with pieces of one name times a number."""
    whole = stored.clone()
    for matrix, cut in pieces.items():
        if matrix.endswith(f"{end}"):
            where = cut.of(torch.arange(stored.numel()).view(stored.shape)).reshape(-1)
            stored.view(-1)[where] *= scale
    states: list[torch.Tensor] = []
    hook = model.get_submodule(module).register_forward_hook(
        lambda _, __, output: states.append(output[0] if isinstance(output, tuple) else output)
    )
    model(input_ids=torch.tensor([[5, 7, 11, 13]]), use_cache=False)
    hook.remove()
    stored.copy_(whole)
    return states[0]


PASSED_ON = {
    "minimax": ("qkv_proj", ["q_proj", "k_proj", "v_proj"]),
    "qwen3_next": ("in_proj_qkvz", ["q", "k", "v", "z"]),
    "qwen3_next gates": ("in_proj_ba", ["b", "a"]),
    "qwen3_5_text": ("in_proj_qkv", ["q", "k", "v"]),
    "mamba": ("in_proj", ["x", "gate"]),
    "falcon_mamba": ("in_proj", ["x", "gate"]),
    "jamba": ("in_proj", ["x", "gate"]),
    "zamba": ("in_proj", ["x", "gate"]),
    "mamba2": ("in_proj", ["gate", "x B C", "dt"]),
    "nemotron_h": ("in_proj", ["gate", "x B C", "dt"]),
    "bamba": ("in_proj", ["gate", "x B C", "dt"]),
    "granitemoehybrid": ("in_proj", ["gate", "x B C", "dt"]),
    "falcon_h1": ("in_proj", ["gate", "x B C", "dt"]),
    "zamba2": ("in_proj", ["gate", "x B C", "dt"]),
    "lfm2": ("in_proj", ["B", "C", "x"]),
    "lfm2_moe": ("in_proj", ["B", "C", "x"]),
    "lfm3": ("in_proj", ["B", "C", "x"]),
}


@pytest.mark.parametrize("case", PASSED_ON)
@torch.inference_mode()
def test_what_a_module_splits_off(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece's outputs are what the forward pass splits off, in that order."""
    splits: list[list[torch.Tensor]] = []
    for owner, name in ((torch, "split"), (torch.Tensor, "split"), (torch.Tensor, "chunk")):
        real = getattr(owner, name)

        def spy(*arguments: Any, real: Any = real, **more: Any) -> Any:
            found = real(*arguments, **more)
            splits.append(list(found))
            return found

        monkeypatch.setattr(owner, name, spy)
    model, tensors = cut_tensors(case.split()[0])
    for key, weight in model.state_dict().items():
        if key.endswith("linear_attn.conv1d.weight"):  # what is split off is then as it came
            weight.zero_()[..., -1] = 1.0
    projection, order = PASSED_ON[case]
    names = [name for name in tensors if name.endswith(f".{projection}.weight")]
    assert names
    for name in names:
        pieces = {matrix.rpartition(".")[2]: cut for matrix, cut in tensors[name].items()}
        made: list[torch.Tensor] = []
        hook = model.get_submodule(name.removesuffix(".weight")).register_forward_hook(
            lambda _, __, output, made=made: made.append(output)
        )
        splits.clear()
        model(input_ids=torch.arange(3, 14)[None], use_cache=False)
        hook.remove()
        shape = tuple(model.state_dict()[name].shape)
        wanted = []
        for group in order:
            outputs = [one for piece in group.split() for one in outputs_of(pieces[piece], shape)]
            wanted.append(made[0][0][:, outputs])  # (T, piece)
        assert any(_same(found, wanted) for found in splits), name


def _same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return len(found) == len(wanted) and all(
        any(
            torch.allclose(like, other, rtol=0, atol=1e-14)
            for other in _ways(got, *one.shape)
            for like in (one, torch.nn.functional.silu(one))
        )
        for got, one in zip(found, wanted, strict=True)
    )


def _ways(got: torch.Tensor, positions: int, width: int) -> list[torch.Tensor]:
    """A result as (T, width), whether positions come first in it or last."""
    if got.numel() != positions * width:
        return []
    return [got.reshape(positions, width), got.reshape(width, positions).T]
