"""Published results: imported by the command into a real store, and drawn beside each other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_scalpel.cli import main
from mlflow_scalpel.comparison.gather import gather
from mlflow_scalpel.comparison.published import runs as importing
from mlflow_scalpel.comparison.run_store import describe_runs
from mlflow_scalpel.tensors.places import CLASSICAL as MATRICES
from mlflow_scalpel.views.report.report import write_report

KL = ["--experiment", "papers", "--metric", "kl/all_tokens"]
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
    kl = {"v1-step-0010": 0.5, "v1-step-0020": 0.75, "main": 0.751}  # 0.751 is 0.75 in bfloat16
    second = write(tmp_path, "kl.json", kl)
    words = [first, second, "--experiment", "papers", "--algorithm", "sft", "--texts", "math500"]
    words += ["--metric", "kl/all_tokens"]
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
    digests = {Path(file).name: hashlib.sha256(Path(file).read_bytes()) for file in words[:2]}
    assert json.loads(run.data.tags["scalpel.imported_files"]) == {
        name: digest.hexdigest() for name, digest in digests.items()
    }
    assert run.data.metrics["kl/all_tokens/math500"] == 0.75
    told = describe_runs([run_id]).loc[run_id]
    assert (told["learning_rate"], told["steps"]) == ("5e-05", "20")
    assert told["imported_from"] == "a paper"
    assert main(["import", second, first, *words[2:]]) == 2
    assert f"already, as run {run_id}" in capsys.readouterr().err


def test_a_key_without_a_step_that_differs_stays_visible(tracking, tmp_path, capsys):
    file = write(tmp_path, "norms.json", {"v1-step-1": norms(0.001), "main": norms(0.003)})
    (run_id,) = imported(capsys, file, "--experiment", "papers")
    odd = gather([run_id]).query("status == 'no step'")
    assert len(odd) == 14
    assert set(odd["reason"]) == {"main: the file names no step for it"}
    assert write_report(gather([run_id]), describe_runs([run_id]), tmp_path / "r.html", title="")


def test_several_runs_at_once_and_each_has_the_keys_of_its_file(tracking, tmp_path, capsys):
    first = write(tmp_path, "a.json", {"a-step-1": norms(0.1), "main": norms(0.1)})
    second = write(tmp_path, "b.json", {"b-step-1": norms(0.2)})
    words = [first, second, "--experiment", "papers", "--base", "olmo"]
    assert main(["import", *words, "--algorithm", "sft"]) == 2
    said = capsys.readouterr().err
    assert "hold 2 runs (a, b), and --algorithm is of one" in said
    one, other = (MlflowClient().get_run(run_id) for run_id in imported(capsys, *words))
    assert [one.info.run_name, other.info.run_name] == ["a (imported)", "b (imported)"]
    assert one.data.tags["scalpel.imported_note"].startswith("main: has no step; its values are")
    assert "scalpel.imported_note" not in other.data.tags
    assert set(gather([one.info.run_id, other.info.run_id])["base"]) == {"olmo"}


def test_what_is_no_number_is_a_row_with_its_reason(tracking, tmp_path, capsys):
    content = '{"v-step-1": NaN, "v-step-2": Infinity, "v-step-3": null, "v-step-4": 0.5}'
    (run_id,) = imported(capsys, write(tmp_path, "kl.json", content), *KL)
    table = gather([run_id]).set_index("step")
    assert list(table["status"]) == ["undefined"] * 3 + ["ok"]
    assert list(table["reason"][:3]) == [f"the file says {said}" for said in ("nan", "inf", "null")]
    assert list(table["value"].notna()) == [False, False, False, True]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_tidy_table_comes_back_as_it_was(tracking, tmp_path, capsys, suffix):
    file = tmp_path / f"own.{suffix}"
    rows = {
        "metric": ["kl/all_tokens", "kl/all_tokens", "weights/update_rms"],
        "value": [0.1, None, 1e-3],
        "step": [1, 2, 2],
        "layer": [None, None, 0],
        "texts": ["mine", None, None],
        # Of a model that this store does not have, so nothing can be linked to it.
        "model_id": "m-0123456789abcdef0123456789abcdef",
        "base": "007",
    }
    table = pd.DataFrame(rows)
    table.to_csv(file, index=False) if suffix == "csv" else table.to_parquet(file, index=False)
    (run_id,) = imported(capsys, str(file), "--experiment", "papers", "--base", "other")
    first = gather([run_id])
    assert list(first["status"]) == ["ok", "undefined", "ok"]
    assert list(first["texts"][:2]) == ["mine", "published"]
    assert set(first["base"]) == {"007"}
    first.to_csv(tmp_path / "again.csv", index=False)
    (again,) = imported(capsys, str(tmp_path / "again.csv"), "--experiment", "papers")
    pd.testing.assert_frame_equal(
        gather([again]).drop(columns="run_id"), first.drop(columns="run_id")
    )


def test_rows_of_a_table_that_have_no_step_say_so(tracking, tmp_path, capsys):
    rows = "metric,step,value\nkl/all_tokens,1,0.1\nkl/all_tokens,,0.3\n"
    (run_id,) = imported(capsys, write(tmp_path, "t.csv", rows), "--experiment", "papers")
    assert list(gather([run_id])["status"]) == ["ok", "no step"]


def test_what_mlflow_refuses_fails_the_run_and_can_be_imported_again(
    tracking, tmp_path, capsys, monkeypatch
):
    def refuse(table, run_id):
        raise MlflowException("the disk is full")

    file = write(tmp_path, "kl.json", {"v-step-1": 0.1})
    words = [file, *KL]
    with monkeypatch.context() as broken:
        broken.setattr(importing, "log_table", refuse)
        assert main(["import", *words]) == 2
    said = capsys.readouterr().err
    assert "the disk is full" in said
    (failed,) = MlflowClient().search_runs(
        [MlflowClient().get_experiment_by_name("papers").experiment_id]
    )
    assert failed.info.status == "FAILED"
    assert failed.info.run_id in said
    assert imported(capsys, *words)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "[1]", "is not a JSON object"),
        ("a.json", "{", "cannot be read as JSON"),
        ("a.json", '{"a-step-1": ' + "[" * 50_000, "cannot be read as JSON"),
        ("a.json", '{"a-step-1": ' + "9" * 9000 + "}", "cannot be read as JSON"),
        ("a.json", '{"a-step-1": ' + "9" * 4000 + "}", "holds neither a number"),
        ("a.json", '{"a-step-' + "9" * 5000 + '": 1}', "has no step but 5000 digits"),
        ("a.csv", "metric,step,value\nkl/all_tokens,1," + "9" * 4000, "hundreds of digits"),
        ("a.json", {"v1-step-1": {"r_proj": [1.0]}}, "'r_proj', which is not a matrix"),
        ("a.json", {"v1-step-1": {"q_proj": 1.0}}, "is not a list of numbers"),
        ("a.json", {"v1-step-1": "x"}, "neither a number"),
        ("a.json", {"main": 1.0}, "holds no checkpoint"),
        ("a.json", {"v-step-1": {"q_proj": [1, 2], "k_proj": [1]}}, "(q_proj 2, k_proj 1)"),
        ("a.json", {"v-step-1": norms(1), "v-step-2": {"q_proj": [1]}}, "'v-step-2' has 1 layers"),
        ("a.json", {"v-step-1": {}}, "'v-step-1' holds no value"),
        ("a.json", '{"v-step-1": 1, "v-step-1": 2}', "'v-step-1' stands there twice"),
        (
            "a.csv",
            "metric,step,value\nx,1,2\nx,1,y\n",
            "line 3, column 'value': 'y' is not a number",
        ),
        ("a.csv", "metric,step,value\nx,1.5,2\n", "line 2, column 'step': '1.5' is not a whole"),
        ("a.csv", "metric,step,value\n,1,2\n", "line 2: names no metric"),
        ("a.csv", "metric,step,value\n", "holds no value"),
        ("a.csv", "metric,step\nx,1\n", "has no column 'value'"),
        ("a.csv", "metric,step,value,colour\nx,1,2,3\n", "column 'colour' is unknown"),
        ("a.txt", "x", "not a .csv"),
    ],
)
def test_other_files_are_refused_by_name(tracking, tmp_path, capsys, name, content, said):
    file = write(tmp_path, name, content)
    assert main(["import", file, *KL]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert file in error
    assert MlflowClient().get_experiment_by_name("papers") is None


@pytest.mark.parametrize(
    "content",
    [
        {"v-step-1": 0.1, "v-step-01": 0.2},
        {"v-step-1": 0.1, "main": 0.2, "final": 0.3},
    ],
)
def test_two_values_for_one_place_are_refused(tracking, tmp_path, capsys, content):
    file = write(tmp_path, "kl.json", content)
    assert main(["import", file, *KL]) == 2
    assert "kl.json: v has two values for" in capsys.readouterr().err


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
        words += ["--source", "arXiv 2507.10616", "--metric", "kl/all_tokens"]
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
    assert [f"{kl.loc['grpo'].iloc[0]:.4f}", f"{kl.loc['grpo'].iloc[-1]:.2f}"] == ["0.0007", "0.43"]

    report = write_report(table, told, tmp_path / "report.html", title="Published")
    text = report.read_text()
    assert "arXiv 2507.10616" in text
    assert "(imported)" in text
