"""What cannot be is refused when results are imported, with file, place, value and remedy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from mlflow_scalpel.cli import main
from mlflow_scalpel.comparison.gather import gather
from mlflow_scalpel.comparison.published.bounds import SCALARS, bounds_of, most_stderr
from mlflow_scalpel.metrics import all_metrics

KL = ["--metric", "kl/all_tokens"]
EVAL = ["--metric", "eval/in/MATH-500/sampled"]
TABLE = "metric,step,value,stderr,n\n"
BENCHMARKS = "benchmark,model,accuracy,stderr,n\nadd,base,0.3,,\n"
DOMAINS = ["--base", "base", "--in-domain", "add"]


def write(folder: Path, name: str, content: object) -> str:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


def refused(tmp_path, capsys, name, content, words=()) -> str:
    file = write(tmp_path, name, content)
    assert main(["import", file, "--experiment", "papers", *words]) == 2
    assert MlflowClient().get_experiment_by_name("papers") is None
    said = capsys.readouterr().err
    assert Path(file).name in said
    return said


def imported(capsys, *words: str) -> str:
    assert main(["import", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    return next(line.rsplit(" ", 1)[1] for line in lines if line.startswith("imported as run"))


@pytest.mark.parametrize(
    ("name", "content", "words", "said"),
    [
        ("kl.json", {"v-step-9": -0.1}, KL, "'v-step-9': kl/all_tokens = -0.1"),
        ("kl.json", {"v-step-9": -0.1}, [*KL, "--dtype", "bfloat16"], "KL is never negative"),
        ("kl.json", {"v-step-9": -1e-3}, KL, "with --dtype"),
        ("kl.json", {"v-step-9": 122.0}, KL, "more than 50 nats a token is not a KL"),
        ("kl.json", {"main": 122.0, "v-step-9": 1.0}, KL, "'main': kl/all_tokens = 122"),
        ("acc.json", {"v-step-9": 32.6}, EVAL, "in percent? Give it as a share of 1: 0.326"),
        ("acc.json", {"v-step-9": -0.1}, EVAL, "is not in [0, 1]"),
        ("n.json", {"v-step-9": {"q_proj": [0.1, -0.2]}}, [], "'v-step-9', q_proj, 1: weights/rel"),
        ("t.csv", TABLE + "kl/js/all_tokens,1,0.7,,\n", [], "line 2: kl/js/all_tokens = 0.7"),
        ("t.csv", TABLE + "kl/gini/all_tokens,1,1.2,,\n", [], "is not in [0, 1]"),
        ("t.csv", TABLE + "capabilities/gained_p,1,1.5,,\n", [], "is not in [0, 1]"),
        ("t.csv", TABLE + "capabilities/in_domain_gain_p,1,-0.5,,\n", [], "is not in [0, 1]"),
        ("t.csv", TABLE + "pairs/update_cosine,1,-1.1,,\n", [], "is not in [-1, 1]"),
        ("t.csv", TABLE + "weights/update_rms,1,-0.1,,\n", [], "is not in [0, inf)"),
        ("t.csv", TABLE + "eval/in/a/b,1,35,,\n", [], "share of 1: 0.35"),
        ("t.csv", TABLE + "eval/in/a/b,1,0.35,1.1,500\n", [], "stderr = 1.1"),
        ("t.csv", TABLE + "eval/in/a/b,1,0.35,0.6,\n", [], "of two problems or more"),
        ("t.csv", TABLE + "eval/in/a/b,1,0.5,0.5,500\n", [], "the standard deviation"),
        ("t.csv", TABLE + "eval/in/a/b,1,0.5,-0.01,500\n", [], "stderr = -0.01"),
        ("t.csv", TABLE + "kl/all_tokens,1,0.5,inf,500\n", [], "stderr = inf"),
        ("t.csv", TABLE + "eval/in/a/b,1,0.5,,0\n", [], "n = 0"),
        ("t.csv", TABLE + "eval/in/a/b,-1,0.5,,\n", [], "step = -1 is negative"),
        ("b.csv", BENCHMARKS + "add,sft,0.35,1.1,500\n", DOMAINS, "line 3: stderr = 1.1"),
        ("b.csv", BENCHMARKS + "add,sft,0.35,0.1,500\n", DOMAINS, "n = 500 has one of 0.028"),
        ("b.csv", BENCHMARKS + "add,sft,0.35,0.02,0\n", DOMAINS, "n = 0"),
        ("b.csv", BENCHMARKS + "add,sft,0.35,0.02,2.5\n", DOMAINS, "'n': '2.5'"),
        ("kl.json", {"v-step-9": 0.1}, [*KL, "--steps", "8"], "a checkpoint at step 9"),
    ],
)
def test_what_cannot_be_is_refused(tracking, tmp_path, capsys, name, content, words, said):
    assert said in refused(tmp_path, capsys, name, content, words)


def test_a_bare_number_is_asked_what_it_is(tracking, tmp_path, capsys):
    said = refused(tmp_path, capsys, "math_500.json", {"v-step-29": 0.326})
    assert "'v-step-29' is a bare number (0.326)" in said
    for option in ("--metric", "kl/all_tokens", "eval/in/BENCHMARK/KIND"):
        assert option in said
    file = str(tmp_path / "math_500.json")
    for wrong in ("weights/relative_frobenius", "kl/quantile/all_tokens", "eval/in/x", "kl"):
        assert main(["import", file, "--experiment", "e", "--metric", wrong]) == 2
        assert f"--metric {wrong}" in capsys.readouterr().err
    assert main(["import", file, "--experiment", "e", "--metric", "a.json=kl/all_tokens"]) == 2
    assert "no file 'a.json'" in capsys.readouterr().err


def test_each_of_several_files_is_what_is_said_of_it(tracking, tmp_path, capsys):
    kl = write(tmp_path, "kl.json", {"v-step-29": -0.001, "v-step-58": 4.7})
    accuracies = write(tmp_path, "math_500.json", {"v-step-29": 0.326, "v-step-58": 0.324})
    said = ["--metric", "kl/all_tokens", "math_500.json=eval/in/MATH-500/sampled"]
    words = [kl, accuracies, "--experiment", "e", "--dtype", "bfloat16", "--steps", "58"]
    table = gather([imported(capsys, *words, *said)])
    assert list(table["status"]) == ["ok"] * 4
    found = {(row.metric, row.step): (row.value, row.unit) for row in table.itertuples()}
    assert found == {
        ("kl/all_tokens", 29): (-0.001, "nats/token"),
        ("kl/all_tokens", 58): (4.7, "nats/token"),
        ("eval/in/MATH-500/sampled", 29): (0.326, "accuracy"),
        ("eval/in/MATH-500/sampled", 58): (0.324, "accuracy"),
    }


def test_a_possible_error_is_never_refused():
    """The bound is held by every sample of scores, and by errors that were rounded for print."""
    random = np.random.default_rng(0)
    for _ in range(3000):
        n = int(random.integers(2, 60))
        a = 10.0 ** random.uniform(-2, 1)
        scores = random.beta(a, a * random.uniform(0.1, 10), n)
        if random.random() < 0.5:
            scores = (scores > random.random()).astype(float)
        stderr = scores.std(ddof=1) / np.sqrt(n)
        digits = int(random.integers(2, 6))
        rounded = round(float(scores.mean()), digits), round(float(stderr), digits)
        assert rounded[1] <= most_stderr(rounded[0], n)
        assert rounded[1] <= most_stderr(rounded[0], None)


def test_every_metric_here_has_bounds_and_scalars_are_metrics():
    units = {one.name: one.unit for one in all_metrics()}
    assert SCALARS.items() <= units.items()
    for name, unit in units.items():
        low, high = bounds_of(name)
        assert low < high
        if unit in ("accuracy", "probability", "fraction") and "gain" not in name:
            assert high == 1.0 or name.startswith("histograms"), name
        if unit == "nats/token":
            assert low == 0.0
