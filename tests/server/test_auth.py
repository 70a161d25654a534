"""Behind basic authentication: everybody sees what MLflow lets him read, on every route."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_scalpel.views.pages import PAGES
from tests.server.conftest import ask, log_run
from tests.servers import Server, _running

pytestmark = pytest.mark.slow  # one more server, and passwords are slow on purpose

ADMIN = ("admin", "a-long-admin-password")
READER = ("reader", "a-long-reader-password")
STRANGER = ("stranger", "a-long-stranger-password")


@dataclass(frozen=True)
class Guarded:
    root: str
    experiment_id: str
    run_id: str


@pytest.fixture(scope="module", params=["open", "closed"])
def guarded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    """A server where nobody may read anything unless allowed to; then one that fails closed."""
    pytest.importorskip("flask_wtf", reason="MLflow's basic auth needs flask-wtf")
    from mlflow.server.auth.client import AuthServiceClient

    folder: Path = tmp_path_factory.mktemp("guarded")
    config = folder / "auth.ini"
    config.write_text(
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\n"
        f"database_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = {ADMIN[0]}\nadmin_password = {ADMIN[1]}\n"
    )
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-the-tests",
        "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true" if request.param == "closed" else "false",
    }
    server = Server(folder, options=["--app-name", "scalpel-basic-auth"], environment=environment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
        patch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
        for running in _running(server):
            client = MlflowClient(running.uri)
            experiment_id = client.create_experiment("secret")
            run_id = log_run(client, experiment_id, "aaaa1111", name="secret run")
            users = AuthServiceClient(running.uri)
            for name, password in (READER, STRANGER):
                users.create_user(name, password)
            users.grant_user_permission(READER[0], "experiment", experiment_id, "READ")
            yield Guarded(f"{running.uri}/scalpel/", experiment_id, run_id)


def routes(guarded: Guarded) -> dict[str, str]:
    """Every route, with the query that asks it for the run."""
    runs = f"runs={guarded.run_id}"
    return {
        "": "",
        **{page.name: runs for page in PAGES},
        **{f"static/{name}.js": "" for name in ("scalpel", "start", "page", "drawing")},
        "static/scalpel.css": "",
        "static/plotly.js": "",
        "data/experiments": "",
        "data/runs": f"experiment={guarded.experiment_id}",
        "data/checkpoints": f"run={guarded.run_id}",
        "data/figures": f"page=overview&{runs}",
        "data/more": f"kind=problems&{runs}",
    }


def test_every_route_is_known_here():
    from flask import Flask

    from mlflow_scalpel.server.routes import add_pages

    paths = add_pages(Flask("all"), lambda: None)
    known = {path.removeprefix("/scalpel/") for path in paths}
    assert known == {*routes(Guarded("", "", "")), "/scalpel"}


def test_anonymous_users_are_asked_for_a_password_everywhere(guarded):
    for route, query in routes(guarded).items():
        answer = ask(f"{guarded.root}{route}?{query}")
        assert answer.status == 401, route
        assert "secret" not in answer.text


def test_a_wrong_password_is_none(guarded):
    for route, query in routes(guarded).items():
        assert ask(f"{guarded.root}{route}?{query}", user=(READER[0], "wrong")).status == 401


def test_the_address_without_its_slash(guarded):
    for user in (READER, STRANGER, ADMIN):
        answer = ask(guarded.root.rstrip("/"), user=user)
        assert (answer.status, "<title>mlflow-scalpel" in answer.text) == (200, True)
    assert ask(guarded.root.rstrip("/")).status == 401


def test_many_pages_at_once(guarded):
    """Each password is checked for the page, and not again for all that it asks MLflow."""
    address = f"{guarded.root}data/figures?page=overview&runs={guarded.run_id}"
    with ThreadPoolExecutor(200) as pool:
        found = list(pool.map(lambda n: ask(address, user=(READER, STRANGER)[n % 2]), range(200)))
    assert [one.status for one in found] == [200, 403] * 100


def test_a_user_without_permission_sees_nothing_of_the_run(guarded):
    for route, query in routes(guarded).items():
        answer = ask(f"{guarded.root}{route}?{query}", user=STRANGER)
        refused = route in ("data/checkpoints", "data/figures", "data/more")
        assert answer.status == (403 if refused else 200), route
        assert "secret" not in answer.text
        if route == "data/experiments":
            assert answer.json["experiments"] == []
        if route == "data/runs":
            assert answer.json["runs"] == []


@pytest.mark.parametrize("user", [READER, ADMIN], ids=["reader", "admin"])
def test_a_user_with_permission_sees_the_run(guarded, user):
    found = {}
    for route, query in routes(guarded).items():
        answer = ask(f"{guarded.root}{route}?{query}", user=user)
        assert answer.status == 200, (route, answer.text)
        found[route] = answer
    assert "secret" in [one["name"] for one in found["data/experiments"].json["experiments"]]
    assert [run["name"] for run in found["data/runs"].json["runs"]] == ["secret run"]
    assert [one["step"] for one in found["data/checkpoints"].json["checkpoints"]] == [100, 200, 300]
    drawn = [line["stem"] for line in found["data/figures"].lines if "figure" in line]
    assert "kl_over_training" in drawn


def test_what_a_reader_made_warm_stays_closed_to_others(guarded):
    address = f"{guarded.root}data/figures?page=weights&runs={guarded.run_id}"
    assert ask(address, user=READER).status == 200
    assert ask(address, user=STRANGER).status == 403
    assert ask(address).status == 401
