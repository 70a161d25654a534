"""MLflow's given routes, asked within the server's process in the name of the user who asks us.

The pages have no authority of their given: whatever they show came through MLflow's REST handlers
with the user's given headers, and so through whatever decides there what a user may read. (The
handlers are called as functions: no socket, no second worker.)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from flask import Flask, Request, g
from google.protobuf.message import Message
from mlflow.entities import Experiment, LoggedModel, Run
from mlflow.protos import service_pb2 as api
from mlflow.server.handlers import STATIC_PREFIX_ENV_VAR
from mlflow.utils.proto_json_utils import parse_dict
from werkzeug.test import Client, EnvironBuilder, TestResponse

from mlflow_scalpel.comparison.run_queries import RUNS_PER_PAGE, last_changed, not_readable, paged
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.server.caching import Cache

API = "/api/2.0/mlflow"
_MODELS_PER_PAGE = 500
# What belongs to the request for a page, and not to the user who sent it.
_NOT_PASSED_ON = {
    *("accept", "accept-encoding", "connection", "content-length", "content-type", "origin"),
    *("if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since"),
    *("range", "referer", "transfer-encoding", "upgrade-insecure-requests"),
}

Answer = TypeVar("Answer", bound=Message)
_checked: ContextVar[tuple[str | None, str | None] | None] = ContextVar("checked", default=None)


def static_prefix() -> str:
    """The prefix of every path by `mlflow server --static-prefix`; "" where it was not given."""
    return os.environ.get(STATIC_PREFIX_ENV_VAR, "").rstrip("/")


class LocalSource:
    """A `Source`: what the sender of a request may read on the server that received it."""

    def __init__(self, app: Flask, request: Request) -> None:
        self._app = app
        self._headers = [
            (name, value)
            for name, value in request.headers.items()
            if name.lower() not in _NOT_PASSED_ON and not name.lower().startswith("sec-")
        ]
        self._base = {"REMOTE_ADDR": request.remote_addr or "", "SERVER_NAME": "localhost"}
        # Whoever differs in any header that may say who he is, is another user.
        identity = [request.headers.get(name, "") for name in ("Authorization", "Cookie")]
        identity += [
            f"{k}={v}" for k, v in self._headers if k.lower().startswith(("x-", "remote-"))
        ]
        self.user = hashlib.sha256("\n".join(identity).encode()).hexdigest()
        given = request.authorization
        # What MLflow's basic authentication notes once it has checked the password.
        checked = getattr(g, "mlflow_authenticated_user", None) if given is not None else None
        if given is not None and given.password and given.username == checked:
            self._checked: tuple[str | None, str | None] | None = given.username, given.password
        else:
            self._checked = None

    def experiments(self) -> list[Experiment]:
        """See `Source`."""

        def page(token: str | None) -> tuple[list[Experiment], str]:
            answer = self._post(
                f"{API}/experiments/search",
                {"max_results": RUNS_PER_PAGE, "page_token": token or ""},
                api.SearchExperiments.Response(),
            )
            return [Experiment.from_proto(one) for one in answer.experiments], (
                answer.next_page_token
            )

        return sorted(paged(page), key=last_changed, reverse=True)

    def runs(self, experiment_id: str, where: str = "") -> list[Run]:
        """See `Source`."""

        def page(token: str | None) -> tuple[list[Run], str]:
            body = {
                "experiment_ids": [experiment_id],
                "filter": where,
                "max_results": RUNS_PER_PAGE,
            }
            answer = self._post(
                f"{API}/runs/search",
                {**body, "page_token": token or ""},
                api.SearchRuns.Response(),
            )
            return [Run.from_proto(one) for one in answer.runs], answer.next_page_token

        return paged(page)

    def run(self, run_id: str) -> Run:
        """See `Source`."""
        response = self._ask("GET", f"{API}/runs/get", {"run_id": run_id})
        if response.status_code in (403, 404):
            raise not_readable(run_id)
        return Run.from_proto(_parsed(response, api.GetRun.Response()).run)

    def models(self, run: Run) -> list[LoggedModel]:
        """See `Source`."""

        def page(token: str | None) -> tuple[list[LoggedModel], str]:
            body = {
                "experiment_ids": [run.info.experiment_id],
                "filter": f"source_run_id = '{run.info.run_id}'",
                "max_results": _MODELS_PER_PAGE,
            }
            answer = self._post(
                f"{API}/logged-models/search",
                body | ({"page_token": token} if token else {}),
                api.SearchLoggedModels.Response(),
            )
            return [LoggedModel.from_proto(one) for one in answer.models], answer.next_page_token

        return paged(page)

    def files(self, run_id: str, folder: str) -> dict[str, int]:
        """See `Source`."""
        response = self._ask("GET", f"{API}/artifacts/list", {"run_id": run_id, "path": folder})
        if response.status_code in (403, 404):
            raise not_readable(run_id)
        found = _parsed(response, api.ListArtifacts.Response()).files
        return {file.path: int(file.file_size) for file in found if not file.is_dir}

    def artifact(self, run_id: str, path: str) -> bytes:
        """See `Source`."""
        response = self._ask("GET", "/get-artifact", {"run_id": run_id, "path": path})
        if response.status_code in (403, 404):
            raise not_readable(run_id)
        _check(response)
        return response.get_data()

    def _post(self, path: str, body: dict[str, Any], answer: Answer) -> Answer:
        return _parsed(self._ask("POST", path, body=body), answer)

    def _ask(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> TestResponse:
        # A "test" client is what werkzeug calls the one that calls an app as a function.
        builder = EnvironBuilder(
            path=static_prefix() + path,
            method=method,
            query_string=query,
            json=body,
            headers=self._headers,
            environ_base=self._base,
        )
        before = _checked.set(self._checked)
        try:
            return Client(self._app, use_cookies=False).open(builder, buffered=True)
        finally:
            _checked.reset(before)
            builder.close()


def check_passwords_once(store: Any) -> None:
    """Have MLflow's store of users check a password once for all that a page asks within.

    It takes a tenth of a second on purpose, and each question asks for it several times; only the
    request for the page came from outside. Requests that wait for the check of one password at the
    same time share it; nothing is kept.
    """
    check: Callable[..., bool] = store.authenticate_user
    under_way: Cache[bool] = Cache(0, lambda _: 1)

    def authenticate_user(username: str, password: str, **options: Any) -> bool:
        if _checked.get() == (username, password):
            return True
        key = (username, password, *sorted(options.items()))
        return under_way.get(key, lambda: check(username, password, **options))

    store.authenticate_user = authenticate_user


def _check(response: TestResponse) -> None:
    if response.status_code != 200:
        text = response.get_data(as_text=True)[:500]
        raise ScalpelError(
            f"MLflow answered {response.status_code} to {response.request.path} ({text}); "
            "the server's log says more"
        )


def _parsed(response: TestResponse, answer: Answer) -> Answer:
    _check(response)
    parse_dict(response.get_json(), answer)
    return answer
