"""MLflow's app plugin: `mlflow server --app-name scalpel`, with the stock UI and /scalpel/.

`scalpel-basic-auth` is the same behind MLflow's basic authentication. Nothing of the pages is
imported before the server starts: MLflow looks at this module also where another app is chosen.
"""

from __future__ import annotations

from typing import Any


def create_app() -> Any:
    """MLflow's own app with the pages: ASGI under uvicorn, WSGI under gunicorn and waitress."""
    from mlflow.environment_variables import _MLFLOW_SGI_NAME
    from mlflow.server import app

    _add_pages(app)
    if _MLFLOW_SGI_NAME.get() != "uvicorn":
        return app
    from mlflow.server.fastapi_app import create_fastapi_app

    return create_fastapi_app(app)


def create_app_with_basic_auth() -> Any:
    """As `create_app`, behind MLflow's basic authentication.

    Every page asks MLflow's own routes in the name of the user, who sees what these let him see.
    """
    from mlflow.server import app, auth

    from mlflow_scalpel.server.local_source import check_passwords_once

    paths = _add_pages(app)
    # Under MLFLOW_BASIC_AUTH_FAIL_CLOSED a route that is not named here is refused to all users.
    ways = ("GET", "HEAD")
    auth.BEFORE_REQUEST_VALIDATORS.update({(p, way): lambda: True for p in paths for way in ways})
    check_passwords_once(auth.store)
    return auth.create_app(app)


def _add_pages(app: Any) -> list[str]:
    from flask import request
    from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES

    from mlflow_scalpel.server.local_source import LocalSource, static_prefix
    from mlflow_scalpel.server.routes import add_pages, warm_in_background

    paths = add_pages(
        app,
        lambda: LocalSource(app, request),
        prefix=static_prefix(),
        workspaces=bool(MLFLOW_ENABLE_WORKSPACES.get()),
    )
    warm_in_background()
    return paths
