"""The benchmarks run, at the size of a test: `make bench`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent


def run(script: str, folder: Path, *options: str) -> dict:
    result = folder / "result.json"
    scratch = folder / "scratch"
    scratch.mkdir()
    command = [sys.executable, BENCHMARKS / script, "--workdir", scratch, "--json", result]
    done = subprocess.run(
        [*command, *options], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.startswith("| way |")
    assert list(scratch.iterdir()) == []
    return json.loads(result.read_text())


def test_logging_is_measured_for_every_way_and_store(tmp_path):
    result = run("log_checkpoint.py", tmp_path, "--gigabytes", "0.01", "--rounds", "1", "--server")
    weights = result["weights_bytes"]
    assert 0.7e7 < weights < 1.4e7
    rows = {(row["way"], row["store"]): row for row in result["rows"]}
    ways = ("log_checkpoint", "log_model", "MLflowCallback")
    assert list(rows) == [(way, store) for store in ("local", "server") for way in ways]
    for row in rows.values():
        assert 0 < row["blocked_seconds"] <= row["ready_seconds"]
    # Linked, not copied, into a local store; over the wire once, and without the optimizer.
    assert rows["log_checkpoint", "local"]["disk_bytes"] < 0.2 * weights
    assert weights <= rows["log_checkpoint", "server"]["disk_bytes"] < 1.2 * weights
    assert rows["log_model", "local"]["disk_bytes"] >= weights
    assert rows["MLflowCallback", "local"]["disk_bytes"] >= 3 * weights
    assert result["machine"]["cores"] >= 1


def test_hashing_is_measured_on_one_file_and_on_shards(tmp_path):
    result = run("hashing.py", tmp_path, "--gigabytes", "0.01", "--rounds", "1")
    rows = {row["way"]: row["gigabytes_per_second"] for row in result["rows"]}
    assert {"make_manifest, one file", "make_manifest, 4 shards"} < set(rows)
    assert len(rows) == 4
    assert all(speed > 0 for speed in rows.values())


def test_weights_are_measured_beside_other_ways(tmp_path):
    options = ("--gigabytes", "0.1", "--checkpoints", "2", "--rounds", "1")
    rows = run("weights.py", tmp_path, *options)["rows"]
    assert [row["way"] for row in rows] == [
        "numpy sum of the same bytes",
        "load both, norms in bfloat16",
        "group weights, one pair",
        "groups weights and histograms, one pair",
        "group weights, 2 pairs",
        "group weights, 2 checkpoints at once",
    ]
    assert all(row["gigabytes_per_second"] > 0 for row in rows)


def test_divergences_are_measured_beside_bare_forward_passes(tmp_path, first_model):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"problem": "1+1=?", "solution": "2"}\n' * 3)
    options = ("--model", str(first_model), "--texts", str(texts), "--checkpoints", "2")
    rows = run("divergence.py", tmp_path, *options)["rows"]
    assert [row["bytes_above_model"] is None for row in rows] == [True, False, False, False]


def test_storing_a_table_is_measured_through_a_server(tmp_path):
    options = ("--checkpoints", "2", "--matrices", "14", "--metrics", "3", "--rounds", "1")
    result = run("store.py", tmp_path, *options)
    assert result["values"] == 2 * 14 * 3
    assert [row["way"] for row in result["rows"]] == [
        "log_table and log_summary",
        "stored_table",
        "log_metric, a value at a time",
    ]
    assert all(len(row["seconds"]) == 1 for row in result["rows"])
    assert all(seconds > 0 for row in result["rows"] for seconds in row["seconds"])


def test_spectra_are_measured_beside_an_svd(tmp_path):
    options = ("--hidden", "64", "--intermediate", "96", "--rounds", "1")
    rows = run("spectra.py", tmp_path, *options)["rows"]
    assert [row["way"] for row in rows] == ["svdvals, float32", "group spectra"]
    assert 0.0 < rows[1]["largest_error"] < rows[0]["largest_error"] < 1e-5


def test_pages_are_measured_in_a_browser(tmp_path):
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("/usr/bin/chromium is not there: apt-get install chromium")
    options = ["--runs", "3", "--checkpoints", "3", "--workers", "1", "--rounds", "1"]
    rows = run("pages.py", tmp_path, *options, "--patience", "1")["rows"]
    rows = {row["way"]: row["seconds"] for row in rows}
    overview = [
        f"overview, {way}" for way in ("first, in view", "first", "again, in view", "again")
    ]
    assert list(rows) == [
        *("start page", *overview, "overview, known", "slider step", "10 at once"),
    ]
    assert all(0 < seconds < 60 for seconds in rows.values())


def test_a_kill_of_the_stress_is_counted(tmp_path):
    command = [sys.executable, BENCHMARKS / "stress.py", "--trials", "1", "--seed", "1"]
    done = subprocess.run(
        [*command, "--only", "python"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    scenario, trials, _, *found = done.stdout.splitlines()[-1].split()
    assert (scenario, trials, found) == ("all", "1", ["0"] * 7)
