"""`accelerate launch` with one line where it has a page: `python -m mlflow_scalpel.runs.launcher`.

What a process fails with it has said itself. One that died without a word is named here, and the
run, which nobody else can end then, is FAILED.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings

from mlflow_scalpel.credentials import guard_output
from mlflow_scalpel.run_warnings import FAILURE_TAG


def main(words: list[str]) -> int:
    """Start the processes that `words` ask for, and return 0 or what one of them failed with."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    guard_output()
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # Another run on this machine has the usual port, and accelerate takes another one.
    warnings.filterwarnings("ignore", message=r"Port `\d+` is already in use")
    try:
        launch_command(launch_command_parser().parse_args(words))
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return int(failure.exitcode)
        _note_death(f"process {rank} was ended by {signal.Signals(-failure.exitcode).name}")
        return 1
    return 0


def _note_death(what: str) -> None:
    from mlflow import MlflowClient

    run_id = os.environ["MLFLOW_RUN_ID"]
    reason = (
        f"{what}, as the system does for want of memory; make room, and take the run up: "
        f"-P resume={run_id}"
    )
    print(f"\n{reason}\n", file=sys.stderr)
    client = MlflowClient()
    client.set_tag(run_id, FAILURE_TAG, reason)
    client.set_terminated(run_id, "FAILED")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
