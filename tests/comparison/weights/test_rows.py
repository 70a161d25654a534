"""The groups that read the weights alone, through `compare`, on files."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import mlflow_scalpel
from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.comparison.weights import files
from mlflow_scalpel.comparison.weights import rows as weight_pass
from mlflow_scalpel.comparison.weights.rows import pairs_of
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.metrics.histograms import count_changes
from mlflow_scalpel.metrics.pairs import count_pair

ALL = ["weights", "histograms", "spectra", "weights_paper_compat", "pairs"]


@pytest.fixture
def models(make_model, tmp_path) -> list[str]:
    """A base and three checkpoints in bfloat16, each with some of its weights moved."""
    base = tmp_path / "base"
    shutil.copytree(make_model(1), base)
    tensors = {name: w.bfloat16() for name, w in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(3)
    for step in (5, 10, 15):
        directory = tmp_path / f"checkpoint-{step}"
        shutil.copytree(base, directory)
        moved = {
            name: torch.where(torch.rand(w.shape) < 0.5, w.float() + 3e-3 * torch.randn(w.shape), w)
            for name, w in tensors.items()
        }
        moved = {name: w.bfloat16() for name, w in moved.items()}
        save_file(moved, directory / "model.safetensors", metadata={"format": "pt"})
    return [str(base), *(str(tmp_path / f"checkpoint-{step}") for step in (5, 10, 15))]


def tensor(directory: str, layer: int, block: str) -> torch.Tensor:
    return load_file(Path(directory) / "model.safetensors")[f"model.layers.{layer}.{block}.weight"]


def of(table, metric: str, matrix: str = "up_proj", layer: int = 1):
    found = table[(table["metric"] == metric) & (table["matrix"] == matrix)]
    return found[found["layer"] == layer]


def test_every_matrix_has_its_rows(models):
    base, first, _, last = models
    table = mlflow_scalpel.compare(base, [first, last], metrics=ALL)
    assert set(table["status"]) <= {"ok", "undefined", "not known"}
    assert set(table["dtype"].dropna()) == {"bfloat16"}
    plain = table[table["bin"].isna() & table["other"].isna()]
    rows = plain.groupby(["model_id", "metric"]).size()
    stored = load_file(Path(base) / "model.safetensors").values()
    matrices = sum(one.ndim == 2 for one in stored)  # the others have no singular values
    spectra = rows.index.get_level_values("metric").str.startswith("spectra/")
    assert set(rows[spectra]) == {matrices}
    assert set(rows[~spectra]) == {len(stored)}
    w0, wa, wb = (tensor(one, 1, "mlp.up_proj") for one in (base, first, last))
    bars = of(table, "histograms/ulp_change")
    changes = count_changes(w0, wa)
    mine = bars[bars["model_id"] == first]
    assert dict(zip(mine["bin"], mine["value"], strict=True)) == {
        float(edge): count / w0.numel() for edge, count in changes.moved.items()
    }
    assert mine["value"].sum() == pytest.approx(1.0)
    drift = of(table, "spectra/singular_value_drift").set_index("model_id")["value"]
    before, after = (torch.linalg.svdvals(one.double()) for one in (w0, wb))
    assert drift[last] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-6)
    theirs = of(table, "weights_paper_compat/relative_frobenius").set_index("model_id")["value"]
    assert theirs[first] == float(torch.norm(wa - w0) / torch.norm(w0))
    (cosine,) = of(table, "pairs/update_cosine").itertuples()
    assert (cosine.model_id, cosine.other, cosine.step) == (first, last, 5)
    paired = count_pair(w0, wa, wb)
    lengths = math.sqrt(paired.first_squares * paired.second_squares)
    assert cosine.value == pytest.approx(paired.dot / lengths, rel=1e-12)
    overlap = of(table, "pairs/changed_overlap")
    assert list(overlap["bin"]) == [float(exponent) for exponent in paired.overlaps]


def test_one_pass_reads_the_base_once_for_all_groups(models, monkeypatch):
    read = []
    real = files.StoredWeights.read

    def counting(self, place):
        read.append((self.directory.name, place))
        return real(self, place)

    monkeypatch.setattr(files.StoredWeights, "read", counting)
    base, *checkpoints = models
    mlflow_scalpel.compare(base, checkpoints, metrics=ALL, cache=False)
    assert len(read) == len(set(read)) == 4 * len(load_file(Path(base) / "model.safetensors"))


def test_what_is_kept_is_not_measured_again(models, monkeypatch):
    base, first, second, last = models
    asked = []
    real = weight_pass.weight_rows

    def spying(base, checkpoints, metrics, *, pairs, wanted, **more):
        groups = sorted({one.group for one in metrics} - {"pairs"})
        asked.append(
            {
                **{
                    one.directory.name: [group for group in groups if wanted(index, group)]
                    for index, (one, _) in enumerate(checkpoints)
                },
                "pairs": list(pairs),
            }
        )
        return real(base, checkpoints, metrics, pairs=pairs, wanted=wanted, **more)

    monkeypatch.setattr(weight_pass, "weight_rows", spying)
    once = mlflow_scalpel.compare(base, [first, last], metrics=["weights", "spectra", "pairs"])
    again = mlflow_scalpel.compare(base, [first, last], metrics=["weights", "spectra", "pairs"])
    assert once.equals(again)
    assert len(asked) == 1
    mlflow_scalpel.compare(base, [first, last], metrics=["weights", "histograms"])
    assert asked[1:] == [
        {"checkpoint-5": ["histograms"], "checkpoint-15": ["histograms"], "pairs": []}
    ]
    mlflow_scalpel.compare(base, [first, second, last], metrics=["weights", "pairs"])
    assert asked[2:] == [{"checkpoint-10": ["weights"], "checkpoint-15": [], "pairs": [(0, 1)]}]


def test_what_cannot_be_compared_is_a_row_that_says_why(models):
    base, first, _, last = models

    def spoil(directory, change):
        file = Path(directory) / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    def odd(tensors):
        del tensors["model.layers.0.self_attn.q_proj.weight"]
        name = "model.layers.1.mlp.up_proj.weight"
        tensors[name] = tensors[name][:-1].contiguous()
        tensors["model.layers.1.mlp.down_proj.weight"][0, :3] = math.nan
        tensors["model.layers.7.mlp.down_proj.weight"] = torch.ones(2, 2)

    spoil(first, odd)
    metrics = ["histograms", "spectra", "pairs", "weights_paper_compat"]
    table = mlflow_scalpel.compare(base, [first, last], metrics=metrics)
    mine = table[table["model_id"] == first]
    for metric in sorted(set(table["metric"])):
        assert set(of(mine, metric, "q_proj", 0)["status"]) == {"missing"}, metric
        assert set(of(mine, metric, "down_proj", 7)["status"]) == {"missing"}, metric
        assert set(of(mine, metric, "up_proj")["status"]) == {"shape mismatch"}, metric
        assert "ok" in set(of(mine, metric, "gate_proj")["status"]), metric
    assert mine[mine["status"] != "ok"]["reason"].notna().all()
    told = of(mine, "histograms/ulp_change", "down_proj")
    told = told[told["status"] == "not finite"]
    assert list(told["reason"]) == ["3 of 1024 elements are NaN or infinite, and in no bin"]
    assert set(of(mine, "spectra/stable_rank", "down_proj")["status"]) == {"not finite"}
    assert set(of(mine, "pairs/update_cosine", "down_proj")["status"]) == {"undefined"}
    rest = table[(table["model_id"] == last) & (table["layer"] != 7)]
    assert set(rest["status"]) == {"ok"}


def test_vectors_have_no_singular_values(models):
    base, first, *_ = models
    table = mlflow_scalpel.compare(base, first, metrics=["histograms", "spectra"])
    assert "norm" in set(table[table["metric"] == "histograms/ulp_change"]["matrix"])
    spectra = table[table["metric"] == "spectra/stable_rank"]
    assert "embed_tokens" in set(spectra["matrix"])
    assert "norm" not in set(spectra["matrix"])  # a vector has no singular values


def test_a_pair_needs_two(models):
    base, first, *_ = models
    with pytest.raises(ScalpelError, match="pairs: compares two checkpoints of one base, and 1"):
        mlflow_scalpel.compare(base, first, metrics=["pairs"])


def made(run: str | None, step: int | None, name: str = "x") -> MeasuredModel:
    return MeasuredModel(Path("/nowhere") / name, f"{name}-{step}", "sha256:0", step, run)


def test_two_runs_meet_at_equal_steps_and_at_their_ends():
    runs = [
        made(run, step) for run, steps in (("a", (5, 10, 20)), ("b", (10, 30))) for step in steps
    ]
    assert pairs_of(runs) == [(1, 3), (2, 4)]
    third = [*runs, made("c", 40)]
    assert pairs_of(third) == [(1, 3), (2, 4), (2, 5), (4, 5)]


def test_one_run_meets_its_last_step():
    run = [made("a", 20), made("a", 5), made("a", 10)]
    assert pairs_of(run) == [(0, 1), (0, 2)]
    folder = [made(None, step, f"checkpoint-{step}") for step in (5, 10)]
    assert pairs_of(folder) == [(0, 1)]


def test_models_of_no_run_meet_each_other():
    models = [made(None, None, name) for name in "abc"]
    assert pairs_of(models) == [(0, 1), (0, 2), (1, 2)]
    assert pairs_of(models[:1]) == []


def test_other_stacks_of_layers_are_not_the_language_models(models):
    """A vision tower and an extra predictor have `layers` of their own, of the same matrices."""
    base, first, *_ = models
    table = mlflow_scalpel.compare(base, first, metrics=["weights/update_rms"])
    for directory in (base, first):
        file = Path(directory) / "model.safetensors"
        tensors = load_file(file)
        nested = {
            name.replace("model.", "model.language_model.", 1): w for name, w in tensors.items()
        }
        for stack in ("model.vision_tower.encoder", "mtp"):
            nested[f"{stack}.layers.0.self_attn.q_proj.weight"] = torch.ones(3, 3)
        save_file(nested, file, metadata={"format": "pt"})
    found = mlflow_scalpel.compare(base, first, metrics=["weights/update_rms"])
    keys = ["layer", "matrix", "value"]
    towers = found["matrix"].str.startswith(("vision_tower", "mtp"))
    own = found[~towers].reset_index(drop=True)
    pd.testing.assert_frame_equal(table[keys], own[keys], check_exact=True)
    assert found[towers].set_index("matrix")["part"].to_dict() == {
        "vision_tower.encoder.layers.0.self_attn.q_proj": "vision",
        "mtp.layers.0.self_attn.q_proj": "other",
    }
    assert found[towers]["layer"].isna().all()


def test_experts_are_matrices_of_their_layer(models):
    base, first, *_ = models
    for directory in (base, first):
        file = Path(directory) / "model.safetensors"
        tensors = load_file(file)
        w = tensors.pop("model.layers.0.mlp.up_proj.weight")
        tensors["model.layers.0.mlp.experts.0.up_proj.weight"] = w
        tensors["model.layers.0.mlp.experts.11.up_proj.weight"] = w.clone()
        tensors["model.layers.0.mlp.shared_expert.up_proj.weight"] = w.clone()
        tensors["model.layers.0.block_sparse_moe.experts.1.w2.weight"] = w.clone()
        save_file(tensors, file, metadata={"format": "pt"})
    table = mlflow_scalpel.compare(base, first, metrics=["weights/update_rms"])
    experts = table[table["part"] == "experts"]
    assert set(experts["matrix"]) == {
        "experts.0.up_proj",
        "experts.11.up_proj",
        "experts.1.down_proj",  # w2 in the file
        "shared_expert.up_proj",
    }
    assert (experts["value"] > 0).all()


def test_codes_and_eight_bit_floats_are_rows_that_say_so(models):
    base, first, *_ = models
    odd = {
        "model.layers.0.mlp.up_proj.weight": torch.float8_e4m3fn,
        "model.layers.0.mlp.down_proj.weight": torch.uint8,
    }
    for directory in (base, first):
        file = Path(directory) / "model.safetensors"
        tensors = load_file(file)
        for name, dtype in odd.items():
            tensors[name] = torch.zeros_like(tensors[name]).to(dtype)
        save_file(tensors, file, metadata={"format": "pt"})
    groups = [group for group in ALL if group != "pairs"]
    table = mlflow_scalpel.compare(base, first, metrics=groups)
    bad = table[table["status"] == "not supported"]
    assert set(zip(bad["layer"], bad["matrix"], strict=True)) == {(0, "up_proj"), (0, "down_proj")}
    assert set(bad[bad["matrix"] == "up_proj"]["metric"]) == set(table["metric"])
    assert bad["reason"].str.contains("is stored as U8 by|is stored as F8_E4M3 without").all()
