"""Servers with the pages, runs to show on them, and a browser that reports what goes wrong."""

from __future__ import annotations

import json
import tempfile
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric, Param, RunTag

from mlflow_scalpel.comparison.stored import TABLE
from mlflow_scalpel.comparison.table import tidy, write_table
from tests.servers import Server, _running
from tests.views.conftest import ARMS, rows_of

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run"
).split()
ODD = "<script>alert(1)</script> \"'& \u202e\u05d0\u05d1\u05d2 </td>"
STEPS = (100, 200, 300)


def measured(run_id: str, arm: str) -> pd.DataFrame:
    """The made-up measurements of an arm, as a run's own."""
    rows = [{k: v for k, v in row.items() if v is not None} for row in rows_of(arm)]
    for row in rows:
        row |= {"run_id": run_id, "metric_version": 1}
    return tidy(rows)


def log_run(
    client: MlflowClient,
    experiment_id: str,
    arm: str,
    *,
    name: str | None = None,
    table: bool = True,
    params: dict[str, str] | None = None,
) -> str:
    """A finished run with three checkpoints (which hold no files) and its table."""
    algorithm, rate = ARMS[arm][:2]
    run = client.create_run(experiment_id, run_name=name or f"{algorithm} {arm[:2]}")
    run_id = str(run.info.run_id)
    said = {"algorithm": algorithm, "learning_rate": str(rate), "max_steps": "300"}
    said |= {"base_model": "tiny-base"} | (params or {})
    client.log_batch(run_id, params=[Param(k, v) for k, v in said.items()])
    metrics = []
    for step in STEPS:
        model = client.create_logged_model(
            experiment_id,
            name=f"step-{step:06d}",
            source_run_id=run_id,
            params={"step": str(step)},
            model_type="checkpoint",
        )
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        client.finalize_logged_model(model.model_id, "READY")
        metrics.append(Metric("kl/all_tokens/base_style", 0.1, step, step, model_id=model.model_id))
    if table:
        log_table(client, run_id, measured(run_id, arm))
        client.log_batch(run_id, metrics=metrics, tags=[RunTag("scalpel.stage", algorithm)])
    client.set_terminated(run_id)
    return run_id


def log_table(client: MlflowClient, run_id: str, table: pd.DataFrame) -> None:
    folder, name = TABLE.rsplit("/", 1)
    with tempfile.TemporaryDirectory() as scratch:
        client.log_artifact(run_id, str(write_table(table, Path(scratch) / name)), folder)


@dataclass
class Answer:
    """What a server answered."""

    status: int
    headers: Any
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.text.splitlines()]


def ask(address: str, *, user: tuple[str, str] | None = None, **headers: str) -> Answer:
    """GET an address, whatever its status."""
    request = urllib.request.Request(address, headers=headers)
    if user is not None:
        word = b64encode(":".join(user).encode()).decode()
        request.add_header("Authorization", f"Basic {word}")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return Answer(response.status, response.headers, response.read().decode())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.headers, error.read().decode())


@dataclass(frozen=True)
class Shown:
    """A server with the pages, and the runs on it."""

    server: Server
    experiment_id: str
    runs: list[str]

    @property
    def root(self) -> str:
        return f"{self.server.uri}/scalpel/"

    @property
    def query(self) -> str:
        return "runs=" + ",".join(self.runs)


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """An `mlflow server --app-name scalpel` with three runs, one of an odd name."""
    server = Server(tmp_path_factory.mktemp("pages"), options=["--app-name", "scalpel"])
    for running in _running(server):
        client = MlflowClient(running.uri)
        experiment_id = client.create_experiment(f"arms {ODD}")
        names = ["grpo", f"sft {ODD}", "sft-matched"]
        runs = [
            log_run(client, experiment_id, arm, name=name, params={"odd": ODD})
            for arm, name in zip(ARMS, names, strict=True)
        ]
        yield Shown(running, experiment_id, runs)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The system's Chromium; nothing is downloaded."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not there: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """`open_page(address)` opens it, waits until it waits for nothing, and gives the page.

    The test fails on any console message of trouble, and on any request to another machine.
    """
    contexts, trouble = [], []

    def open_one(address: str, *, wait: bool = True, **options: Any) -> Any:
        options.setdefault("viewport", {"width": 1400, "height": 900})
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console",
            lambda said: trouble.append(said.text) if said.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("http://127.0.0.1:", "data:", "blob:"))
                else trouble.append(f"asked {request.url}")
            ),
        )
        page.goto(address)
        if wait:
            settled(page)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert trouble == []


def settled(page: Any) -> None:
    """Wait until a page says that it waits for nothing."""
    page.locator("#status").wait_for(state="hidden", timeout=60_000)
