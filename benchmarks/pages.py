"""Seconds until the pages are drawn in Chromium, and what ten people at once wait for them.

    python benchmarks/pages.py

An `mlflow server --app-name scalpel` on SQLite holds two runs x 20 checkpoints x 224 matrices x 10
metrics, with KL, scores and costs beside them, and an experiment of 100 runs x 20 checkpoints.

Pages say in the browser's own timeline when what they show is drawn. They are opened without an
inspector (which Playwright is): it has Chromium find the line of every exception, and Plotly's
script throws and catches some, which takes as long as reading it does.

- `start page`: from its address until the last of the 100 runs stands in the table;
- `overview, first`, `again` and `known`: until the last figure is drawn; the first time that
  anybody asks the server (tables are read, figures made); a later time in a new browser, which has
  nothing in its cache; and in one that was there before. `in view` is until the figures that the
  window shows are drawn.
- `slider step`: from the key until Plotly has drawn that checkpoint's maps;
- `10 at once`: that many clients ask for the overview's shell, script and figures; the 95th
  percentile of what one of them waited for all of it, over several rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import machine
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric, Param
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from mlflow_scalpel.comparison.run_queries import TABLE
from mlflow_scalpel.comparison.table import tidy, write_table
from mlflow_scalpel.tensors.places import CLASSICAL as MATRICES

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.servers import Server

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run"
).split()
LAYERS, PEOPLE, ROUNDS = 32, 10, 5
ALL, VIEW = "all drawn", "in view"  # the first as the pages' scripts call it
METRICS = [
    *("weights/relative_frobenius", "weights/relative_frobenius_per_lr", "weights/update_rms"),
    *("weights/largest_change", "weights/cosine_distance", "weights/unchanged"),
    *("weights/unchanged_bfloat16", "spectra/update_spectral_norm", "spectra/stable_rank"),
    "spectra/effective_rank",
]


def main() -> None:
    """Measure, print a Markdown table, and write all numbers as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100, help="of the large experiment")
    parser.add_argument("--checkpoints", type=int, default=20, help="of each run")
    parser.add_argument("--workers", type=int, default=2, help="of the server")
    parser.add_argument("--rounds", type=int, default=5, help="of each of which a median is taken")
    parser.add_argument(
        "--patience", type=float, default=6, help="s before anybody looks at a page"
    )
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, default=Path("pages.json"))
    arguments = parser.parse_args()
    result: dict[str, Any] = {"machine": machine.describe(arguments.workdir)}
    rows: dict[str, float] = {}
    rounds, patience = 1 + arguments.rounds, arguments.patience
    with (
        tempfile.TemporaryDirectory(dir=arguments.workdir, prefix="benchmark-") as scratch,
        serving(Path(scratch), arguments.workers) as server,
        sync_playwright() as driver,
    ):
        compared, large = fill(server, arguments.runs, arguments.checkpoints)
        query = "runs=" + ",".join(compared)
        start = f"{server.uri}/scalpel/?experiment={large}"
        found = [alone(driver, start, patience) for _ in range(rounds)]
        rows["start page"] = median(found[1:], ALL)
        overview = f"{server.uri}/scalpel/overview?{query}"
        found = [alone(driver, overview, patience) for _ in range(rounds)]
        rows["overview, first, in view"], rows["overview, first"] = found[0][VIEW], found[0][ALL]
        rows["overview, again, in view"] = median(found[1:], VIEW)
        rows["overview, again"] = median(found[1:], ALL)
        with chromium() as port:
            found = [opened(driver, port, overview, patience) for _ in range(rounds)]
        rows["overview, known"] = median(found[1:], ALL)
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        rows["slider step"] = slide(browser, f"{server.uri}/scalpel/weights?{query}")
        browser.close()
        rows[f"{PEOPLE} at once"] = at_once(overview)
    result["rows"] = [{"way": way, "seconds": seconds} for way, seconds in rows.items()]
    print("| way | s |\n| --- | ---: |")
    for way, seconds in rows.items():
        print(f"| {way} | {seconds:.3f} |")
    machine.write(arguments.json, result)


@contextmanager
def serving(folder: Path, workers: int) -> Iterator[Server]:
    """A server of its own with the pages."""
    options = ["--app-name", "scalpel", "--workers", str(workers)]
    server = Server(folder, options=options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def fill(server: Server, runs: int, checkpoints: int) -> tuple[list[str], str]:
    """Log all that is shown, past the server: IDs of two measured runs, and of the experiment."""
    client = MlflowClient(server.store_uri)
    place = server.artifacts.as_uri()
    client.create_experiment("compared", artifact_location=f"{place}/compared")
    compared = client.get_experiment_by_name("compared").experiment_id
    steps = [50 * (number + 1) for number in range(checkpoints)]
    measured = [log_run(client, compared, name, steps) for name in ("grpo", "sft")]
    for run_id in measured:
        with tempfile.TemporaryDirectory() as scratch:
            table = write_table(table_of(run_id, steps), Path(scratch) / Path(TABLE).name)
            client.log_artifact(run_id, str(table), str(Path(TABLE).parent))
    large = client.create_experiment("large", artifact_location=f"{place}/large")
    for number in range(runs):
        log_run(client, large, f"grpo-{number}", steps)
    return measured, str(large)


def log_run(client: MlflowClient, experiment_id: str, name: str, steps: list[int]) -> str:
    """A run with its checkpoints, 40 params and 15 metrics at each step."""
    run_id = str(client.create_run(experiment_id, run_name=name).info.run_id)
    said = {"algorithm": name.partition("-")[0], "learning_rate": "1e-6", "max_steps": "1000"}
    params = [Param(key, value) for key, value in said.items()]
    metrics = []
    for step in steps:
        model = client.create_logged_model(
            experiment_id, f"step-{step:06d}", run_id, params={"step": str(step)},
            model_type="checkpoint",
        )  # fmt: skip
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        metrics += [Metric(f"kl/{number}", 0.1, step, step) for number in range(15)]
    params += [Param(f"setting_{number}", "value") for number in range(37)]
    client.log_batch(run_id, metrics=metrics, params=params)
    client.set_terminated(run_id)
    return run_id


def table_of(run_id: str, steps: list[int]) -> pd.DataFrame:
    """The tidy table of a run: every weight metric of every matrix, KL, scores and costs."""
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for step in steps:
        own = {"run_id": run_id, "algorithm": "grpo", "step": step, "base": "base"}
        values = iter(random.random(len(METRICS) * LAYERS * len(MATRICES)) * step / 1e4)
        for metric in METRICS:
            for layer in range(LAYERS):
                for matrix in MATRICES:
                    place = {"metric": metric, "layer": layer, "matrix": matrix}
                    rows.append({**own, **place, "value": next(values)})
        for metric in ("kl/all_tokens", "kl/answer_tokens"):
            value = {"value": step / 1e3, "stderr": 0.01, "n": 64, "texts": "probe sha256:0"}
            rows.append({**own, "metric": metric, **value})
        for domain, skill in (("in", "add"), ("in", "gcd"), ("out", "facts"), ("out", "lists")):
            score = {"metric": f"eval/{domain}/{skill}/greedy", "stderr": 0.02, "n": 200}
            for at in {0, step}:
                rows.append({**own, **score, "step": at, "value": 0.5 + at / 4e3})
        rows.append({**own, "metric": "cost/flops", "value": 1e12 * step, "unit": "FLOP"})
    return tidy(rows)


@contextmanager
def chromium() -> Iterator[int]:
    """A Chromium with a profile of its own, at rest; the port at which it can be told things."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [f"--user-data-dir={profile}", "--remote-debugging-port=0", "--headless"]
        command = [CHROMIUM, *FLAGS, *options, "--window-size=1400,900", "about:blank"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                said = Path(profile) / "DevToolsActivePort"
                while not (said.exists() and said.read_text().strip()):
                    time.sleep(0.1)
                time.sleep(1)
                yield int(said.read_text().split()[0])
            finally:
                process.terminate()


def opened(driver: Playwright, port: int, address: str, patience: float) -> dict[str, float]:
    """Seconds until all of a page was drawn, and what was in view.

    Nobody looks for `patience` seconds; what is not drawn then goes on with an inspector watching.
    """
    told = f"http://127.0.0.1:{port}/json/new?{address}"
    with urllib.request.urlopen(urllib.request.Request(told, method="PUT"), timeout=60):
        time.sleep(patience)
    browser = driver.chromium.connect_over_cdp(f"http://127.0.0.1:{port}")
    page = next(page for page in browser.contexts[0].pages if page.url.startswith(address[:30]))
    marks = page.evaluate(
        """async (all) => {
            while (!performance.getEntriesByName(all).length) {
                if (performance.now() > 120_000) throw new Error("the page was never drawn");
                await new Promise((done) => setTimeout(done, 50));
            }
            const marks = performance.getEntriesByType("mark");
            const at = Object.fromEntries(marks.map(({ name, startTime }) => [name, startTime]));
            const inView = [...document.querySelectorAll("[data-figure]")].filter(
                (place) => place.getBoundingClientRect().top < innerHeight,
            );
            const last = inView.map((place) => at[`drawn: ${place.dataset.figure}`]);
            return { ...at, "in view": Math.max(0, ...last) };
        }""",
        ALL,
    )
    page.close()
    browser.close()
    return {name: marks[name] / 1000 for name in (VIEW, ALL)}


def alone(driver: Playwright, address: str, patience: float) -> dict[str, float]:
    """As `opened`, in a browser that has nothing in its cache."""
    with chromium() as port:
        return opened(driver, port, address, patience)


def slide(browser: Browser, address: str) -> float:
    """Median seconds from the slider's event until the maps of that checkpoint are drawn."""
    page: Page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(address)
    page.locator("#status[hidden]").wait_for(state="attached", timeout=60_000)
    page.wait_for_timeout(500)
    seconds = page.locator('[data-figure="weight_heatmaps"]').evaluate(
        """async (place) => {
            const slider = document.getElementById("set-at"), found = [];
            for (let at = 0; at < slider.max; at++) {
                const drawn = new Promise((done) => place.once("plotly_redraw", done));
                const painted = new Promise((done) => place.once("plotly_afterplot", done));
                const began = performance.now();
                slider.value = at;
                slider.dispatchEvent(new Event("input"));
                await Promise.race([drawn, painted]);
                found.push((performance.now() - began) / 1000);
                await new Promise((done) => setTimeout(done, 20));
            }
            return found;
        }"""
    )
    page.close()
    return statistics.median(seconds)


def at_once(overview: str) -> float:
    """95th percentile of what each of ten clients at once waits for the page and its figures."""
    root, _, query = overview.partition("overview?")
    parts = [overview, f"{root}static/page.js", f"{root}data/figures?page=overview&{query}"]

    def one_person(_: int) -> float:
        began = time.perf_counter()
        for part in parts:
            with urllib.request.urlopen(part, timeout=60) as response:
                response.read()
        return time.perf_counter() - began

    with ThreadPoolExecutor(PEOPLE) as pool:
        seconds = [one for _ in range(ROUNDS) for one in pool.map(one_person, range(PEOPLE))]
    return float(np.quantile(seconds, 0.95))


def median(found: list[dict[str, float]], what: str) -> float:
    """The median of a few measurements."""
    return statistics.median(one[what] for one in found)


if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    main()
