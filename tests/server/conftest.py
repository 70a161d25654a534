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
from flask import Flask
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric, Param, RunTag

from mlflow_scalpel.comparison.run_queries import (
    EVALUATED_RUN_TAG,
    LEDGER,
    TABLE,
    TOKENS,
    comparison_tag,
)
from mlflow_scalpel.comparison.table import tidy
from mlflow_scalpel.server.loopback import make_app
from tests.servers import Server, _running
from tests.views.conftest import ARMS, rows_of
from tests.views.whole import capability_rows, ledger_of

ODD = "<script>alert(1)</script> \"'& \u202e\u05d0\u05d1\u05d2 </td>"
STEPS = (100, 200, 300)
QUIET = ("debug", "info", "log", "trace")  # console messages that say nothing of trouble


def measured(run_id: str, arm: str) -> pd.DataFrame:
    """The made-up measurements of an arm, as a run's own."""
    made = rows_of(arm) + capability_rows(arm, ARMS[arm][0], STEPS) + attention_rows(arm)
    rows = [{k: v for k, v in row.items() if v is not None} for row in made]
    for row in rows:
        row |= {"run_id": run_id, "metric_version": 1, "base": "tiny-base"}
    return tidy(rows)


def attention_rows(arm: str) -> list[dict[str, Any]]:
    """Attention metrics of four layers of two heads."""
    return [
        {"step": step, "algorithm": ARMS[arm][0], "metric": f"attention/{name}", "layer": layer,
         "head": head, "value": sign * step * (layer + 1) / 1e4, "stderr": 1e-3, "n": 8,
         "texts": "base_style sha256:0123abcd template:4567ef"}
        for step in STEPS
        for name, sign in (("js", 1), ("entropy_change", -1))
        for layer in range(4)
        for head in range(2)
    ]  # fmt: skip


def tokens_of(step: int) -> pd.DataFrame:
    """Two problems of six tokens, one of them somebody's markup."""
    rows = []
    for problem in range(2):
        for position, token in enumerate(["What", " is", " 1+1", "?", ODD, " 2"]):
            kl = 0.01 * step * (position + 1) / 100
            rows.append(
                {"model_id": "m", "step": step, "texts": "base_style sha256:0 template:4",
                 "problem": problem, "position": position, "token": token, "token_id": position,
                 "answer": position > 3, "kl": kl, "reverse": kl, "base_entropy": 0.5,
                 "rank": 6 - position if problem == 0 else None, "context": f"before {ODD}",
                 "base_top": ["a", "b", ODD, "d", "e"], "checkpoint_top": ["a", "b", "c", "d", "e"],
                 "base_top_p": [0.5, 0.2, 0.1, 0.1, 0.1], "right_p_base": 0.4,
                 "checkpoint_top_p": [0.6, 0.1, 0.1, 0.1, 0.1], "right_p_checkpoint": 0.1}
            )  # fmt: skip
    return pd.DataFrame(rows).astype({"rank": "Int64", "token": "string", "context": "string"})


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
        log_parquet(client, run_id, measured(run_id, arm), TABLE)
        for step in STEPS[-2:]:
            log_parquet(client, run_id, tokens_of(step), f"{TOKENS}/step-{step:06d}.parquet")
        tags = [RunTag("scalpel.stage", algorithm)]
        client.log_batch(run_id, metrics=metrics, tags=tags)
        evaluation = client.create_run(experiment_id, tags={EVALUATED_RUN_TAG: run_id})
        ledger = ledger_of(f"What is 1 + 1? {ODD}", ODD)
        log_parquet(client, evaluation.info.run_id, ledger, LEDGER)
        client.set_terminated(evaluation.info.run_id)
    client.set_terminated(run_id)
    return run_id


def log_parquet(client: MlflowClient, run_id: str, table: pd.DataFrame, artifact: str) -> None:
    """A table as an artifact of a run."""
    folder, name = artifact.rsplit("/", 1)
    with tempfile.TemporaryDirectory() as scratch:
        table.to_parquet(Path(scratch) / name, index=False)
        client.log_artifact(run_id, str(Path(scratch) / name), folder)


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


def log_compared(logged, rows, **others):
    """A finished run of the command `compare` that measured a run (and others: texts, a table)."""
    client, experiment_id, run_id = logged
    tags = {"scalpel.stage": "compare"}
    comparison = client.create_run(experiment_id, tags=tags, run_name="compare").info.run_id
    client.log_param(comparison, "run_0", run_id)
    for key, value in comparison_tag(comparison).items():
        client.set_tag(run_id, key, value)
    log_parquet(client, comparison, tidy(rows), TABLE)
    for artifact, table in others.items():
        log_parquet(client, comparison, table, f"{TOKENS}/{artifact.replace('_', '-')}.parquet")
    client.set_terminated(comparison)


@pytest.fixture
def logged(tracking) -> tuple[MlflowClient, str, str]:
    """A client, an experiment and its run."""
    client = MlflowClient(tracking)
    experiment_id = client.get_experiment_by_name("tests").experiment_id
    return client, experiment_id, log_run(client, experiment_id, "aaaa1111", name=f"run {ODD}")


@pytest.fixture
def app(tracking) -> Flask:
    return make_app(tracking)


@pytest.fixture
def get(app):
    """`get(path)` asks as a browser on this machine would."""
    client = app.test_client()
    return lambda path, host="127.0.0.1:5005": client.get(
        f"/scalpel/{path}", headers={"Host": host}
    )


def lines(response):
    return [json.loads(line) for line in response.text.splitlines()]


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """An `mlflow server --app-name scalpel` behind a prefix; three runs, one of an odd name."""
    folder = tmp_path_factory.mktemp("pages")
    server = Server(folder, options=["--app-name", "scalpel"], prefix="/deep/prefix")
    for running in _running(server):
        client = MlflowClient(running.uri)
        experiment_id = client.create_experiment(f"arms {ODD}")
        names = ["grpo", f"sft {ODD}", "sft-matched"]
        runs = [
            log_run(client, experiment_id, arm, name=name, params={"odd": ODD})
            for arm, name in zip(ARMS, names, strict=True)
        ]
        yield Shown(running, experiment_id, runs)


@pytest.fixture(scope="module")
def chromium(browser: Any) -> Iterator[Any]:
    """A context of the browser, with one cache for all tests of a module."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """`open_page(address)` opens it, waits until it waits for nothing, and gives the page.

    The test fails on any console message of trouble, and on any request to another machine. Those
    that begin with one of `expected` are no trouble.
    """
    opened, trouble = [], []

    def check(url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            trouble.append(f"asked for {url}")

    def open_one(
        address: str,
        *,
        wait: bool = True,
        width: int = 1400,
        scheme: str = "light",
        expected: tuple[str, ...] = (),
    ) -> Any:
        def hear(said: Any) -> None:
            if said.type not in QUIET and not said.text.startswith(expected or ("\0",)):
                trouble.append(said.text)

        page = chromium.new_page()
        opened.append(page)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.on("console", hear)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: check(request.url))
        page.goto(address)
        if wait:
            settled(page)
        return page

    yield open_one
    for page in opened:
        page.close()
    assert trouble == []


def settled(page: Any) -> None:
    """Wait until a page says that it waits for nothing."""
    page.locator("#status").wait_for(state="hidden", timeout=60_000)
