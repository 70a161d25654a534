"""Quantised tensors as numbers, by truths of others: Transformers, published formulas, loops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.tensors.quantised import FloatTensors

E4M3 = torch.float8_e4m3fn


def stored(directory: Path, tensors: dict, quantization: dict | None) -> FloatTensors:
    directory.mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, directory / "model.safetensors")
    said = {} if quantization is None else {"quantization_config": quantization}
    (directory / "config.json").write_text(json.dumps(said))
    return FloatTensors(directory)


def shapes(files: FloatTensors) -> dict:
    return {name: header.shape for name, header in files.headers.items()}


def test_fp8_by_blocks_as_transformers_does_it(tmp_path):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    torch.manual_seed(0)
    weight, scale = torch.randn(256, 384).to(E4M3), torch.rand(2, 3) + 0.1
    files = stored(
        tmp_path,
        {"l.weight": weight, "l.weight_scale_inv": scale, "norm.weight": torch.ones(4)},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
    )
    assert shapes(files) == {"norm.weight": (4,), "l.weight": (256, 384)}
    theirs = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32)
    assert torch.equal(files.read("l.weight"), theirs)
    assert files.headers["l.weight"].bytes == 256 * 384 + 6 * 4


@pytest.mark.parametrize("shape", [(130, 200), (3, 130, 200)])
def test_fp8_blocks_that_do_not_go_into_the_matrix(tmp_path, shape):
    torch.manual_seed(0)
    *before, rows, columns = shape
    weight = torch.randn(shape).to(E4M3)
    scale = torch.rand(*before, 2, 2) + 0.1
    files = stored(
        tmp_path,
        {"e.gate_up_proj": weight, "e.gate_up_proj_scale_inv": scale},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
    )
    expected = weight.double().clone()
    for i in range(rows):
        for j in range(columns):
            expected[..., i, j] *= scale[..., i // 128, j // 128].double()
    assert torch.allclose(files.read("e.gate_up_proj").double(), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("scale", [(), (1,), (6, 1), (6,)])
@pytest.mark.parametrize("dtype", [E4M3, torch.float8_e5m2, torch.int8])
def test_scales_of_the_tensor_or_of_its_rows(tmp_path, scale, dtype):
    torch.manual_seed(0)
    weight = (torch.randn(6, 8) * 20).to(dtype)
    scales = torch.rand(scale) + 0.1
    files = stored(
        tmp_path,
        {
            "l.weight": weight,
            "l.weight_scale": scales.bfloat16(),
            "l.input_scale": torch.ones(1),
        },
        {"quant_method": "compressed-tensors"},
    )
    rows = scales.bfloat16().double().reshape(-1, 1)
    assert shapes(files) == {"l.weight": (6, 8)}
    assert torch.allclose(files.read("l.weight").double(), weight.double() * rows, rtol=1e-7)


def test_mxfp4_as_transformers_does_it(tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (2, 6, 3, 16), dtype=torch.uint8)
    scales = torch.randint(120, 131, (2, 6, 3), dtype=torch.uint8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    files = stored(
        tmp_path, {f"{name}_blocks": blocks, f"{name}_scales": scales}, {"quant_method": "mxfp4"}
    )
    theirs = convert_moe_packed_tensors(blocks.clone(), scales.clone(), dtype=torch.float32)
    assert shapes(files) == {name: tuple(theirs.shape)}
    assert torch.equal(files.read(name), theirs)


def test_deepseeks_fp4_experts_beside_fp8_as_transformers_does_it(tmp_path):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    torch.manual_seed(0)
    weight = torch.randint(-128, 128, (8, 32), dtype=torch.int8)
    scale = torch.randint(120, 131, (8, 2), dtype=torch.uint8)
    files = stored(
        tmp_path,
        {"e.weight": weight, "e.weight_scale_inv": scale},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
    )
    theirs = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32)
    assert torch.equal(files.read("e.weight"), theirs)


def packed(values: torch.Tensor, bits: int, order: list[int]) -> torch.Tensor:
    """Unsigned numbers (N, M) along M into int32, the k-th of each word being column order[k]."""
    per = 32 // bits
    words = torch.zeros(len(values), values.shape[1] // per, dtype=torch.int64)
    for row in range(len(values)):
        for word in range(words.shape[1]):
            for k, column in enumerate(order):
                number = int(values[row, word * per + column])
                words[row, word] |= number << (bits * k)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("later", [False, True])
def test_gptq_by_its_formula(tmp_path, bits, later):
    torch.manual_seed(0)
    inputs, outputs, groups = 32, 16, 4
    q = torch.randint(0, 2**bits, (inputs, outputs))
    z = torch.randint(1, 2**bits, (groups, outputs))
    scale = torch.rand(groups, outputs).half()
    of = torch.randint(0, groups, (inputs,), dtype=torch.int32)  # act_order
    plain = list(range(32 // bits))
    tensors = {
        "l.qweight": packed(q.T, bits, plain).T,
        "l.qzeros": packed(z if later else z - 1, bits, plain),
        "l.scales": scale,
        "l.g_idx": of,
        "l.bias": torch.ones(outputs),
    }
    form = {"quant_method": "gptq", "bits": bits, "group_size": inputs // groups}
    if later:
        form["checkpoint_format"] = "gptq_v2"
    files = stored(tmp_path, tensors, form)
    assert shapes(files) == {"l.bias": (outputs,), "l.weight": (outputs, inputs)}
    found = files.read("l.weight")
    for i in range(inputs):
        for o in range(outputs):
            value = (int(q[i, o]) - int(z[of[i], o])) * float(scale[of[i], o])
            assert float(found[o, i]) == pytest.approx(value, rel=1e-6)


def test_awq_by_its_formula(tmp_path):
    torch.manual_seed(0)
    inputs, outputs, groups = 32, 24, 4
    q = torch.randint(0, 16, (inputs, outputs))
    z = torch.randint(0, 16, (groups, outputs))
    scale = torch.rand(groups, outputs).half()
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # AutoAWQ's AWQ_ORDER
    files = stored(
        tmp_path,
        {"l.qweight": packed(q, 4, order), "l.qzeros": packed(z, 4, order), "l.scales": scale},
        {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm"},
    )
    assert shapes(files) == {"l.weight": (outputs, inputs)}
    found = files.read("l.weight")
    for i in range(inputs):
        for o in range(outputs):
            value = (int(q[i, o]) - int(z[i // 8, o])) * float(scale[i // 8, o])
            assert float(found[o, i]) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("nested", [False, True])
def test_nf4_of_bitsandbytes_by_its_formula(tmp_path, nested):
    torch.manual_seed(0)
    table = torch.linspace(-1, 1, 16)
    codes = torch.randint(0, 16, (6 * 64,))
    absmax = torch.rand(6) + 0.5
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [16, 24]}
    parts = {"absmax": absmax, "quant_map": table}
    if nested:
        inner, largest = torch.rand(256), torch.rand(2)
        kept = torch.randint(0, 256, (6,), dtype=torch.uint8)
        state |= {"nested_blocksize": 4, "nested_dtype": "float32", "nested_offset": 0.3}
        parts |= {"absmax": kept, "nested_absmax": largest, "nested_quant_map": inner}
        absmax = torch.tensor([inner[int(c)] * largest[n // 4] + 0.3 for n, c in enumerate(kept)])
    said = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    tensors = {
        "l.weight": (codes[::2] * 16 + codes[1::2]).to(torch.uint8)[:, None],
        "l.weight.quant_state.bitsandbytes__nf4": said,
        **{f"l.weight.{name}": one for name, one in parts.items()},
    }
    files = stored(tmp_path, tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    expected = torch.stack([table[int(c)] * absmax[n // 64] for n, c in enumerate(codes)])
    assert shapes(files) == {"l.weight": (16, 24)}
    assert torch.allclose(files.read("l.weight"), expected.reshape(16, 24), rtol=1e-6)


def test_int8_of_bitsandbytes(tmp_path):
    weight = torch.tensor([[127, -64], [1, 0]], dtype=torch.int8)
    files = stored(
        tmp_path,
        {
            "l.weight": weight,
            "l.SCB": torch.tensor([2.0, 1.0]),
            "l.weight_format": torch.tensor(0, dtype=torch.uint8),
        },
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
    )
    assert shapes(files) == {"l.weight": (2, 2)}
    expected = torch.tensor([[2.0, -128 / 127], [1 / 127, 0.0]])
    assert torch.allclose(files.read("l.weight"), expected, rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("lopsided", [False, True])
def test_packed_integers_of_compressed_tensors(tmp_path, bits, lopsided):
    torch.manual_seed(0)
    half = 2 ** (bits - 1)
    q = torch.randint(-half, half, (8, 32))
    z = torch.randint(-half, half, (8, 2)) if lopsided else torch.zeros(8, 2, dtype=torch.long)
    scale = torch.rand(8, 2)
    plain = list(range(32 // bits))
    tensors = {
        "l.weight_packed": packed(q + half, bits, plain),
        "l.weight_scale": scale,
        "l.weight_shape": torch.tensor([8, 32]),
    }
    if lopsided:
        tensors["l.weight_zero_point"] = packed((z + half).T, bits, plain).T
    files = stored(tmp_path, tensors, {"quant_method": "compressed-tensors"})
    assert shapes(files) == {"l.weight": (8, 32)}
    found = files.read("l.weight")
    for i in range(8):
        for j in range(32):
            value = (int(q[i, j]) - int(z[i, j // 16])) * float(scale[i, j // 16])
            assert float(found[i, j]) == pytest.approx(value, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("tensors", "method", "said"),
    [
        ({"l.weight": torch.ones(4, 4).to(E4M3)}, "fp8", "F8_E4M3 without a scale"),
        ({"l.weight": torch.ones(4, 4, dtype=torch.int8)}, "hqq", "I8 by hqq"),
        ({"l.weight": torch.ones(4, 4, dtype=torch.uint8)}, "quanto", "U8 by quanto"),
        (
            {
                "l.qweight": torch.ones(3, 32, dtype=torch.int32),
                "l.qzeros": torch.ones(1, 3, dtype=torch.int32),
                "l.scales": torch.ones(1, 32),
            },
            "gptq3",
            "of 3 bits",
        ),
    ],
)
def test_what_has_no_way_back_here_is_a_reason_and_never_a_number(tmp_path, tensors, method, said):
    form = {"quant_method": method.rstrip("3"), **({"bits": 3} if "3" in method else {})}
    files = stored(tmp_path, {**tensors, "norm.weight": torch.ones(4)}, form)
    assert files.reasons.keys() == {"l.weight"}
    assert said in files.reasons["l.weight"]
    with pytest.raises(ScalpelError, match="is stored as"):
        files.read("l.weight")
    assert torch.equal(files.read("norm.weight"), torch.ones(4))


@pytest.mark.parametrize(
    "tensors",
    [
        {"l.weight": torch.ones(5, 7).to(E4M3), "l.weight_scale_inv": torch.ones(2, 3)},
        {
            "l.weight_packed": torch.ones(4, 4, dtype=torch.int32),
            "l.weight_scale": torch.ones(4, 1),
            "l.weight_shape": torch.tensor([], dtype=torch.int64),
        },
        {
            "l.weight": torch.ones(4, 1, dtype=torch.uint8),
            "l.weight.absmax": torch.ones(1),
            "l.weight.quant_map": torch.ones(16),
            "l.weight.quant_state.bitsandbytes__nf4": torch.tensor([123, 34], dtype=torch.uint8),
        },
        {
            "l.qweight": torch.ones(4, 4, dtype=torch.int32),
            "l.qzeros": torch.ones(1, 1, dtype=torch.int32),
            "l.scales": torch.ones(0, 4),
        },
    ],
)
def test_parts_that_do_not_fit_are_an_error_by_name(tmp_path, tensors):
    files = stored(tmp_path, tensors, {"quant_method": "any", "weight_block_size": ["a"]})
    with pytest.raises(ScalpelError, match="do not fit each other"):
        print([files.read(name).shape for name in files.headers])


def test_a_model_that_is_not_quantised_is_read_as_it_is(tmp_path):
    tensors = {
        "a.weight": torch.randn(3, 4).bfloat16(),
        "position_ids": torch.arange(4),
        "a.k_scale": torch.ones(1),
    }
    files = stored(tmp_path, tensors, None)
    assert shapes(files) == {"a.weight": (3, 4), "a.k_scale": (1,)}
    assert files.as_stored
    assert not files.quantised
    assert files.read("a.weight").dtype == torch.bfloat16
