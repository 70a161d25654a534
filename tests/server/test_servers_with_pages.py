"""The pages on every kind of server that MLflow starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.utils.workspace_context import WorkspaceContext
from playwright.sync_api import expect

from tests.server.conftest import Shown, ask, log_run, settled
from tests.servers import Server, _running

pytestmark = pytest.mark.slow  # a server each


GUNICORN = ["--app-name", "scalpel", "--gunicorn-opts", "--timeout 60 --threads 4"]


@pytest.fixture(params=["uvicorn", "gunicorn"])
def prefixed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Server, str, str]]:
    """A server behind a prefix, the prefix, and a run there."""
    if request.param == "uvicorn":
        shown = request.getfixturevalue("pages")
        yield shown.server, "/deep/prefix", shown.runs[0]
        return
    for server in _running(Server(tmp_path, options=GUNICORN, prefix="/deep")):
        client = MlflowClient(server.uri)
        yield server, "/deep", log_run(client, client.create_experiment("e"), "aaaa1111")


def test_behind_a_prefix(prefixed):
    server, prefix, run_id = prefixed
    assert "static-files" in ask(f"{server.uri}/").text  # the stock UI
    assert ask(f"{server.uri}/scalpel/weights?runs={run_id}").status == 200
    assert ask(f"{server.uri}/scalpel/static/page.js").status == 200
    answer = ask(f"{server.uri}/scalpel/data/figures?page=weights&runs={run_id}")
    assert any("figure" in line for line in answer.lines)
    assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
    assert ask(f"{server.uri}/scalpel/", Host="evil.example").status == 403
    without = server.uri.removesuffix(prefix)
    assert ask(f"{without}/scalpel/").status == 404


HEADER = "X-MLFLOW-WORKSPACE"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """A server with a run in the workspace `team-a`, and none in the default one."""
    options = ["--app-name", "scalpel", "--enable-workspaces"]
    for server in _running(Server(tmp_path_factory.mktemp("shared"), options=options)):
        client = MlflowClient(server.uri)
        client.create_workspace("team-a")
        with WorkspaceContext("team-a"):
            experiment_id = client.create_experiment("of the team")
            run_id = log_run(client, experiment_id, "aaaa1111", name="ours")
        yield Shown(server, experiment_id, [run_id])


def test_a_run_is_read_in_its_workspace_only(shared):
    figures = f"{shared.root}data/figures?page=weights&{shared.query}"
    assert any("figure" in line for line in ask(figures, **{HEADER: "team-a"}).lines)
    for other in ({}, {HEADER: "default"}):  # after somebody of the team has read it
        assert ask(figures, **other).status == 403
    of_all = f"{shared.root}data/experiments"
    names = [one["name"] for one in ask(of_all, **{HEADER: "team-a"}).json["experiments"]]
    assert "of the team" in names
    assert "of the team" not in ask(of_all).text
    assert ask(of_all, **{HEADER: "no-such-team"}).status >= 400


def test_the_address_names_the_workspace_and_links_keep_it(shared, open_page):
    page = open_page(f"{shared.root}?workspace=team-a&experiment={shared.experiment_id}")
    page.get_by_label("ours").check()
    page.get_by_role("link", name="Weights").last.click()
    settled(page)
    assert parse_qs(urlsplit(page.url).query)["workspace"] == ["team-a"]
    expect(page.locator(".figure .heatmaplayer").first).to_be_attached()


def test_the_stock_ui_and_the_pages_lead_each_other_in_one_workspace(shared, open_page, chromium):
    page = open_page(f"{shared.root}weights?workspace=team-a&{shared.query}")
    there = urljoin(page.url, page.get_by_role("link", name="ours").get_attribute("href"))
    stock = chromium.new_page()  # its console is not ours
    stock.goto(there)
    expect(stock.get_by_role("heading", name="ours")).to_be_visible(timeout=30_000)
    stock.close()
    # It left its workspace where pages of one server find it: a link in a description names none.
    page = open_page(f"{shared.root}weights?{shared.query}")
    expect(page.locator(".figure .heatmaplayer").first).to_be_attached()
    assert "workspace=team-a" in page.url


def test_a_server_without_workspaces_is_told_none(pages, open_page):
    page = open_page(f"{pages.root}?workspace=team-a&experiment={pages.experiment_id}")
    expect(page.get_by_label("grpo", exact=True)).to_be_visible()
