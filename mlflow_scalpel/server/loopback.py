"""The pages by themselves, on loopback, with the credentials of whoever started them."""

from __future__ import annotations

import re

from flask import Flask, Response, redirect, request
from werkzeug.serving import BaseWSGIServer, make_server

from mlflow_scalpel.comparison.run_queries import ClientSource
from mlflow_scalpel.credentials import without_credentials
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.server.routes import ROOT, add_pages, warm_in_background

HOST = "127.0.0.1"
# A page of another site that has its own name point here still sends that name as the host.
_HOSTS = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)


def make_app(tracking_uri: str) -> Flask:
    """The pages of one tracking server as an app of their own."""
    app = Flask(__name__, static_folder=None)
    source = ClientSource(tracking_uri)

    @app.before_request
    def check_host() -> Response | None:
        if _HOSTS.fullmatch(request.headers.get("Host", "")):
            return None
        return Response("Invalid Host header", status=403, mimetype="text/plain")

    remote = tracking_uri.startswith(("http://", "https://"))
    stock = without_credentials(tracking_uri).rstrip("/") + "/" if remote else ""
    add_pages(app, lambda: source, stock=stock)
    app.add_url_rule("/", "root", lambda: redirect(f"{ROOT}/"))
    return app


def open_server(tracking_uri: str, port: int) -> BaseWSGIServer:
    """The server, listening on loopback but not answering yet; raises ScalpelError for the port."""
    if not 0 <= port < 1 << 16:  # a larger one would be cut to sixteen bits, without a word
        raise ScalpelError(f"--port {port}: is not a port; give one up to 65535, or 0 for any")
    try:
        return make_server(HOST, port, make_app(tracking_uri), threaded=True)
    except (OSError, SystemExit) as error:
        raise ScalpelError(
            f"--port {port}: cannot be listened on ({error}); give another one, or 0"
        ) from error


def serve(tracking_uri: str, port: int) -> None:
    """Serve until interrupted."""
    server = open_server(tracking_uri, port)
    warm_in_background()
    store = without_credentials(tracking_uri)
    print(f"views of {store}: http://{HOST}:{server.port}{ROOT}/ (Ctrl-C ends it)", flush=True)
    server.serve_forever()
