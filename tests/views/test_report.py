"""The report: one file, no network, nobody's markup but its own."""

from __future__ import annotations

import dataclasses
import html.parser
import re
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from plotly.offline import get_plotlyjs

from mlflow_scalpel import views
from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.metrics import all_metrics
from mlflow_scalpel.tensors.places import CLASSICAL as MATRICES
from mlflow_scalpel.views.common.slider import ROOM
from mlflow_scalpel.views.common.table import clean_table
from mlflow_scalpel.views.report.browser import plotly_js
from mlflow_scalpel.views.report.report import gap_texts
from mlflow_scalpel.views.sections import SECTIONS
from tests.metrics.test_capabilities import benchmark
from tests.views.whole import ledger_of

NONE = "unmeasured"
EVIL = "<script>alert(\"x\")</script> <img src=x onerror='alert(1)'>"


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def shown_of(table: pd.DataFrame) -> dict[str, list[str]]:
    """Sections of a report of this table and their figures; no run of it has frozen weights."""
    metrics = list(table["metric"].dropna().unique())
    sections = {
        one.stem: [
            stem
            for stem, figure in one.figures.items()
            if figure.has_rows(metrics) and figure.draw(table).data
        ]
        for one in SECTIONS
        if one.stem != "ablations"
    }
    return {stem: figures for stem, figures in sections.items() if figures}


def count_figures(table: pd.DataFrame) -> int:
    return sum(map(len, shown_of(table).values()))


@pytest.fixture
def write(tmp_path):
    """Write a report and return its HTML without Plotly's own source."""

    def writer(table, runs, **options) -> str:
        path = views.write_report(table, runs, tmp_path / "a" / "r.html", title="T", **options)
        text = path.read_text(encoding="utf-8")
        assert text.count(plotly_js()) == 1
        return text.replace(plotly_js(), "")

    return writer


def test_one_file_that_loads_nothing(write, table, runs):
    text = write(table, runs)
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("link", "img", "iframe", "object", "base")]
    assert not [a for _, a in page.tags if "src" in a]
    anchors = {a["href"] for _, a in page.tags if "href" in a}
    assert anchors == {f"#{a['id']}" for tag, a in page.tags if tag == "h2" and a["id"] != NONE}
    assert not re.search(r"@import|url\(", text)
    assert not re.search(r"cdn\.|https?://(?!www\.w3\.org)", text.replace("https://plot.ly", ""))
    assert "prefers-color-scheme: dark" in text


def test_sections_in_order_with_their_figures(write, table, runs):
    text = write(table, runs)
    stems = re.findall(r'<h2 id="(\w+)"', text)
    parts = [*shown_of(table)]
    some = ["card", "weights", "where", "update", "kl", "scores", "in_versus_out", "cost"]
    assert [stem for stem in parts if stem in some] == some
    assert stems == [*parts, "confounders", NONE]
    figures = re.findall(r'<div id="figure-(\w+)"', text)
    assert figures == [stem for shown in shown_of(table).values() for stem in shown]
    assert "AdamW" in text


def test_summary_says_what_was_compared_and_found(write, table, runs):
    text = Page(write(table, runs, notes=["<b>a note</b>"])).text
    assert "Base: tiny-base (sha256:base)." in text
    assert "One seed each (grpo; sft; sft-matched)" in text
    assert "<b>a note</b>" in text
    assert (
        "grpo: in-domain sampled accuracy (mean over 2 skills) 0.550 \u2192 0.700 (+0.150, 95 % "
        in text
    )
    assert (
        "out-of-domain greedy accuracy (facts) 0.980 \u2192 0.680 (\u22120.300, 95 % interval"
        in text
    )
    assert (
        "sft (300 steps, learning rate 5e-05) has 45 times the mean relative norm of grpo "
        "(300 steps, learning rate 1e-06), and 0.9 times" in text
    )
    assert "runs of unequal learning rate, which the plain ratio measures as well" in text


def test_findings_claim_nothing_within_the_interval(table, runs):
    said = {text.split(":")[0]: text for text in views.findings(table, runs) if ":" in text}
    assert said["sft-matched"].count("which includes 0") == 2
    assert said["grpo"].count("which includes 0") == 1
    assert "includes 0" not in said["sft"]
    table["stderr"] = pd.NA
    bare = views.findings(table, runs)
    assert "no interval: standard errors are missing" in bare[0]
    assert "".join(bare).count("standard errors are missing") == 1
    assert bare[1].count(", no interval)") == 2


def test_findings_of_half_a_table(table, runs):
    weights = table[table["metric"].str.startswith("weights/")]
    text = views.findings(weights, runs)[0]
    assert "no checkpoint was evaluated" in text
    assert "KL from the base not measured" in text
    scores = table[table["metric"].str.startswith("eval/") & (table["step"] > 0)]
    assert "no scores of its base" in views.findings(scores, runs)[0]
    assert "weights not compared" in views.findings(scores, runs)[0]


def test_two_seeds_are_not_called_one(write, table, runs):
    runs.loc["bbbb2222"] = runs.loc["cccc3333"]
    runs["name"] = ["grpo", "sft-a", "sft-b"]
    runs["seed"] = ["42", "42", "43"]
    assert "One seed (grpo):" in write(table, runs)
    assert "Seeds were not recorded" in write(table, None)


def test_other_peoples_text_is_escaped(write, table, runs):
    runs["name"] = [EVIL, "sft", "b"]
    runs["beta"] = EVIL
    runs[EVIL] = ["a", "b", "c"]
    table["base"] = EVIL
    table.loc[table["step"] == 200, ["value", "status", "reason"]] = [None, "failed", EVIL]
    page = Page(write(table, runs, notes=[EVIL]))
    assert "alert" not in str(page.tags)
    assert [tag for tag, _ in page.tags].count("script") == 3 + count_figures(
        table
    )  # Plotly, keys, links
    assert page.text.count(EVIL) >= 5


def test_warnings_of_runs_stand_above_the_findings_and_are_no_confounder(write, table, runs):
    first, second = list(runs.index)[:2]
    warned = runs.assign(warnings="")
    warned.loc[first, "warnings"] = "12 of 20 problems are not graded\nnothing ever stops " + EVIL
    text = write(table, warned)
    shown = Page(text).text
    assert "<script>alert" not in text
    assert shown.index("12 of 20 problems are not graded") < shown.index("What the numbers say")
    assert f"{runs['name'][first]}: nothing ever stops" in shown
    assert "Warnings" not in Page(write(table, runs)).text
    assert "warnings" not in views.confounders(warned).index
    assert second in warned.index


def test_missing_sections_say_what_to_run(write, table, runs):
    text = Page(write(table.iloc[:0], None)).text
    assert "mlflow run . -e compare" in text
    assert "the ledger of problems: run mlflow run . -e evaluate" in " ".join(text.split())
    assert "mlflow run . -e evaluate" in text
    assert "the table has no runs" in text
    assert "Nothing was recorded about the runs" in text


def test_missing_values_are_listed(write, table, runs):
    table.loc[table["metric"] == "kl/all_tokens", ["value", "status", "reason"]] = [
        None,
        "failed",
        "out of memory",
    ]
    text = write(table, runs)
    assert "kl/all_tokens: 18 of 18 values (out of memory)" in Page(text).text
    assert ("details", {"class": "card missing"}) in Page(text).tags  # closed


def test_what_does_not_apply_is_no_gap():
    """Of one sample per problem, with nothing gained or lost: only what was not done."""
    same, more = benchmark([[0], [1]], [[0], [1]]), benchmark([[0], [1]], [[1], [0]])
    outside = dataclasses.replace(same, domain="out")
    rows = [
        {"run_id": "r", "step": step, "metric": one.name, "value": found.value, "bin": found.bin,
         "status": found.status, "reason": found.reason, "texts": f"{number} {i}"}
        for step in (0, 1)
        for one in all_metrics() if one.group == "capabilities"
        for number, arms in enumerate(([same, outside], [more, outside]))
        for i, found in enumerate(one.function(arms))
    ]  # fmt: skip
    table = clean_table(tidy(rows))
    assert {"no problem was gained", "no problem was lost"} < set(table["reason"])
    assert [line.split(":")[0] for line in gap_texts(table)] == [
        "capabilities/gold_loglik_change",
        "capabilities/gold_loglik_change_after_opening",
    ]
    assert "set gold_loglik" in gap_texts(table)[0]
    assert gap_texts(table, ["kl/"]) == []


def test_many_reasons_are_counted(write, table, runs):
    where = table["metric"] == "kl/all_tokens"
    table.loc[where, ["value", "status"]] = [None, "failed"]
    table.loc[where, "reason"] = [f"reason {i}" for i in range(where.sum())]
    text = Page(write(table, runs)).text
    assert "kl/all_tokens: 18 of 18 values (reason 0; reason 1; and 16 more reasons)" in text


def test_values_without_a_step_are_counted(write, table):
    table["step"] = pd.NA
    table["run_id"] = pd.NA
    text = Page(write(table, None)).text
    assert f"{len(table)} values belong to no step of training" in text


def test_figures_as_files(table, runs, tmp_path):
    written, _ = views.write_figures(table, runs, tmp_path / "figures")
    stems = {path.stem for path in written if path.suffix == ".html"}
    assert len(stems) == count_figures(table)
    assert stems == {p.stem for p in written if p.suffix == ".csv"} - {"confounders"}
    assert all(path.stat().st_size for path in written)
    for path in written:
        if path.suffix == ".csv" and path.stem != "confounders":
            drawn = pd.read_csv(path)
            # A gap within a line has its step; what has no place at all is of the legend.
            assert drawn.groupby(["panel", "series"], dropna=False)["x"].count().all(), path.stem
    kl = pd.read_csv(tmp_path / "figures" / "kl_over_training.csv")
    row = kl[(kl["panel"] == "base_style: all tokens") & (kl["series"] == "sft") & (kl["x"] == 1)]
    assert row["y"].iloc[0] == pytest.approx(0.09)
    assert row["half_y"].iloc[0] == pytest.approx(1.96 * 0.009)


def test_without_kaleido_there_are_no_pictures_and_it_is_said(table, runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    written, why = views.write_figures(table[table["metric"] == "cost/flops"], runs, tmp_path)
    assert why == (
        "no PNG files: drawing them needs kaleido, which is not installed: "
        "pip install 'mlflow-scalpel[png]'"
    )
    assert {path.name for path in written} == {
        "cost.csv",
        "cost.html",
        "confounders.csv",
        "plotly-cartesian.min.js",
    }


def test_figures_as_pictures(table, runs, tmp_path):
    pytest.importorskip("kaleido")
    rows = table[table["metric"].isin(["cost/flops", "weights/relative_frobenius"])]
    written, why = views.write_figures(rows, runs, tmp_path)
    if "no Chrome" in why:
        pytest.skip(why)
    assert why == ""
    pictures = {path.stem: Image.open(path) for path in written if path.suffix == ".png"}
    assert set(pictures) == {path.stem for path in written if path.suffix == ".html"}
    figure = views.weight_heatmaps(rows, runs)
    height = figure.layout.height - ROOM  # a picture has no slider
    assert pictures["weight_heatmaps"].size == (2800, 2 * height)
    pixels = np.asarray(pictures["cost"].convert("RGB")).astype(int)
    for colour in ((0, 0x72, 0xB2), (0xE6, 0x9F, 0), (255, 255, 255)):
        assert (np.abs(pixels - colour).max(axis=-1) <= 3).mean() > 1e-4


def test_confounders(runs):
    frame = views.confounders(runs)
    assert list(frame.columns) == ["grpo", "sft", "sft-matched"]
    assert list(frame.index) == ["learning_rate", "data", "algorithm", "beta"]
    assert list(frame.loc["beta"]) == ["0", "not recorded", "not recorded"]
    assert views.confounders(runs.iloc[:1]).empty
    runs["learning_rate"] = ["1e-06", "0.000001", 1e-6]
    assert "learning_rate" not in views.confounders(runs).index


def test_confounder_table_always_shows_five_and_escapes(runs):
    runs["data"] = EVIL
    text = views.confounder_table(runs)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    for parameter in ("learning_rate", "steps", "dtype", "data", "seed"):
        assert f">{parameter}</" in text
    assert text.count('<tr class="same">') == 4


def test_confounders_are_bold_but_for_what_is_asked(runs):
    text = views.confounder_table(runs)
    assert "<th><b>learning_rate</b></th><td><b><bdi>1e-06</bdi></b></td>" in text
    assert "<th>algorithm</th><td><bdi>grpo</bdi></td>" in text
    assert "<th>steps</th><td><bdi>300</bdi></td>" in text
    runs["algorithm"] = "sft"
    runs["frozen"] = [None, "MLPs", None]
    text = views.confounder_table(runs)
    assert "<td><bdi>MLPs</bdi></td>" in text
    assert "<b><bdi>1e-06</bdi></b>" in text
    assert "<th><b>algorithm</b></th>" in views.confounder_table(
        runs.assign(algorithm=["a", "b", "c"]), about=["learning_rate"]
    )


def test_names_read_from_right_to_left_turn_no_cell_beside_them(whole, runs):
    runs["name"] = names = ["\u05de\u05d5\u05d3\u05dc 3", "\u0646\u0645\u0648\u0630\u062c", "sft"]
    runs["frozen"] = ["None", "", "MLPs"]
    card, differ = views.card_table(whole, runs), views.confounder_table(runs)
    for table in (card, differ):
        assert all(f"<th><bdi>{name}</bdi></th>" in table for name in names)
    assert "<td><bdi>grpo</bdi></td>" in differ
    assert "<th><bdi>sft</bdi></th><td><bdi>MLPs</bdi></td>" in views.frozen_table(whole, runs)


def test_lost_problems_stand_in_the_report(write, whole, runs):
    ledgers = {"aaaa1111": ledger_of("<b>What</b>?", "y" * 9_000), "bbbb2222": ledger_of()[:1]}
    text = write(whole, runs, ledgers=ledgers)
    assert "<summary>grpo: problems it lost, with both answers</summary>" in text
    assert "&lt;b&gt;What&lt;/b&gt;? (lost)" in text
    assert "(gained)" not in text
    assert "y" * 4_001 not in text
    assert "<summary>sft: lost no problem</summary>" in text


def test_capabilities_and_freezing_have_their_sections(write, whole, runs):
    runs["frozen"] = [None, None, "MLPs"]
    text = write(whole, runs)
    stems = re.findall(r'<h2 id="(\w+)"', text)
    assert {"capabilities", "ablations"} <= set(stems)
    for stem in ("ledger", "pass_at_k", "amplified", "ablation_bars"):
        assert f'<div id="figure-{stem}"' in text
    assert "no: 0 elements differ" in text
    assert "crossing_k:" not in text  # looked for and not found is no gap


@pytest.mark.slow
def test_a_large_report_is_small_and_quick(tmp_path):
    """Two runs x 20 checkpoints x 224 matrices x 10 metrics; seconds of this process alone."""
    rng = np.random.default_rng(0)
    metrics = [
        *(f"weights/{name}" for name in ("relative_frobenius", "relative_frobenius_per_lr",
          "update_rms", "largest_change", "cosine_distance", "unchanged", "unchanged_bfloat16")),
        *(f"spectra/{name}" for name in ("update_spectral_norm", "stable_rank", "effective_rank")),
    ]  # fmt: skip
    cells = pd.MultiIndex.from_product(
        [["aaaa1111", "bbbb2222"], range(30, 630, 30), metrics, range(32), MATRICES],
        names=["run_id", "step", "metric", "layer", "matrix"],
    ).to_frame(index=False)
    table = tidy([{"base": "b", "base_digest": "d"}] * len(cells))
    table = table.assign(**cells, model_id="m", value=rng.random(len(cells)) * cells["step"])
    table = table.assign(
        algorithm=np.where(table["run_id"] == "aaaa1111", "grpo", "sft"), status="ok"
    )
    before = time.process_time()
    path = views.write_report(table, None, tmp_path / "r.html", title="large")
    assert time.process_time() - before < 5
    assert path.stat().st_size < 8e6
    before = time.process_time()
    assert len(views.findings(table)) == 3
    assert time.process_time() - before < 1


def test_plotlys_script_is_of_the_version_of_the_package_and_draws_what_the_views_draw():
    versions = [re.search(r"plotly\.js.* v(\d\S+)", text[:200])[1] for text in
                (plotly_js(), get_plotlyjs())]  # fmt: skip
    assert versions[0] == versions[1]
    for kind in ("scatter", "bar", "heatmap"):
        assert f'name:"{kind}"' in plotly_js()
