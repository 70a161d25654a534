"""Answers that come late, in another order than they were asked for, or not at all."""

from __future__ import annotations

import pytest

from tests.server.conftest import settled
from tests.server.test_browser import drawn, heat, until

pytestmark = pytest.mark.slow  # a server and a browser

FIGURES = "**/data/figures?*"
FAILED = ("Failed to load resource",)


@pytest.fixture
def held(open_page):
    """`held(address)` opens a page and gives it with the requests for figures that come after.

    They wait until `.continue_()` is called.
    """

    def hold(address, **options):
        page = open_page(address, **options)
        routes = []
        page.route(FIGURES, lambda route: routes.append(route))
        return page, routes

    return hold


def come(page, routes, count):
    """Wait until so many requests have come."""
    until(page, lambda: len(routes) >= count)


def title(page, stem):
    """The title of a figure as it is drawn."""
    return page.locator(f'[data-figure="{stem}"] .gtitle').first.text_content()


def test_an_answer_that_was_overtaken_is_not_drawn(pages, held):
    page, routes = held(f"{pages.root}weights?{pages.query}")
    page.get_by_label("metric").select_option("weights/update_rms")
    come(page, routes, 1)  # of many figures, the map among them
    page.get_by_label("colour scale").select_option("false")  # of the map only
    come(page, routes, 2)
    routes[1].continue_()
    page.get_by_text("RMS of the update, layer by matrix").wait_for()
    scale = page.get_by_text("own scale").first
    scale.wait_for()
    routes[0].continue_()
    settled(page)
    assert scale.is_visible()
    assert page.get_by_text("shared scale").count() == 0
    assert page.get_by_label("colour scale").input_value() == "false"


def test_a_setting_that_is_changed_twice_shows_the_last(pages, held):
    page, routes = held(f"{pages.root}weights?{pages.query}")
    first = title(page, "weight_heatmaps")
    page.get_by_label("metric").select_option("weights/update_rms")
    come(page, routes, 1)
    page.get_by_label("metric").select_option("weights/relative_frobenius")
    come(page, routes, 2)
    assert page.locator("#status").inner_text() == "Waiting for the figures."
    routes[1].continue_()
    settled(page)
    routes[0].continue_()  # nobody waits for it any more
    page.wait_for_timeout(300)
    assert title(page, "weight_heatmaps") == first
    assert page.locator(".stale").count() == 0


def test_a_slider_that_is_moved_while_figures_come(pages, held):
    page, routes = held(f"{pages.root}weights?{pages.query}")
    slider = page.get_by_role("slider")
    page.get_by_label("metric").select_option("weights/update_rms")
    come(page, routes, 1)
    slider.focus()
    for key in ("Home", "End", "ArrowLeft", "Home", "ArrowRight"):
        page.keyboard.press(key)
    moment = slider.get_attribute("aria-valuetext")
    routes[0].continue_()
    settled(page)
    assert title(page, "weight_heatmaps").startswith("RMS of the update")
    until(page, lambda: "step 200" in heat(page)[1])
    assert slider.get_attribute("aria-valuetext") == moment
    page.unroute(FIGURES)
    page.reload()
    settled(page)
    until(page, lambda: "step 200" in heat(page)[1])


def test_what_fails_says_so_and_the_next_request_recovers(pages, held):
    page, routes = held(f"{pages.root}weights?{pages.query}", expected=FAILED)
    status = page.locator("#status")
    page.get_by_label("metric").select_option("weights/update_rms")
    come(page, routes, 1)
    routes[0].fulfill(status=502, json={"error": "MLflow did not answer: it is ill"})
    page.get_by_text("MLflow did not answer: it is ill").wait_for()
    assert "Not drawn" in page.locator('[data-figure="weight_heatmaps"]').inner_text()
    # A setting of another figure asks for what failed too.
    page.get_by_label("colour scale").select_option("false")
    come(page, routes, 2)
    assert status.inner_text() == "Waiting for the figures."
    routes[1].abort()
    page.get_by_text("The server does not answer").wait_for()
    page.unroute(FIGURES)
    status.get_by_role("button", name="Try again").click()
    settled(page)
    drawn(page, "weight_heatmaps")
    assert title(page, "weight_heatmaps").startswith("RMS of the update")
    assert page.locator(".missing.bad").count() == 0
    assert page.get_by_text("Not drawn").count() == 0


def test_a_page_that_is_left_while_it_loads(pages, held):
    page, routes = held(f"{pages.root}attention", wait=False)
    page.goto(f"{pages.root}weights?{pages.query}", wait_until="commit")
    come(page, routes, 1)
    page.get_by_role("link", name="Overview").click()
    come(page, routes, 2)
    routes[1].continue_()
    drawn(page, "kl_over_training")
    page.unroute(FIGURES)
    page.go_back()
    drawn(page, "weight_heatmaps")
    settled(page)


def test_without_plotly_the_page_says_so_and_tries_again(pages, open_page):
    expected = (*FAILED, "Error: the server did not send plotly.js")
    page = open_page(f"{pages.root}weights", wait=False, expected=expected)
    page.route("**/static/plotly.js?*", lambda route: route.abort())
    page.goto(f"{pages.root}weights?{pages.query}")
    page.get_by_text("the server did not send plotly.js").first.wait_for()
    page.unroute("**/static/plotly.js?*")
    page.get_by_role("button", name="Try again").click()
    settled(page)
    drawn(page, "weight_heatmaps")


def test_details_that_were_overtaken_are_not_shown(pages, open_page):
    page = open_page(f"{pages.root}divergence?{pages.query}")
    reader = page.locator('[data-detail="tokens"]')
    reader.locator("table").wait_for()
    routes = []
    page.route("**/data/more?*", lambda route: routes.append(route))
    page.get_by_label("show").select_option("0")
    come(page, routes, 1)
    page.get_by_label("show").select_option("1")
    come(page, routes, 2)
    routes[1].continue_()
    reader.get_by_text("Problem 1 of base_style").wait_for()
    routes[0].continue_()
    page.wait_for_timeout(300)
    assert reader.get_by_text("Problem 1 of base_style").is_visible()
    assert page.get_by_label("show").input_value() == "1"


def test_runs_of_an_experiment_that_was_left_are_not_listed(pages, open_page):
    page = open_page(f"{pages.root}?experiment={pages.experiment_id}", expected=FAILED)
    page.get_by_role("checkbox").first.wait_for()
    page.route("**/data/runs?*", lambda route: route.fulfill(status=502, json={"error": "ill"}))
    page.get_by_label("Experiment").select_option("Default")
    page.get_by_text("ill", exact=True).wait_for()
    assert page.get_by_role("checkbox").count() == 0
    page.unroute("**/data/runs?*")
    page.get_by_label("Experiment").select_option(pages.experiment_id)
    page.get_by_role("checkbox").first.wait_for()
