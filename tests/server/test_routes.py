"""The pages beside any store: what they answer, what they refuse, and what they keep."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from mlflow import MlflowClient

from mlflow_scalpel.comparison.run_queries import (
    ARGUMENTS,
    LEDGER,
    TABLE,
    ClientSource,
)
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.server import data
from mlflow_scalpel.server.caching import Cache
from mlflow_scalpel.server.data import Tables
from mlflow_scalpel.server.loopback import make_app, open_server
from mlflow_scalpel.views.common.view import Placement
from mlflow_scalpel.views.pages import PAGES
from tests.server.conftest import (
    ODD,
    lines,
    log_compared,
    log_parquet,
    log_run,
    measured,
)

LONG = "x" * 1_000_000


def test_every_page_and_file_is_served_with_its_policy(get):
    for path in ("", *(page.name for page in PAGES), "static/page.js", "static/scalpel.css"):
        response = get(path)
        assert response.status_code == 200, path
        policy = response.headers["Content-Security-Policy"]
        assert "script-src 'self';" in policy
        assert "http" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "http" not in get("overview").text.replace("http-equiv", "")


def test_a_file_that_did_not_change_is_not_sent_again(app, get):
    tag = get("static/plotly.js").headers["ETag"]
    headers = {"Host": "localhost", "If-None-Match": tag}
    assert app.test_client().get("/scalpel/static/plotly.js", headers=headers).status_code == 304


def test_what_changes_something_is_no_route(app):
    rules = [rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/scalpel")]
    assert len(rules) > 10
    assert all(rule.methods <= {"GET", "HEAD", "OPTIONS"} for rule in rules)


def test_only_this_machines_names_are_hosts(get):
    for host in ("localhost:5005", "127.0.0.1", "[::1]:5005"):
        assert get("", host).status_code == 200
    for host in (
        *("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:5005", ""),
        *("localhost:5005.evil.example", "127.0.0.1:5005:80", "[::1]:5005@evil.example"),
    ):
        assert get("", host).status_code == 403, host


@pytest.mark.parametrize("path", ["static/../app.py", "static/%2e%2e/app.py", "static//etc/passwd",
                                  "static/secret", "../mlflow.db", "data/nothing"])  # fmt: skip
def test_no_path_leads_to_another_file(get, path):
    assert get(path).status_code == 404


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("data/figures?page=overview&runs=../../etc/passwd", 400, "is not a run ID"),
        (f"data/figures?page=overview&runs={LONG}", 400, "is not a run ID"),
        (f"data/figures?page=overview&runs={'0' * 32}", 403, "no such run, or you may not"),
        ("data/figures?page=overview&runs=", 400, "no run is chosen"),
        (f"data/figures?page=overview&runs={','.join(f'{i:032x}' for i in range(30))}", 400,
         "30 runs: choose at most 24"),
        ("data/runs?experiment=../1", 400, "is not an experiment's ID"),
        ("data/checkpoints?run=x", 400, "run ID, which has 32"),
        (f"data/more?kind=tokens&runs={'0' * 32}", 403, "no such run"),
    ],
)  # fmt: skip
def test_what_is_refused_says_why(get, path, status, said):
    response = get(path)
    assert response.status_code == status
    assert said in response.json["error"]
    assert len(response.text) < 1000


def test_names_of_pages_and_details_are_checked(get, logged):
    run_id = logged[2]
    assert "there is none" in get(f"data/figures?page={ODD[:8]}&runs={run_id}").text
    assert "do not exist" in get(f"data/more?kind=x&runs={run_id}").json["error"]


def test_the_start_page_lists_runs_with_their_checkpoints(get, logged):
    client, experiment_id, run_id = logged
    found = get(f"data/runs?experiment={experiment_id}").json["runs"]
    assert [run["id"] for run in found] == [run_id]  # and not its evaluation
    assert found[0]["measured"] == ["kl"]
    log_compared(logged, [{"run_id": run_id, "metric": "weights/x"}])
    (comparison,) = client.search_runs([experiment_id], "tags.`scalpel.stage` = 'compare'")
    client.log_metric(comparison.info.run_id, "weights/x/mean", 1.0)
    found = get(f"data/runs?experiment={experiment_id}").json["runs"]
    assert [(run["id"], run["measured"]) for run in found] == [(run_id, ["kl", "weights"])]
    assert found[0]["checkpoints"] == [100, 200, 300]
    assert found[0]["name"] == " ".join(f"run {ODD}".split())
    client.set_tag(run_id, "mlflow.runName", LONG[:4000])
    cut = get(f"data/runs?experiment={experiment_id}").json["runs"][0]["name"]
    assert len(cut) == 400
    states = [one["state"] for one in get(f"data/checkpoints?run={run_id}").json["checkpoints"]]
    assert states == ["READY"] * 3


def test_figures_come_line_by_line_and_settings_are_checked(get, logged):
    run_id = logged[2]
    first, *rest = lines(get(f"data/figures?page=weights&runs={run_id}&metric=nothing&x={ODD[:8]}"))
    values = {control["name"]: control["value"] for control in first["controls"]}
    assert values["metric"] == "weights/relative_frobenius"
    stems = [line["stem"] for line in rest]
    assert "weight_heatmaps" in stems
    assert "weight_heatmaps_own_scale" not in stems  # a setting of the other one
    heat = next(line for line in rest if line["stem"] == "weight_heatmaps")
    assert len(heat["steps"]) == 3
    assert heat["figure"]["layout"].get("sliders", []) == []
    (_, only) = lines(get(f"data/figures?page=weights&runs={run_id}&figures=weight_heatmaps"))
    assert only == heat


def test_a_figure_that_breaks_spoils_no_other(get, logged, monkeypatch):
    from mlflow_scalpel.views import pages

    def broken(table, runs=None):
        raise ZeroDivisionError(ODD)

    page = pages.page_named("overview")
    section = next(one for one in page.sections() if one.stem == "cost")
    figure = dataclasses.replace(section.figures["cost"], view=broken)
    monkeypatch.setitem(section.figures, "cost", figure)
    found = {
        line.get("stem"): line
        for line in lines(get(f"data/figures?page=overview&runs={logged[2]}"))
    }
    assert found["cost"]["error"].startswith("ZeroDivisionError: <script>")
    assert "figure" in found["kl_over_training"]


def test_a_run_that_nobody_measured_says_what_to_run(get, logged):
    client, experiment_id, _ = logged
    bare = log_run(client, experiment_id, "bbbb2222", name="bare", table=False)
    about, *rest = lines(get(f"data/figures?page=weights&runs={bare}"))
    assert "bare: nothing was measured of this run yet" in about["about"]["notes"][0]
    assert all("Comes from" in line["empty"] for line in rest if "empty" in line)
    assert not any("figure" in line for line in rest)


def test_figures_of_one_command_are_told_once_and_nothing_is_to_be_set(get, logged):
    client, experiment_id, _ = logged
    run_id = log_run(client, experiment_id, "aaaa1111", table=False)
    table = measured(run_id, "aaaa1111")
    log_parquet(client, run_id, table[~table["metric"].str.startswith("attention/")], TABLE)
    about, *rest = lines(get(f"data/figures?page=weights&runs={run_id}"))
    found = {line["stem"]: line for line in rest}
    assert found["change_histogram"]["empty"] == (
        "Not measured: histograms of the change, change by magnitude, spectra of the updates, "
        "spectra of the updates by layer. Comes from: mlflow-scalpel compare BASE runs:/RUN "
        "--metrics histograms spectra --log."
    )
    for stem in ("change_by_magnitude", "spectra_over_training", "spectra_by_layer"):
        assert found[stem] == {"stem": stem, "told_at": "change_histogram"}
    assert {one["name"] for one in about["controls"]} >= {"by", "x", "layer"}
    about, only = lines(get(f"data/figures?page=attention&runs={run_id}"))
    assert "--metrics attention" in only["empty"]
    assert about["controls"] == []


def test_a_page_says_which_of_its_own_values_are_missing(get, logged):
    client, experiment_id, _ = logged
    table = measured("0" * 32, "aaaa1111")
    lost = table["metric"].isin(["kl/all_tokens", "weights/update_rms"])
    table.loc[lost, ["value", "status", "reason"]] = [None, "failed", "out of memory"]
    run_id = log_run(client, experiment_id, "aaaa1111", table=False)
    log_parquet(client, run_id, table.assign(run_id=run_id), TABLE)
    gaps = {}
    for page in ("divergence", "attention"):
        gaps[page] = lines(get(f"data/figures?page={page}&runs={run_id}"))[0]["about"]["gaps"]
    assert gaps == {"divergence": ["kl/all_tokens: 6 of 6 values (out of memory)"], "attention": []}


def test_every_offered_metric_is_drawn(get, tracking):
    client = MlflowClient(tracking)
    experiment_id = client.get_experiment_by_name("tests").experiment_id
    run_id = log_run(client, experiment_id, "aaaa1111", table=False)
    table = measured(run_id, "aaaa1111")
    spectra = table[table["metric"] == "weights/update_rms"].assign(metric="spectra/stable_rank")
    log_parquet(client, run_id, pd.concat([table, spectra]), TABLE)
    address = f"data/figures?page=weights&runs={run_id}&figures=weight_heatmaps"
    first, _ = lines(get(address))
    (control,) = [one for one in first["controls"] if one["name"] == "metric"]
    offered = [value for value, _ in control["choices"]]
    assert "spectra/stable_rank" in offered
    for metric in offered:
        _, line = lines(get(f"{address}&metric={metric}"))
        assert line["figure"]["data"], metric


def test_a_damaged_file_spoils_nothing_of_other_runs(get, logged, tmp_path):
    client, experiment_id, good = logged
    bad = log_run(client, experiment_id, "bbbb2222", name="bad")
    whole = measured(bad, "bbbb2222")
    whole.to_parquet(tmp_path / "table.parquet")
    content = (tmp_path / "table.parquet").read_bytes()
    (tmp_path / "table.parquet").write_bytes(content[: len(content) // 2])
    client.log_artifact(bad, str(tmp_path / "table.parquet"), TABLE.rsplit("/", 1)[0])
    (tmp_path / ARGUMENTS).write_text("{nothing")
    client.log_artifact(bad, str(tmp_path / ARGUMENTS))
    about, *rest = lines(get(f"data/figures?page=weights&runs={good},{bad}"))
    notes = about["about"]["notes"]
    assert [f"run {bad}: {path} cannot be read" in notes[i] for i, path in
            enumerate((TABLE, ARGUMENTS))] == [True, True]  # fmt: skip
    assert "figure" in next(line for line in rest if line["stem"] == "weight_heatmaps")


def test_details_of_another_version_say_so(get, logged):
    client, experiment_id, _ = logged
    run_id = log_run(client, experiment_id, "aaaa1111", table=False)
    log_parquet(client, run_id, pd.DataFrame({"problem": ["1 + 1"]}), LEDGER)
    response = get(f"data/more?kind=problems&runs={run_id}")
    assert response.status_code == 400
    assert "the problems of this run cannot be shown" in response.json["error"]


def test_the_link_to_mlflow_holds_no_password():
    app = make_app("https://me:secret@127.0.0.1:9/a")
    text = app.test_client().get("/scalpel/overview", headers={"Host": "localhost"}).text
    assert 'href="https://127.0.0.1:9/a/"' in text
    assert "secret" not in text


def test_tokens_and_problems_are_text(get, logged):
    run_id = logged[2]
    for kind in ("tokens", "problems"):
        answer = get(f"data/more?kind={kind}&runs={run_id}").json
        assert "&lt;script&gt;" in answer["html"]
        assert "<script" not in answer["html"]
    fields = {field["name"]: field["value"] for field in answer["fields"]}
    assert fields == {"run": run_id, "benchmark": "in/add/sampled", "step": "200", "status": ""}


def test_a_table_is_read_once_and_again_when_it_changes(tracking, logged, monkeypatch):
    client, _, run_id = logged
    reads = []
    source = ClientSource(tracking)
    read = source.artifact
    monkeypatch.setattr(source, "artifact", lambda run, path: reads.append(path) or read(run, path))
    tables = Tables()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: tables.select(source, [run_id]), range(16)))
    assert reads == [TABLE]
    assert all(one.table is found[0].table for one in found)
    monkeypatch.setattr(data, "_LISTING_SECONDS", 0.0)
    log_parquet(client, run_id, measured(run_id, "bbbb2222").head(500), TABLE)
    assert len(tables.select(source, [run_id]).table) < len(found[0].table)
    assert reads == [TABLE, TABLE]


def test_the_whole_table_is_looked_through_once_for_what_it_lacks(get, logged, monkeypatch):
    address = f"data/figures?page=weights&runs={logged[2]}"
    looked: list[str] = []
    has_rows = Placement.has_rows
    monkeypatch.setattr(
        Placement,
        "has_rows",
        lambda one, metrics: looked.append(one.name) or has_rows(one, metrics),
    )
    first = lines(get(address))
    assert looked
    assert any("empty" in line for line in first)
    looked.clear()
    assert lines(get(address)) == first
    assert not looked


def test_a_port_that_is_taken_is_said(tracking):
    server = open_server(tracking, 0)
    try:
        with pytest.raises(ScalpelError, match="cannot be listened on"):
            open_server(tracking, server.port)
    finally:
        server.server_close()


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_what_is_no_port_is_said(tracking, port):
    with pytest.raises(ScalpelError, match=f"--port {port}: .*up to 65535"):
        open_server(tracking, port)


def test_a_cache_makes_once_forgets_the_oldest_and_no_failure():
    made = []

    def make(key: str) -> bytes:
        made.append(key)
        time.sleep(0.05)
        if key == "bad" and made.count("bad") == 1:
            raise ValueError("not this time")
        return b"x" * 40

    cache = Cache(100, len)
    threads = [threading.Thread(target=cache.get, args=("a", lambda: make("a"))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["a"]
    with pytest.raises(ValueError, match="not this time"):
        cache.get("bad", lambda: make("bad"))
    cache.get("bad", lambda: make("bad"))
    cache.get("c", lambda: make("c"))  # the third: the first one goes
    cache.get("a", lambda: make("a"))
    assert made == ["a", "bad", "bad", "c", "a"]
    assert cache.bytes <= 100


def test_warming_imports_what_a_page_needs():
    code = (
        "import sys; from mlflow_scalpel.server.routes import warm_in_background\n"
        "assert 'plotly' not in sys.modules; warm_in_background().join()\n"
        "print({'pyarrow.parquet', 'plotly.graph_objs._scatter'} <= set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n", done.stderr
    assert done.stderr == ""
