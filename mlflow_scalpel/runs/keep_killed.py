"""Keeps a run KILLED that `mlflow run` would mark FAILED.

Started as `python -m mlflow_scalpel.runs.keep_killed RUN_ID PROCESS_ID`.

When a project's process ends by Ctrl-C, `mlflow run` notes FAILED on the run, also where the
process has noted KILLED (it means to leave a terminated run alone, but compares a name with a
number). This process outlives `mlflow run` by a moment and puts KILLED back.
"""

from __future__ import annotations

import os
import sys
import time

PATIENCE = 60.0  # seconds; `mlflow run` ends within two of its child


def wait_for_end(process_id: int, patience: float = PATIENCE) -> bool:
    """Wait until the process has ended; False where it outlives `patience` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def main(run_id: str, process_id: int) -> None:
    """Mark the run KILLED once the process `process_id` has ended."""
    from mlflow import MlflowClient  # imported while `mlflow run` is still ending

    client = MlflowClient()
    wait_for_end(process_id)
    client.set_terminated(run_id, "KILLED")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
