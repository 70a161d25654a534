"""What the GPU check computes beside the product; `make bench` runs all of it on a CPU."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _checks_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_number_is_held_to_its_bound_and_nan_to_none():
    from gpu_checks.results import above, at_most, within

    assert within("x", 1.19, 1.0, 0.2).status == "ok"
    assert within("x", 1.21, 1.0, 0.2).status == "off"
    assert within("x", 1.0, 0.0, 0.2).status == "off"
    assert at_most("x", 1.0, 1.0).status == "ok"
    assert above("x", 1.0, 1.0).status == "off"
    for row in (within("x", math.nan, 1.0, 9.0), at_most("x", math.nan, 9.0)):
        assert row.status == "off"
    assert above("x", math.nan, -9.0).status == "off"


def test_rows_come_back_from_their_file_and_into_a_table(tmp_path):
    from gpu_checks.results import append, at_most, read, table

    file = tmp_path / "plan.jsonl"
    assert read(file, "plan") == []
    append(file, at_most("a | b", math.nan, 1.0, "s"))
    (row,) = read(file, "plan")
    assert (row.check, row.status) == ("plan", "off")
    assert table([row]).splitlines()[-1] == "| plan | a | b | off | nan s |  | at most 1 |".replace(
        "a | b", r"a \| b"
    )


def test_two_tables_differ_by_the_most_that_a_row_does():
    from gpu_checks.measuring import PLACE, differences

    def rows(*values: float) -> pd.DataFrame:
        places = [("m", layer, None, "q", None, None) for layer in range(len(values))]
        return pd.DataFrame(places, columns=PLACE).assign(status="ok", value=list(values))

    assert differences(rows(1.0, 2.02), rows(1.0, 2.0)) == pytest.approx({"m": 0.01})
    # What is next to nothing beside the others is measured by a thousandth of the largest.
    assert differences(rows(1000.0, 0.01), rows(1000.0, 0.0)) == pytest.approx({"m": 0.01})
    for other in (rows(1.0), rows(1.0, math.nan), rows(1.0, 2.0).assign(status="refused")):
        with pytest.raises(ValueError, match=r"rows|missing|status"):
            differences(rows(1.0, 2.0), other)


def test_the_heads_products_are_counted():
    from gpu_checks.planning import PRODUCTS
    from torch.utils.flop_counter import FlopCounterMode

    into, left, right = torch.zeros(8, 16), torch.zeros(8, 4), torch.zeros(4, 16)
    with FlopCounterMode(display=False, custom_mapping=PRODUCTS) as counter:
        into.addmm_(left, right)
        torch.addmm(into, left, right)
        left @ right
    assert counter.get_total_flops() == 3 * 2 * 8 * 4 * 16
    # As a GPU is called by TRL's head, which no CPU has a kernel for.
    counted = counter.flop_registry[torch.ops.aten.addmm](
        into, left, right, torch.float32, out=into, out_val=into
    )
    assert counted == 2 * 8 * 4 * 16


def test_stages_do_not_look_for_experiments_of_another_store(tmp_path, monkeypatch):
    from gpu_checks.runs import environment

    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "7")
    monkeypatch.setenv("MLFLOW_RUN_ID", "a" * 32)
    found = environment(tmp_path)
    assert found["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert not {"MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"} & set(found)
