"""Published results: imported by the command into a real store, and drawn beside each other."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from mlflow_scalpel.cli import main
from mlflow_scalpel.comparison.store import describe_runs, gather
from mlflow_scalpel.comparison.weights import MATRICES
from mlflow_scalpel.views.report import write_report

PAPER = Path(__file__).parents[3] / "shared" / "paper"


def imported(capsys, *words: str) -> list[str]:
    assert main(["import", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [line.rsplit(" ", 1)[1] for line in lines if line.startswith("imported as run")]


def norms(scale: float) -> dict[str, list[float]]:
    return {name: [scale * (1 + i), scale] for i, name in enumerate(MATRICES)}


def write(folder: Path, name: str, content: object) -> str:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


def test_files_of_one_label_become_one_run(tracking, tmp_path, capsys):
    steps = {"v1-step-0010": norms(0.001), "v1-step-0020": norms(0.002), "main": norms(0.002)}
    first = write(tmp_path, "norms.json", steps)
    second = write(tmp_path, "kl.json", {"v1-step-0010": 0.5, "v1-step-0020": 0.75})
    words = [first, second, "--experiment", "papers", "--algorithm", "sft", "--texts", "math500"]
    words += ["--learning-rate", "5e-5", "--steps", "20", "--source", "a paper"]
    (run_id,) = imported(capsys, *words)
    table = gather([run_id])
    assert len(table) == 2 * 14 + 2
    assert set(table["run_id"]) == {run_id}
    assert list(table[table["metric"] == "kl/all_tokens"]["value"]) == [0.5, 0.75]
    run = MlflowClient().get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["scalpel.imported"] == "true"
    assert "those of step 20" in run.data.tags["scalpel.imported_note"]
    assert run.data.metrics["kl/all_tokens/math500"] == 0.75
    told = describe_runs([run_id]).loc[run_id]
    assert (told["learning_rate"], told["steps"]) == ("5e-05", "20")
    assert told["imported_from"] == "a paper"
    assert main(["import", *words]) == 2
    assert f"already, as run {run_id}" in capsys.readouterr().err


def test_a_key_without_a_step_that_differs_stays_visible(tracking, tmp_path, capsys):
    file = write(tmp_path, "norms.json", {"v1-step-1": norms(0.001), "main": norms(0.003)})
    (run_id,) = imported(capsys, file, "--experiment", "papers")
    odd = gather([run_id]).query("status == 'no step'")
    assert len(odd) == 14
    assert set(odd["reason"]) == {"main: the file names no step for it"}


def test_a_tidy_table_comes_back_as_it_was(tracking, tmp_path, capsys):
    file = tmp_path / "own.csv"
    rows = {"metric": "kl/all_tokens", "value": [0.1, None], "step": [1, 2], "texts": "mine"}
    pd.DataFrame(rows).to_csv(file, index=False)
    (run_id,) = imported(capsys, str(file), "--experiment", "papers")
    table = gather([run_id])
    assert list(table["status"]) == ["ok", "undefined"]
    assert list(table["step"]) == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "[1]", "is no JSON object"),
        ("a.json", "{", "cannot be read as JSON"),
        ("a.json", {"v1-step-1": {"r_proj": [1.0]}}, "'r_proj', which is no matrix"),
        ("a.json", {"v1-step-1": {"q_proj": 1.0}}, "is no list of numbers"),
        ("a.json", {"v1-step-1": "x"}, "neither a number"),
        ("a.json", {"main": 1.0}, "holds no checkpoint"),
        ("a.csv", "metric,step\nx,1\n", "has no column 'value'"),
        ("a.csv", "metric,step,value,colour\nx,1,2,3\n", "column 'colour' is unknown"),
        ("a.txt", "x", "none of .csv"),
    ],
)
def test_other_files_are_refused_by_name(tracking, tmp_path, capsys, name, content, said):
    file = write(tmp_path, name, content)
    assert main(["import", file, "--experiment", "papers"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert file in error
    assert MlflowClient().get_experiment_by_name("papers") is None


def test_what_is_said_of_one_run_is_not_said_of_two(tracking, tmp_path, capsys):
    file = write(tmp_path, "kl.json", {"a-step-1": 0.1, "b-step-1": 0.2})
    assert main(["import", file, "--experiment", "papers", "--algorithm", "sft"]) == 2
    assert "hold 2 runs (a, b)" in capsys.readouterr().err
    assert len(imported(capsys, file, "--experiment", "papers")) == 2


@pytest.fixture
def published(tracking, capsys) -> dict[str, str]:
    if not PAPER.is_dir():
        pytest.skip(f"the paper's published figures are not at {PAPER}")
    found = {}
    for algorithm, version, rate, steps in (
        ("grpo", "GRPOv01.14", "1e-6", "571"),
        ("sft", "SFTv02.08", "5e-5", "462"),
    ):
        files = [str(PAPER / f"norms_{version}.json"), str(PAPER / f"kl_math500_{version}.json")]
        words = ["--experiment", "paper", "--algorithm", algorithm, "--learning-rate", rate]
        words += ["--steps", steps, "--dtype", "bfloat16", "--texts", "math500"]
        words += ["--source", "arXiv 2507.10616"]
        (found[algorithm],) = imported(capsys, *files, *words)
    return found


def test_the_papers_numbers_say_what_they_were_found_to_say(published, tmp_path):
    table = gather(list(published.values()))
    norms = table[table["metric"] == "weights/relative_frobenius"]
    by_step = norms.pivot_table("value", ["algorithm", "step"], "matrix", aggfunc="mean")
    assert len(by_step.loc["sft"]) == 19
    assert len(by_step.loc["grpo"]) == 20  # and `main`, which is the last step again
    note = MlflowClient().get_run(published["grpo"]).data.tags["scalpel.imported_note"]
    assert note.startswith("main: has no step; its values are those of step 571")

    def largest_are_q_and_k(row) -> bool:
        return set(row.nlargest(2).index) == {"q_proj", "k_proj"}

    assert by_step.loc["sft"].apply(largest_are_q_and_k, axis=1).sum() == 19
    assert by_step.loc["grpo"].apply(largest_are_q_and_k, axis=1).sum() == 11
    sft, grpo = (by_step.loc[algorithm].iloc[-1] for algorithm in ("sft", "grpo"))
    shown = [f"{sft[m]:.4f}" for m in ("q_proj", "k_proj", "gate_proj")]
    assert shown == ["0.0642", "0.0638", "0.0550"]
    assert sft.nlargest(3).index[2] == "gate_proj"
    shown = [f"{grpo[m]:.5f}" for m in ("q_proj", "k_proj", "down_proj")]
    assert shown == ["0.00126", "0.00129", "0.00125"]
    # o_proj is 0.00125 as well, and larger than down_proj by 0.02 %.
    assert set(grpo.nlargest(4).index[2:]) == {"o_proj", "down_proj"}

    last = norms[norms["step"] == norms.groupby("run_id")["step"].transform("max")]
    cells = last.pivot_table("value", ["layer", "matrix"], "algorithm")
    assert len(cells) == 224
    assert (cells["sft"] > cells["grpo"]).all()
    assert round(cells["sft"].mean() / cells["grpo"].mean()) == 44
    for means, ratio in ((sft, 1.21), (grpo, 0.97)):
        mlp = means[["gate_proj", "up_proj", "down_proj"]].mean()
        assert mlp / means[["v_proj", "o_proj"]].mean() == pytest.approx(ratio, abs=0.005)
    told = describe_runs(list(published.values()))
    for algorithm, expected in (("grpo", 2.16), ("sft", 2.33)):
        run = told.loc[published[algorithm]]
        moved = float(run["learning_rate"]) * float(run["steps"])
        assert cells[algorithm].mean() / moved == pytest.approx(expected, abs=0.005)

    kl = table[table["metric"] == "kl/all_tokens"].set_index(["algorithm", "step"])["value"]
    assert kl.loc["sft"].iloc[[0, -1]].round(2).tolist() == [3.86, 4.69]
    assert kl.loc["grpo"].iloc[[0, -1]].round(4).tolist() == pytest.approx([0.0007, 0.43], abs=5e-3)

    report = write_report(table, told, tmp_path / "report.html", title="Published")
    text = report.read_text()
    assert "arXiv 2507.10616" in text
    assert "(imported)" in text
