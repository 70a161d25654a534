"""What `compare` prints is a mean over matrices only, and never over unlike things."""

from __future__ import annotations

import pytest

from mlflow_scalpel.cli.compare import lines
from mlflow_scalpel.comparison.table import tidy


def row(metric: str, value: float, **fields) -> dict:
    return {"metric": metric, "value": value, "unit": "u", "model_id": "m", "step": 3, **fields}


def printed(*rows: dict) -> list[list[str]]:
    return [[part.strip() for part in line.split("  ") if part] for line in lines(tidy(rows))]


def test_partners_stand_by_themselves():
    found = printed(
        *(
            row("pairs/update_cosine", value, other=other, layer=layer, matrix="q_proj")
            for other, values in {"near": (0.9, 0.7), "far": (-0.1, 0.1)}.items()
            for layer, value in enumerate(values)
        )
    )
    assert found == [
        ["pairs/update_cosine", "0.8", "u", "mean of 2, with near"],
        ["pairs/update_cosine", "0", "u", "mean of 2, with far"],
    ]


def test_texts_and_benchmarks_stand_by_themselves():
    found = printed(
        row("kl/all_tokens", 1.0, texts="a sha256:1", stderr=0.1, n=7),
        row("kl/all_tokens", 3.0, texts="b sha256:2", stderr=0.2, n=9),
        row("capabilities/kept", 5, texts="in/add/greedy sha256:1"),
        row("capabilities/kept", 9, texts="out/facts/greedy sha256:1"),
    )
    assert [(one[1], one[-1]) for one in found] == [
        ("1", "± 0.1 over 7 problems, on a"),
        ("3", "± 0.2 over 9 problems, on b"),
        ("5", "on in/add/greedy"),
        ("9", "on out/facts/greedy"),
    ]


def test_heads_have_a_range_and_bins_no_mean():
    found = printed(
        *(row("attention/entropy_change", v, layer=1, head=i) for i, v in enumerate((0.5, -0.9))),
        *(row("kl/quantile/all_tokens", v, bin=v, texts="a") for v in (0.5, 0.9)),
    )
    assert found[0][1:] == ["-0.9..0.5", "u", "2 heads, furthest layer 1 head 1"]
    assert found[1] == [
        "kl/quantile/all_tokens",
        "u",
        "2 values in bins, in the table (--out, --log)",
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_matrices_are_averaged(count):
    rows = [row("weights/update_rms", i + 1.0, layer=i, matrix="q_proj") for i in range(count)]
    (found,) = printed(*rows)
    assert found[1] == ("1" if count == 1 else "2")
    assert found[3:] == ([] if count == 1 else ["mean of 3"])
