"""Runs stages as processes of their own, each a nested run of the active one.

An experiment that is resumed does not repeat what has finished: a stage of the same kind and name
below the same run is done, or, where its process was killed, is itself resumed.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run, RunInfo
from mlflow.utils.mlflow_tags import (
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_PROJECT_ENTRY_POINT,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
)

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.run_warnings import FAILURE_TAG
from mlflow_scalpel.runs.lifecycle import NESTED
from mlflow_scalpel.runs.resume import STAGE_TAG, can_be_resumed
from mlflow_scalpel.runs.signals import interrupt_was_caught


class Experiment:
    """Starts stages below the run that is active when it is made.

    As a context manager it leaves no process behind: what still runs at its end is stopped, and
    waited for until it has noted its own end.
    """

    def __init__(self, projects: Path, *, resumed: bool = False) -> None:
        run = mlflow.active_run()
        assert run is not None  # the stage has opened one
        self._parent = run.info
        self._projects = projects
        self._begun = _stages_below(self._parent) if resumed else {}
        self._processes: list[subprocess.Popen[str]] = []
        self._stopping = False

    def __enter__(self) -> Experiment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            interrupt_was_caught()
        self._stop()

    def each(
        self, function: Callable[[Any], str], items: Sequence[Any], *, workers: int
    ) -> list[str]:
        """`function` of every item, `workers` at a time; one that fails does not stop the others.

        Raises ScalpelError with the reasons of all that failed.
        """
        pool = ThreadPoolExecutor(workers)
        try:
            futures = [pool.submit(function, item) for item in items]
            wait(futures)
        except KeyboardInterrupt:
            interrupt_was_caught()
            self._stop()  # else the threads would wait for their stages to end by themselves
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        failures = [error for future in futures if (error := future.exception())]
        unexpected = [error for error in failures if not isinstance(error, ScalpelError)]
        if unexpected:
            raise unexpected[0]
        if failures:
            raise ScalpelError("; ".join(map(str, failures)))
        return [future.result() for future in futures]

    def _stop(self) -> None:
        """Tell every stage that still runs to stop, and wait until it has noted its own end."""
        self._stopping = True
        running = [process for process in self._processes if process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            process.wait()

    def run(self, stage: str, recipe: str, name: str, settings: Mapping[str, Any]) -> str:
        """Run a stage to its end, and return its run ID; may be called from several threads.

        Raises ScalpelError with the stage's own reason where it does not finish.
        """
        if self._stopping:
            raise ScalpelError(f"{name} (stage {stage}) was not begun: the experiment is stopping")
        script = self._projects / stage / f"{stage}.py"
        before = self._begun.get((stage, name))
        if before is not None and before.info.status == "FINISHED":
            print(f"[{name}] has finished before: run {before.info.run_id}", flush=True)
            return str(before.info.run_id)
        options = ["--recipe", recipe, "--set", as_settings(settings)]
        if before is None:
            run_id = self._create_run(stage, name)
        elif STAGE_TAG not in before.data.tags:  # killed before it had begun
            run_id = before.info.run_id
        elif can_be_resumed(before.info.run_id, stage):
            run_id = before.info.run_id
            options = ["--resume", run_id]
        else:
            run_id = self._create_run(stage, name)
            _abandon(before, run_id)
        process = subprocess.Popen(
            [sys.executable, str(script), *options],
            env={
                **os.environ,
                "MLFLOW_RUN_ID": run_id,
                "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
                "PYTHONUNBUFFERED": "1",
                NESTED: "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._processes.append(process)
        assert process.stdout is not None  # asked for above
        for line in process.stdout:
            print(f"[{name}] {line.rstrip()}", flush=True)
        if process.wait() != 0:
            tags = MlflowClient().get_run(run_id).data.tags
            reason = tags.get(FAILURE_TAG, f"its process ended with {process.returncode}")
            raise ScalpelError(f"{name} (stage {stage}, run {run_id}) did not finish: {reason}")
        return run_id

    def _create_run(self, stage: str, name: str) -> str:
        run = MlflowClient().create_run(
            self._parent.experiment_id,
            run_name=name,
            tags={
                MLFLOW_PARENT_RUN_ID: self._parent.run_id,
                MLFLOW_PROJECT_ENTRY_POINT: stage,
                MLFLOW_SOURCE_NAME: str(self._projects.parent),
                MLFLOW_SOURCE_TYPE: "PROJECT",
            },
        )
        return str(run.info.run_id)


def _stages_below(parent: RunInfo) -> dict[tuple[str, str], Run]:
    """The newest run of each stage and name that an earlier process of the experiment began."""
    runs = MlflowClient().search_runs(
        [parent.experiment_id],
        f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.run_id}'",
        order_by=["attributes.start_time ASC"],
    )
    return {
        (run.data.tags[MLFLOW_PROJECT_ENTRY_POINT], run.info.run_name): run
        for run in runs
        if MLFLOW_PROJECT_ENTRY_POINT in run.data.tags
    }


def _abandon(run: Run, successor: str) -> None:
    """End a stage's run that was killed and whose place another run takes."""
    if run.info.status == "RUNNING":
        client = MlflowClient()
        client.set_tag(run.info.run_id, FAILURE_TAG, f"killed, and begun anew as run {successor}")
        client.set_terminated(run.info.run_id, "KILLED")


def as_settings(settings: Mapping[str, Any]) -> str:
    """Fields and values as `set` takes them."""
    # Not in ASCII, where a character beyond 65535 is written as two, which YAML leaves two.
    return " ".join(
        shlex.quote(f"{name}={json.dumps(value, ensure_ascii=False)}")
        for name, value in settings.items()
    )
