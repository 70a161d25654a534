"""A small made-up experiment: three runs of two algorithms, as a tidy table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest

from tests.views.detailed import detailed_table
from tests.views.whole import capability_rows

COLUMNS = (
    "base base_digest model_id model_digest run_id algorithm step metric metric_version layer head "
    "matrix bin value stderr n unit dtype texts status reason"
).split()
MATRICES = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
STEPS = (100, 200, 300)
#: run id -> (algorithm, learning rate, size of the norm, gain in-domain, loss out-of-domain)
ARMS = {
    "aaaa1111": ("grpo", 1e-6, 1.0, 0.20, 0.01),
    "bbbb2222": ("sft", 5e-5, 45.0, 0.12, 0.30),
    "cccc3333": ("sft", 1e-6, 1.1, 0.03, 0.02),
}
TEXTS = "{} sha256:0123abcd template:4567ef"


def row(**values: Any) -> dict[str, Any]:
    """One row of the tidy table: `ok`, and null wherever nothing is said."""
    said: dict[str, Any] = dict.fromkeys(COLUMNS)
    said.update(base="tiny-base", base_digest="sha256:base", metric_version="1", status="ok")
    said.update(dtype="float32")
    said.update(values)
    return said


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as the tidy table, with the nullable types it has at rest."""
    numbers = dict.fromkeys(("value", "stderr", "bin"), "Float64")
    integers = dict.fromkeys(("layer", "head", "step", "n"), "Int64")
    others = [c for c in COLUMNS if c not in {**numbers, **integers}]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype({**numbers, **integers, **dict.fromkeys(others, "string")})


def rows_of(run_id: str) -> list[dict[str, Any]]:
    """Everything measured for one run."""
    algorithm, rate, size, gain, loss = ARMS[run_id]
    own: dict[str, Any] = {"run_id": run_id, "algorithm": algorithm}
    rows = []
    for share, step in enumerate((0, *STEPS)):
        part = share / len(STEPS)
        own |= {"step": step, "model_id": f"m-{run_id[:4]}-{step}"}
        for domain, skill, start, by in (
            ("in", "add", 0.6, gain),
            ("in", "gcd", 0.5, gain / 2),
            ("out", "facts", 0.98, -loss),
        ):
            for kind in ("greedy", "sampled") if domain == "in" else ("greedy",):
                value = start + by * part
                error = (value * (1 - value) / 200) ** 0.5
                metric = f"eval/{domain}/{skill}/{kind}"
                rows.append(row(**own, metric=metric, value=value, stderr=error, n=200))
        if step == 0:
            continue
        for layer in range(4):
            for i, matrix in enumerate(MATRICES):
                norm = 1e-3 * size * part * (1 + 0.1 * layer) * (1.5 if i < 2 else 1 + 0.02 * i)
                where: dict[str, Any] = {**own, "layer": layer, "matrix": matrix}
                rows.append(row(**where, metric="weights/relative_frobenius", value=norm))
                rows.append(row(**where, metric="weights/update_rms", value=norm / 50))
                metric = "weights/relative_frobenius_per_lr"
                rows.append(row(**where, metric=metric, value=norm / (rate * step), unit="1/lr"))
        for name in ("base_style", "teacher_style"):
            for i, metric in enumerate(("kl/all_tokens", "kl/answer_tokens")):
                value = 2e-3 * size * part * (1 + i)
                rows.append(
                    row(
                        **own,
                        metric=metric,
                        value=value,
                        stderr=value / 10,
                        n=64,
                        unit="nats/token",
                        texts=TEXTS.format(name),
                    )
                )
        for metric, each, unit in (
            ("wall_seconds", 3.0, "s"),
            ("flops", 2e13, "FLOP"),
            ("tokens_trained", 5e3, "tokens"),
            ("tokens_generated", 4e3 if algorithm == "grpo" else 0, "tokens"),
            ("sequences", 64, "sequences"),
            ("unique_problems", 8, "problems"),
        ):
            rows.append(row(**own, metric=f"cost/{metric}", value=each * step, unit=unit))
    return rows


@pytest.fixture(scope="session")
def made_table() -> pd.DataFrame:
    return frame([one for run_id in ARMS for one in rows_of(run_id)])


@pytest.fixture
def table(made_table: pd.DataFrame) -> pd.DataFrame:
    """The tidy table of the three runs."""
    return made_table.copy()


@pytest.fixture
def runs() -> pd.DataFrame:
    """What the runs were: names and parameters, as text where MLflow would give text."""
    return pd.DataFrame(
        {
            "name": ["grpo", "sft", "sft-matched"],
            "algorithm": [arm[0] for arm in ARMS.values()],
            "learning_rate": ["1e-06", "5e-05", "1e-06"],
            "steps": ["300", "300", "300"],
            "dtype": ["float32", "float32", "float32"],
            "data": ["problems", "traces", "traces"],
            "seed": ["42", "42", "42"],
            "beta": ["0.0", None, None],
            "batch": ["64", "64", "64"],
        },
        index=pd.Index(list(ARMS), name="run_id"),
    )


@dataclass(frozen=True)
class Make:
    """How a test makes rows and tables of its own."""

    row: Callable[..., dict[str, Any]] = row
    frame: Callable[[list[dict[str, Any]]], pd.DataFrame] = frame


@pytest.fixture
def make() -> Make:
    """The factories of rows and tables."""
    return Make()


@pytest.fixture(scope="session")
def made_whole(made_table: pd.DataFrame) -> pd.DataFrame:
    rows = [
        row(**one)
        for run_id, (algorithm, *_) in ARMS.items()
        for one in capability_rows(run_id, algorithm, STEPS)
    ]
    return pd.concat([made_table, frame(rows)], ignore_index=True)


@pytest.fixture
def whole(made_whole: pd.DataFrame) -> pd.DataFrame:
    """The table with the capabilities, the concentration of KL and what was frozen."""
    return made_whole.copy()


@pytest.fixture(scope="session")
def made_detailed() -> pd.DataFrame:
    return detailed_table()


@pytest.fixture
def detailed(made_detailed: pd.DataFrame) -> pd.DataFrame:
    """The tidy table of two runs with every group of metrics over the weights and the texts."""
    return made_detailed.copy()
