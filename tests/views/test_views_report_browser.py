"""The report in a real browser, in a frame like the one MLflow shows artifacts in."""

from __future__ import annotations

import pytest

from mlflow_scalpel import views
from tests.views.whole import ledger_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("mode", "width"), [("light", 1400), ("dark", 800)])
def test_every_figure_draws_in_a_sandboxed_frame_without_network(
    browser, whole, runs, tmp_path, mode, width
):
    path = views.write_report(
        whole, runs, tmp_path / "report.html", title="T", ledgers={"aaaa1111": ledger_of()}
    )
    outer = tmp_path / "outer.html"
    outer.write_text(
        f"<!doctype html><iframe sandbox='allow-scripts' src='{path.name}' "
        f"style='width: {width}px; height: 1000px; border: 0'></iframe>"
    )
    complaints: list[str] = []
    context = browser.new_context(
        viewport={"width": width + 40, "height": 1100}, color_scheme=mode, offline=True
    )
    page = context.new_page()
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(outer.as_uri())
    frame = page.frame_locator("iframe")
    expected = path.read_text().count('<div id="figure-')
    frame.locator(".js-plotly-plot .main-svg").nth(expected).wait_for(state="attached")
    assert frame.locator(".js-plotly-plot").count() == expected
    body = frame.locator("body")
    wide = body.evaluate("body => document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0  # nothing runs out of the page
    page_colour = body.evaluate("body => getComputedStyle(body).backgroundColor")
    assert page_colour == ("rgb(255, 255, 255)" if mode == "light" else "rgb(21, 24, 28)")
    answers = frame.locator("summary", has_text="problems it lost, with both answers")
    answers.focus()
    page.keyboard.press("Enter")  # works without a mouse
    frame.locator("table.problems").first.wait_for(state="visible")
    frame.locator('a[href="#cost"]').focus()
    page.keyboard.press("Enter")
    top = frame.locator("#cost").evaluate("heading => heading.getBoundingClientRect().top")
    assert abs(top) < 1000  # scrolled to it
    context.close()
    assert complaints == []
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob"}
