"""The routes under /scalpel/: shells of HTML that appear at once, and the data that fills them.

All of them are GETs and change nothing. No part of a request becomes a path: files that are served
are named here, and what is read of a run is named in `data.py`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
import threading
from collections.abc import Callable
from typing import Any

from flask import Blueprint, Flask, Response, redirect, request
from mlflow.exceptions import MlflowException

from mlflow_scalpel.comparison.run_queries import NotReadable, Source
from mlflow_scalpel.credentials import without_credentials
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.server.data import MOST_RUNS, Tables
from mlflow_scalpel.server.details import details
from mlflow_scalpel.server.figures import Figures, table_stem
from mlflow_scalpel.server.start import checkpoint_rows, experiment_rows, run_rows

ROOT = "/scalpel"
STATIC = {
    "scalpel.js": "text/javascript",
    "start.js": "text/javascript",
    "drawing.js": "text/javascript",
    "page.js": "text/javascript",
    "scalpel.css": "text/css",
    "plotly.js": "text/javascript",
}
# Plotly writes styles into the page; nothing else is inline, and nothing is loaded from elsewhere.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'self'"
)
_YEAR_SECONDS = 365 * 24 * 3600


def add_pages(
    app: Flask,
    source: Callable[[], Source],
    *,
    prefix: str = "",
    stock: str = "../",
    workspaces: bool = False,
) -> list[str]:
    """Add the pages to an app; `source` says what the sender of the current request may read.

    `prefix` goes before every path, and `stock` is the address of MLflow's own UI ("" for none);
    with `workspaces` the pages say in which of MLflow's workspaces the reader is, as that UI does.
    Returns the paths of all routes that were added, which take GET only.
    """
    blueprint = Blueprint("scalpel", __name__)
    tables, made = Tables(), Figures()
    paths: list[str] = []

    def route(path: str, view: Callable[[], Any], name: str) -> None:
        paths.append(f"{prefix}{ROOT}{path}")
        blueprint.add_url_rule(paths[-1], name, view, methods=["GET"])

    def experiments() -> Response:
        return _json({"experiments": experiment_rows(source())})

    def runs() -> Response:
        return _json(run_rows(source(), request.args.get("experiment", "")))

    def checkpoints() -> Response:
        return _json({"checkpoints": checkpoint_rows(source(), request.args.get("run", ""))})

    def figures() -> Response:
        wanted = request.args
        selection = tables.select(source(), _listed(wanted.get("runs", "")))
        page = wanted.get("page", "")
        stems = set(_listed(wanted.get("figures", "")))
        lines = made.of_page(selection, page, wanted.to_dict(), stems)
        return Response(lines, mimetype="application/x-ndjson")

    def more() -> Response:
        chosen = source()
        runs = tables.readable(chosen, _listed(request.args.get("runs", "")))
        return _json(details(request.args.get("kind", ""), chosen, runs, request.args.to_dict()))

    # Relative, as all addresses are: where a proxy has put the pages is not known.
    route("", lambda: redirect(f"{ROOT.removeprefix('/')}/"), "without_slash")
    route("/", functools.partial(start_page, stock, workspaces), "start")
    for page in _pages():
        shown = functools.partial(view_page, page.name, stock, workspaces)
        route(f"/{page.name}", shown, f"page_{page.name}")
    for name in STATIC:
        route(
            f"/static/{name}",
            functools.partial(static_file, name),
            "static_" + name.replace(".", "_"),
        )
    for view in (experiments, runs, checkpoints, figures, more):
        route(f"/data/{view.__name__}", _refusing(view), f"data_{view.__name__}")
    blueprint.after_request(_secure)
    app.register_blueprint(blueprint)
    return paths


def start_page(stock: str, workspaces: bool) -> Response:
    """The start page's shell."""
    values = {"stock": stock, "workspaces": workspaces, "most": MOST_RUNS}
    return _html(_shell("start.html", title="mlflow-scalpel", **values))


def view_page(name: str, stock: str, workspaces: bool) -> Response:
    """A view page's shell."""
    return _html(shell(name, stock, workspaces))


def shell(name: str, stock: str, workspaces: bool) -> str:
    """The HTML of a view page: its figures' headings, before any data is read."""
    from mlflow_scalpel.views import pages

    page = pages.page_named(name)
    assert page is not None  # the routes are made of the pages
    sections = [
        {
            "stem": section.stem,
            "heading": section.heading,
            "how": section.how,
            "figures": [stem for stem, _ in pages.figures(page, section)],
            "table": table_stem(section.stem) if section.table is not None else "",
        }
        for section in page.sections()
    ]
    values = {"page": page, "sections": sections, "stock": stock, "workspaces": workspaces}
    return _shell("page.html", title=page.title, **values)


def static_file(name: str) -> Response:
    """One of the files that pages need; unchanged under its address, which holds its digest."""
    content, tag = _static(name)
    response = Response(content, mimetype=STATIC[name])
    response.set_etag(tag)
    response.cache_control.max_age = _YEAR_SECONDS
    response.cache_control.private = True
    response.make_conditional(request)
    return response


@functools.cache
def _static(name: str) -> tuple[bytes, str]:
    if name == "plotly.js":
        from mlflow_scalpel.views.report.browser import plotly_js

        content = plotly_js().encode()
    else:
        folder = importlib.resources.files("mlflow_scalpel.server") / "static"
        content = (folder / name).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:16]


def _pages() -> tuple[Any, ...]:
    from mlflow_scalpel.views.pages import PAGES

    return PAGES


def _shell(template: str, **values: Any) -> str:
    # Addresses are relative, so that the pages work behind any prefix and proxy.
    static = {name: f"static/{name}?v={_static(name)[1]}" for name in STATIC}
    text = _templates().get_template(template).render(static=static, pages=_pages(), **values)
    return str(text)


def _html(text: str) -> Response:
    response = Response(text, mimetype="text/html")
    response.cache_control.no_cache = True
    return response


@functools.cache
def _templates() -> Any:
    import jinja2

    folder = importlib.resources.files("mlflow_scalpel.server") / "templates"
    names = ("shell.html", "start.html", "page.html")
    return jinja2.Environment(
        loader=jinja2.DictLoader({name: (folder / name).read_text("utf-8") for name in names}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _json(content: Any) -> Response:
    response = Response(json.dumps(content), mimetype="application/json")
    response.cache_control.no_store = True
    return response


def _refusing(view: Callable[[], Response]) -> Callable[[], Response]:
    """The view, with what it refuses answered as JSON."""

    @functools.wraps(view)
    def guarded() -> Response:
        try:
            return view()
        except NotReadable as error:
            status, message = 403, str(error)
        except ScalpelError as error:
            status, message = 400, str(error)
        except MlflowException as error:
            status, message = 502, f"MLflow did not answer: {error.message}"
        response = _json({"error": without_credentials(message)})
        response.status_code = status
        return response

    return guarded


def _secure(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers.setdefault("X-Frame-Options", "SAMEORIGIN")
    return response


def _listed(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def warm_in_background() -> threading.Thread:
    """Warm this process in a thread, while it answers requests already."""
    thread = threading.Thread(target=warm, name="scalpel-warm", daemon=True)
    thread.start()
    return thread


def warm() -> None:
    """Read and draw a table of one row, as a request for a page does."""
    import io

    from plotly.io.json import to_json_plotly

    from mlflow_scalpel.comparison.table import read_table, tidy
    from mlflow_scalpel.server import routes
    from mlflow_scalpel.views import pages
    from mlflow_scalpel.views.divergence.kl import kl_over_training

    for page in pages.PAGES:
        routes.shell(page.name, stock="", workspaces=False)
    row = {"run_id": "warm", "step": 1, "metric": "kl/all_tokens", "value": 1.0, "texts": "warm"}
    stored = io.BytesIO()
    tidy([row]).to_parquet(stored)
    stored.seek(0)
    to_json_plotly(kl_over_training(read_table(stored)))
