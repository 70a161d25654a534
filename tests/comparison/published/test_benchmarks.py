"""Published tables of benchmarks: as runs of their own, and as the scores of another run."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from mlflow_scalpel import views
from mlflow_scalpel.cli import main
from mlflow_scalpel.comparison.gather import gather
from mlflow_scalpel.comparison.run_store import describe_runs

PAPER = Path(__file__).parents[3] / "shared" / "paper"
TABLE = """benchmark,model,accuracy
add 1,base-7B,0.5
add 1,sft,0.75
add 1,grpo,0.6
facts,base-7B,0.9
facts,sft,0.3
facts,grpo,0.8
"""
SAID = ["--experiment", "papers", "--base", "org/base-7B", "--in-domain", "Add 1"]


def imported(capsys, *words: str) -> list[str]:
    assert main(["import", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [line.rsplit(" ", 1)[1] for line in lines if line.startswith("imported as run")]


@pytest.fixture
def file(tmp_path) -> str:
    path = tmp_path / "benchmarks.csv"
    path.write_text(TABLE)
    return str(path)


def refused(capsys, *words: str) -> str:
    assert main(["import", *words]) == 2
    return capsys.readouterr().err


def test_each_model_becomes_a_run_with_the_base_at_step_0(tracking, file, capsys):
    ids = imported(capsys, file, *SAID)
    runs = describe_runs(ids)
    assert list(runs["name"]) == ["sft (imported)", "grpo (imported)"]
    table = gather(ids)
    own = table[table["run_id"] == ids[0]].set_index(["metric", "step"])["value"]
    assert dict(own) == {
        ("eval/in/add-1/reported", 0): 0.5,
        ("eval/in/add-1/reported", 1): 0.75,
        ("eval/out/facts/reported", 0): 0.9,
        ("eval/out/facts/reported", 1): 0.3,
    }
    assert table["stderr"].isna().all()
    assert set(table["base"]) == {"org/base-7B"}
    said = views.findings(table, runs)[0]
    assert "0.500 \u2192 0.750 (+0.250, no interval: standard errors are missing)" in said
    bars = {t.meta["series"]: t for t in views.scores_before_after(table, runs).data}
    assert list(bars["base"].y) == [0.9]
    assert bars["sft (imported)"].name == "sft"  # no step is known, and no run is another's kind
    assert not views.scores_over_training(table, runs).data
    over = views.scores_over_training(table, runs, x="fraction").data
    assert list(over[0].x) == [0, 1]


def test_scores_belong_to_the_run_of_other_files(tracking, file, tmp_path, capsys):
    kl = tmp_path / "kl.json"
    kl.write_text(json.dumps({"v2-step-10": 0.5, "v2-step-20": 0.7}))
    files = [str(kl), file, "--metric", "kl/all_tokens"]
    words = [*files, *SAID, "--frozen", "MLPs", "--seed", "42", "--kind", "greedy"]
    (run_id,) = imported(capsys, *words, "--model", "sft")
    table = gather([run_id]).set_index(["metric", "step"])["value"]
    assert table["kl/all_tokens", 20] == 0.7
    assert table["eval/in/add-1/greedy", 20] == 0.75
    assert table["eval/in/add-1/greedy", 0] == 0.5
    run = MlflowClient().get_run(run_id)
    assert run.data.metrics["eval/in/add-1/greedy"] == 0.75  # MLflow's own pages show it too
    assert run.info.run_name == "sft (imported)"
    assert run.data.params["frozen"] == "MLPs"
    assert run.data.params["seed"] == "42"
    assert set(json.loads(run.data.tags["scalpel.imported_files"])) == {"kl.json", "benchmarks.csv"}
    assert "takes one --model" in refused(capsys, *files, *SAID)


def test_errors_and_steps_of_a_table_are_kept(tracking, tmp_path, capsys):
    path = tmp_path / "b.parquet"
    pd.DataFrame(
        {"benchmark": ["a", "a"], "model": ["b", "t"], "accuracy": [0.5, 0.6],
         "stderr": [0.01, None], "n": [200, 200]}
    ).to_parquet(path)  # fmt: skip
    words = ["--experiment", "papers", "--base", "b", "--in-domain", "a", "--steps", "30"]
    (run_id,) = imported(capsys, str(path), *words)
    table = gather([run_id])
    assert list(table["step"]) == [0, 30]
    assert table["stderr"][0] == 0.01
    assert pd.isna(table["stderr"][1])
    assert list(table["n"]) == [200, 200]


@pytest.mark.parametrize(
    ("content", "words", "said"),
    [
        (TABLE, ["--base", "base-7B"], "is not declared, and is not guessed; give --in-domain"),
        (TABLE, ["--in-domain", "facts"], "the base is not given; give --base one of 'base-7B'"),
        (TABLE, [*SAID[2:4], "--in-domain", "sums"], "has no benchmark 'sums'"),
        (TABLE, ["--base", "llama", "--in-domain", "facts"], "'llama', which the table does not"),
        (
            TABLE,
            [*SAID[2:], "--model", "dpo"],
            "no trained model 'dpo'; --model takes one of 'sft'",
        ),
        (TABLE, [*SAID[2:], "--algorithm", "sft"], "hold 2 runs (sft, grpo), and --algorithm"),
        (TABLE.replace("0.75", "75"), SAID[2:], "line 3, column 'accuracy': '75.0' is not a share"),
        (TABLE.replace("0.75", ""), SAID[2:], "line 3, column 'accuracy'"),
        (TABLE.replace("facts,sft", "facts,"), SAID[2:], "line 6: names no model"),
        (TABLE + "facts,sft,0.4\n", SAID[2:], "sft has two values for"),
        (TABLE.replace("accuracy", "accuracy,colour", 1), SAID[2:], "column 'colour' is unknown"),
    ],
)
def test_what_is_missing_or_wrong_is_named(tracking, file, capsys, content, words, said):
    Path(file).write_text(content)
    assert said in refused(capsys, file, "--experiment", "papers", *words)
    assert MlflowClient().get_experiment_by_name("papers") is None


@pytest.mark.skipif(not PAPER.is_dir(), reason=f"the paper's published tables are not at {PAPER}")
def test_the_papers_tables_look_like_its_figures(tracking, capsys):
    words = ["--experiment", "paper", "--base", "allenai/OLMo-2-1124-7B-Instruct"]
    words += ["--in-domain", "AIME24", "MATH-500", "GSM8K", "--source", "arXiv 2507.10616"]
    norms = [str(PAPER / f"{name}_SFTv02.08.json") for name in ("norms", "kl_math500")]
    (sft,) = imported(
        capsys, *norms, str(PAPER / "benchmarks.csv"), *words, "--model", "SFT (3 epochs)",
        "--algorithm", "sft", "--learning-rate", "5e-5", "--steps", "462",
        "--metric", "kl/all_tokens",
    )  # fmt: skip
    norms = [str(PAPER / f"{name}_GRPOv01.14.json") for name in ("norms", "kl_math500")]
    (grpo,) = imported(
        capsys, *norms, str(PAPER / "benchmarks.csv"), *words, "--model", "GRPO (1 epoch)",
        "--algorithm", "grpo", "--learning-rate", "1e-6", "--steps", "571",
        "--metric", "kl/all_tokens",
    )  # fmt: skip
    variants = [
        imported(capsys, str(PAPER / "freezing.csv"), *words, "--model", model,
                 "--algorithm", "sft", "--frozen", frozen)[0]
        for model, frozen in (
            ("SFT (frozen MLPs)", "MLPs of layers 19-25"),
            ("SFT (unfrozen Q and K)", "all but q_proj and k_proj"),
        )
    ]  # fmt: skip
    ids = [grpo, sft, *variants]
    table, runs = gather(ids), describe_runs(ids)
    bars = {
        (t.meta["panel"], t.meta["series"]): t for t in views.scores_before_after(table, runs).data
    }
    trained = bars["in-domain: reported", "SFT (3 epochs) (imported)"]
    assert dict(zip(trained.x, trained.y, strict=True)) == {
        "AIME24": 0.0, "GSM8k": 0.56, "MATH-500": 0.42
    }  # fmt: skip
    figure = views.ablation_bars(table, runs)
    shown = {t.meta["series"] for t in figure.data}
    assert shown == {"base", *(f"SFT ({name}) (imported)" for name in
                               ("3 epochs", "frozen MLPs", "unfrozen Q and K"))}  # fmt: skip
    best = {t.meta["series"]: dict(zip(t.x, t.y, strict=True)) for t in figure.data
            if t.meta["panel"].startswith("out")}  # fmt: skip
    assert best["SFT (frozen MLPs) (imported)"]["GPQA:Diamond"] == 0.36
    card = {(t.meta["panel"], t.meta["series"]): t for t in views.card(table, runs).data}
    kl = card["KL from the base", "GRPO (1 epoch) (imported)"]
    assert kl.x[0] == pytest.approx(0.43, abs=5e-3)
    norm = card["Mean relative norm", "SFT (3 epochs) (imported)"]
    assert norm.text[0].startswith("lr 5e-05")
    gain = card["In-domain gain", "SFT (3 epochs) (imported)"]
    assert gain.x[0] == pytest.approx(0.98 / 3 - 1.15 / 3)
    assert gain.marker.symbol == "circle-open"  # read off figures, without standard errors
    brightest = max(
        (value, layer)
        for trace in views.weight_heatmaps(table, runs).data
        if trace.meta["series"].startswith("SFT")
        for layer, line in enumerate(trace.z)
        for value in line
    )
    assert brightest[1] in (16, 18)
