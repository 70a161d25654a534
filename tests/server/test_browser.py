"""Every page in Chromium: no console error, and no request that leaves the machine."""

from __future__ import annotations

import re
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from mlflow_scalpel.views.pages import PAGES
from tests.server.conftest import ODD, ask, settled

pytestmark = pytest.mark.slow  # a server and a browser


def drawn(page, stem):
    """The place of a figure, once it is drawn."""
    place = page.locator(f'[data-figure="{stem}"]')
    page.locator(f'[data-figure="{stem}"][data-drawn]').wait_for(timeout=30_000)
    return place


def test_choose_runs_and_go_to_a_view(pages, open_page):
    page = open_page(f"{pages.root}?experiment={pages.experiment_id}")
    boxes = page.get_by_role("checkbox")
    assert boxes.count() == 3
    page.get_by_label("grpo", exact=True).check()
    page.get_by_label("sft-matched").check()
    assert re.search(rf"runs={pages.runs[0]},{pages.runs[2]}", page.url)
    page.reload()
    settled(page)
    assert page.locator("input:checked").count() == 2
    page.locator("#chosen").get_by_role("link", name="Weights").click()
    settled(page)
    assert page.url.startswith(f"{pages.root}weights?")
    assert "grpo" in page.locator("#about").inner_text()
    assert "Where the weights moved" in page.locator("main").inner_text()


def test_filter_and_choose_none(pages, open_page):
    page = open_page(f"{pages.root}?experiment={pages.experiment_id}&{pages.query}")
    page.get_by_label("Name or algorithm").fill("matched")
    assert page.get_by_role("checkbox").count() == 1
    page.get_by_role("button", name="Choose none").click()
    assert "runs=" not in page.url
    page.get_by_label("Name or algorithm").fill("")
    page.get_by_text("3: steps 100 to 300").first.click()
    link = page.get_by_role("link", name="step 200").first
    link.wait_for()
    asked = parse_qs(urlsplit(link.get_attribute("href")).query)
    assert [asked[name] for name in ("by", "at", "step")] == [["step"], ["200"], ["200"]]


@pytest.mark.parametrize(
    ("name", "scheme"), [(page.name, ("light", "dark")[i % 2]) for i, page in enumerate(PAGES)]
)
def test_every_page_draws_or_says_what_to_run(pages, open_page, name, scheme):
    page = open_page(f"{pages.root}{name}?{pages.query}", width=800, scheme=scheme)
    for place in page.locator("[data-figure]").all():
        said = place.inner_text()
        assert place.get_attribute("data-drawn") or "Comes from" in said or said == "", said
    page.wait_for_load_state("networkidle")
    assert page.locator(".waiting").count() == 0
    assert page.locator(".bad").count() == 0
    background, text = page.locator("body").evaluate(
        "b => [getComputedStyle(b).backgroundColor, getComputedStyle(b).color]"
    )
    light = [sum(int(part) for part in re.findall(r"\d+", one)[:3]) for one in (background, text)]
    assert (light[0] > light[1]) == (scheme == "light")
    wide = page.locator("html").evaluate("e => e.scrollWidth - e.clientWidth")
    assert wide <= 0  # nothing to scroll sideways


def test_odd_names_are_text(pages, open_page):
    page = open_page(f"{pages.root}?experiment={pages.experiment_id}")
    shown = " ".join(f"sft {ODD}".split())
    assert shown in page.locator("tbody").inner_text()
    page.goto(f"{pages.root}overview?{pages.query}")
    settled(page)
    drawn(page, "kl_over_training")
    assert shown in page.locator("#about").inner_text()
    assert page.locator("main script").count() == 0


def heat(page):
    """What the first heat map shows now, and what stands over it."""
    return page.locator('[data-figure="weight_heatmaps"]').evaluate(
        "p => [p.calcdata[0][0].z.map((row) => [...row]), p._fullLayout.annotations[0].text]"
    )


def until(page, holds):
    """Wait until `holds()`; the page's policy forbids Playwright's own waiting for a script."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        page.wait_for_timeout(20)


def test_slide_and_reload(pages, open_page):
    page = open_page(f"{pages.root}weights?{pages.query}")
    drawn(page, "weight_heatmaps")
    last = heat(page)
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("Home")
    until(page, lambda: heat(page)[0] != last[0] and heat(page)[1] != last[1])
    first = heat(page)
    assert "at=" in page.url
    page.reload()
    drawn(page, "weight_heatmaps")
    until(page, lambda: heat(page) == first)
    slider.focus()
    page.keyboard.press("End")
    until(page, lambda: heat(page) == last)
    assert "at=" not in page.url


def test_slide_over_the_maps_of_attention(pages, open_page):
    page = open_page(f"{pages.root}attention?{pages.query}")
    over = drawn(page, "attention_heatmaps").locator(".annotation-text").first
    last = over.text_content()
    page.get_by_role("slider").focus()
    page.keyboard.press("Home")
    until(page, lambda: over.text_content() != last)
    assert "step 100" in over.text_content()


def test_settings_change_the_figure_and_stand_in_the_address(pages, open_page):
    page = open_page(f"{pages.root}weights?{pages.query}")
    drawn(page, "weight_heatmaps")
    assert page.get_by_label("metric").input_value() == "weights/relative_frobenius"
    page.get_by_label("metric").select_option("weights/update_rms")
    page.get_by_label("colour scale").select_option("false")
    settled(page)
    page.get_by_text("RMS of the update, layer by matrix").wait_for()
    assert "metric=weights/update_rms" in page.url
    assert "shared_scale=false" in page.url
    page.reload()
    settled(page)
    page.get_by_text("RMS of the update, layer by matrix").wait_for()
    assert page.get_by_label("colour scale").input_value() == "false"
    # What one figure shows by itself is a choice for the others.
    page.get_by_label("lines by").select_option("layer")
    page.get_by_label("lines by").select_option("matrix")
    page.get_by_label("logarithmic y").uncheck()
    page.get_by_label("logarithmic y").check()
    assert "lines=matrix" in page.url
    assert "log_y=true" in page.url
    settled(page)


def test_a_click_on_a_cell_shows_it_over_training(pages, open_page):
    page = open_page(f"{pages.root}weights?{pages.query}")
    box = drawn(page, "weight_heatmaps").locator(".heatmaplayer").first.bounding_box()
    page.mouse.click(box["x"] + 2, box["y"] + box["height"] - 2)
    page.get_by_text("layer 0, q_proj").first.wait_for()
    assert "layer=0&matrix=q_proj" in page.url
    section = page.locator("#cell")
    until(page, lambda: (box := section.bounding_box())["y"] + box["height"] <= 901)  # all of it
    page.get_by_label("matrix", exact=True).select_option("v_proj")
    page.get_by_text("layer 0, v_proj").first.wait_for()


def test_read_tokens(pages, open_page):
    page = open_page(f"{pages.root}divergence?{pages.query}")
    reader = page.locator('[data-detail="tokens"]')
    reader.locator("table").wait_for()
    page.get_by_label("show").select_option("1")
    reader.get_by_text("Problem 1 of base_style").wait_for()
    assert "<script>alert(1)</script>" in reader.inner_text()
    assert "tokens.problem=1" in page.url
    page.reload()
    reader.get_by_text("Problem 1 of base_style").wait_for()
    reader.locator(".t").nth(4).hover()
    assert reader.locator(".tip").nth(4).is_visible()
    # What the last token says is not cut off, and makes the page no longer.
    reader.locator(".t").last.hover()
    tip, room = reader.locator(".tip").last.bounding_box(), reader.bounding_box()
    assert tip["height"] > 50
    assert tip["y"] + tip["height"] <= room["y"] + room["height"]
    assert reader.evaluate("(one) => getComputedStyle(one).overflowY") == "visible"


def test_read_lost_problems(pages, open_page):
    page = open_page(f"{pages.root}capabilities?{pages.query}")
    problems = page.locator('[data-detail="problems"]')
    problems.get_by_text("4 problems").wait_for()
    page.get_by_label("problems", exact=True).select_option("lost")
    problems.get_by_text("1 problem at step 200, lost").wait_for()
    assert problems.locator("script").count() == 0
    assert "problems.status=lost" in page.url


def test_a_click_on_the_ledger_opens_its_problems(pages, open_page):
    page = open_page(f"{pages.root}capabilities?{pages.query}")
    drawn(page, "ledger")
    page.locator('[data-detail="problems"] table').wait_for()
    x, y, meta = page.locator('[data-figure="ledger"]').evaluate(
        """(p, run) => {
            const bars = [...p.querySelectorAll(".barlayer .point")].filter((bar) => {
                const { meta } = bar.closest(".trace").__data__[0].trace;
                const lost = meta.series === "lost" && meta.run === run;
                return lost && bar.__data__.i === 1 && bar.getBoundingClientRect().height;
            });
            bars[0].scrollIntoView({ block: "center" });
            const box = bars[0].getBoundingClientRect();
            const { meta } = bars[0].closest(".trace").__data__[0].trace;
            // Beside the marks of chance, which stand in the middle of the bars.
            return [box.x + 3, box.y + box.height / 2, meta];
        }""",
        pages.runs[2],
    )
    page.mouse.move(x, y)
    page.mouse.click(x, y)
    until(page, lambda: "problems.status" in page.url)
    asked = parse_qs(urlsplit(page.url).query)
    found = [asked[f"problems.{name}"][0] for name in ("run", "benchmark", "step", "status")]
    assert found == [pages.runs[2], meta["benchmark"], meta["steps"][1], "lost"]


def test_an_answer_that_breaks_off_leaves_what_is_drawn(pages, open_page):
    page = open_page(f"{pages.root}weights", wait=False)
    address = f"{pages.root}data/figures?page=weights&{pages.query}"
    begun = "\n".join(ask(address).text.splitlines()[:2]) + '\n{"stem": "ce'
    page.route("**/data/figures?*", lambda route: route.fulfill(body=begun))
    page.goto(f"{pages.root}weights?{pages.query}")
    page.locator("#status.bad").wait_for()
    assert drawn(page, "weight_heatmaps").locator(".heatmaplayer").count() > 0
    assert "Not drawn" in page.locator('[data-figure="cell"]').inner_text()


def test_hover_says_the_value(pages, open_page):
    page = open_page(f"{pages.root}weights?{pages.query}")
    place = drawn(page, "weight_heatmaps")
    box = place.locator(".heatmaplayer").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.locator(".hoverlayer .hovertext").first.wait_for()
    said = page.locator(".hoverlayer").first.text_content()
    assert all(part in said for part in ("step 300", "layer", "\u2016W\u209c"))


def test_the_start_page_says_how_many_runs_a_page_takes(pages, open_page):
    many = ",".join(f"{i:032x}" for i in range(25))
    page = open_page(f"{pages.root}?experiment={pages.experiment_id}&runs={many}")
    assert page.locator("#count").inner_text() == "25 runs chosen; a page shows at most 24:"


def test_no_run_chosen(pages, open_page):
    page = open_page(f"{pages.root}weights", wait=False)
    page.get_by_text("No run is chosen").wait_for()
    assert not any(section.is_visible() for section in page.locator("section").all())
    page.get_by_role("link", name="choose some on the start page").click()
    page.get_by_role("heading", name="Choose runs").wait_for()


def test_behind_the_stock_ui(pages, open_page):
    page = open_page(f"{pages.root}overview?{pages.query}")
    link = page.locator("#about a").first.get_attribute("href")
    assert link == f"../#/experiments/{pages.experiment_id}/runs/{pages.runs[0]}"
