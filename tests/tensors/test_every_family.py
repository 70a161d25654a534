"""Every weight of every causal family of Transformers is measured once, and under its own name."""

from __future__ import annotations

import json
import math
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mlflow_scalpel.comparison.weights.files import StoredWeights
from mlflow_scalpel.comparison.weights.rows import weight_rows
from mlflow_scalpel.metrics import choose_metrics
from mlflow_scalpel.metrics.weights import Training
from mlflow_scalpel.tensors.places import PARTS
from tests.tensors.tiny_families import FAMILIES, LEFT_OUT, tiny_model

# Dense, mixtures in three layouts, fused and interleaved projections, state spaces, convolutions,
# several stacks, a tower, a tied head.
FEW = (
    "llama", "gpt2", "gpt_neox", "falcon", "phi3", "gpt_oss", "llama4_text", "qwen3_moe",
    "qwen3_next", "afmoe", "mamba2", "lfm2", "gemma3", "xlm", "minimax",
)  # fmt: skip


@pytest.mark.parametrize("family", FEW)
def test_every_weight_of_a_family_is_measured_once(family: str, tmp_path: Path) -> None:
    check_family(family, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", [one for one in FAMILIES if one not in FEW])
def test_every_weight_of_every_family_is_measured_once(family: str, tmp_path: Path) -> None:
    if family in LEFT_OUT:
        pytest.skip(LEFT_OUT[family])
    check_family(family, tmp_path)


def check_family(family: str, directory: Path) -> dict[str, int]:
    """Save a tiny model, move each tensor by an amount of its own, and add the rows up again.

    Returns the number of elements in each part.
    """
    torch.manual_seed(0)
    base, moved = directory / "base", directory / "moved"
    tiny_model(family).save_pretrained(base)
    shutil.copytree(base, moved)
    (file,) = base.glob("*.safetensors")
    before = load_file(file)
    after = {
        name: tensor + (1 + number) * 1e-3 * torch.randn_like(tensor)
        if tensor.is_floating_point()
        else tensor
        for number, (name, tensor) in enumerate(sorted(before.items()))
    }
    save_file(after, moved / file.name, metadata={"format": "pt"})
    floats = {name: one for name, one in before.items() if one.is_floating_point()}

    stored = StoredWeights(base)
    covered: dict[str, torch.Tensor] = {
        name: torch.zeros(one.shape, dtype=torch.int32) for name, one in floats.items()
    }
    for name, cut in stored.matrices().values():
        if name in covered:
            piece = _view(covered[name], cut)
            piece += 1
    assert {name for name, count in covered.items() if not (count == 1).all()} == set()

    measured: dict[str, float] = defaultdict(float)
    elements: dict[str, int] = defaultdict(int)
    parts: dict[str, int] = defaultdict(int)
    seen = set()
    metrics = choose_metrics(["weights/update_rms"])
    for _, row in weight_rows(stored, [(StoredWeights(moved), Training(None))], metrics):
        place = row["layer"], row["matrix"]
        assert place not in seen
        seen.add(place)
        tensor, _ = stored.matrices()[place]
        measured[tensor] += row["value"] ** 2 * row["n"]
        elements[tensor] += row["n"]
        parts[row["part"]] += row["n"]
    assert elements == {name: one.numel() for name, one in floats.items()}
    for name, one in floats.items():
        squares = float((after[name].double() - one.double()).square().sum())
        assert math.isclose(measured[name], squares, rel_tol=1e-5), name
    assert set(parts) <= set(PARTS)
    layers = json.loads((base / "config.json").read_text())
    assert any(layer is not None for layer, _ in seen), layers
    return dict(parts)


def _view(tensor: torch.Tensor, cut: object) -> torch.Tensor:
    """What the cut takes, as a view, so that what is added to it is added to the tensor."""
    if cut is None:
        return tensor
    number = torch.arange(tensor.numel()).view(tensor.shape)
    return _Counter(tensor, cut.of(number))  # type: ignore[attr-defined, return-value]


class _Counter:
    """Adds to the elements that a cut takes, wherever they are."""

    def __init__(self, tensor: torch.Tensor, which: torch.Tensor) -> None:
        self._tensor, self._which = tensor, which

    def __iadd__(self, more: int) -> _Counter:
        flat = self._tensor.view(-1)
        flat.index_add_(0, self._which.reshape(-1), torch.full((self._which.numel(),), more).int())
        return self
