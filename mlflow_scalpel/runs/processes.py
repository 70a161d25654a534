"""The processes of a stage: several that train together, and the ones that outlive `mlflow run`.

As a command of its own it starts the processes of a stage (`launch`, `accelerate launch` with one
line where that has a page of traceback) or keeps a run KILLED (`keep-killed RUN_ID PROCESS_ID`)::

    python -m mlflow_scalpel.runs.processes launch --num_processes 2 ... script.py --recipe tiny
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow_scalpel.credentials import guard_output, without_credentials
from mlflow_scalpel.errors import RecipeError, ScalpelError
from mlflow_scalpel.run_warnings import FAILURE_TAG
from mlflow_scalpel.runs.signals import end_with_parent, ignore_signals

OUTPUT = "SCALPEL_OUTPUT"  # tells every process of one stage the same output directory
MLFLOW_RUN_PROCESS = "SCALPEL_MLFLOW_RUN_PROCESS"  # ID of the `mlflow run` that began the stage
_LOST_PEER = "by peer"  # closed or reset, as gloo says
_WAIT_FOR_MLFLOW_RUN = 60.0  # seconds; `mlflow run` ends within two of its child


def launch_processes(recipe: Any, name: str, tags: dict[str, str], configurations: Path) -> None:
    """Start this script again under `accelerate launch` where the recipe asks for processes.

    The run is made before, since all of them work in the directory of its name.
    """
    processes = getattr(recipe, "processes", 1)
    if processes == 1 or "RANK" in os.environ:
        return
    if OUTPUT in os.environ:  # started again, but alone: going on would start itself for ever
        raise RecipeError(
            f"processes = {processes}: accelerate did not start as many; set processes=1, or see "
            "what its own configuration (`accelerate env`) says of this machine"
        )
    if MLFLOW_RUN_PROCESS in os.environ:
        end_with_parent()  # holds for the launcher too, which then ends its processes
    if "MLFLOW_RUN_ID" not in os.environ:
        import mlflow

        os.environ["MLFLOW_RUN_ID"] = mlflow.start_run(run_name=name, tags=tags).info.run_id
    os.environ[OUTPUT] = f"outputs/{os.environ['MLFLOW_RUN_ID']}"
    words = launch_options(recipe.processes, recipe.sharding, recipe.train.bf16, configurations)
    os.execv(sys.executable, [*_this_module("launch"), *words, *sys.argv])


def launch_options(
    processes: int, sharding: str | None, bf16: bool, configurations: Path
) -> list[str]:
    """Options of `accelerate launch` for a recipe; `configurations` is the folder of its files."""
    words = ["--num_processes", str(processes), "--num_machines", "1", "--dynamo_backend", "no"]
    if sharding is not None:
        precision = "bf16" if bf16 else "no"
        file = str(configurations / f"{sharding}.yaml")
        return [*words, "--config_file", file, "--mixed_precision", precision]
    # --multi_gpu names the launcher, torch's own; without GPUs its processes talk through gloo.
    return [*words, "--multi_gpu", "--mixed_precision", "no"]


def launch(words: list[str]) -> int:
    """`accelerate launch WORDS`; returns 0, or what one of the processes failed with.

    A process prints its own failure. One that died without a word is named here, and the run,
    which nobody else can end then, is FAILED.
    """
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
        f"{what}, as the system does for want of memory; make room, and resume the run: "
        f"-P resume={run_id}"
    )
    print(f"\n{reason}\n", file=sys.stderr)
    client = MlflowClient()
    client.set_tag(run_id, FAILURE_TAG, reason)
    client.set_terminated(run_id, "FAILED")


@contextmanager
def exiting_at_once() -> Iterator[None]:
    """End one of several processes without the interpreter's own shutdown.

    There Python frees the process group of training, with a lock that gloo's threads may want for
    what they hold: the process aborts (pytorch#179291), which its launcher takes for a failure of
    all, or it waits for ever.
    """
    try:
        yield
    finally:
        error = sys.exception()
        ignore_signals()  # of a launcher that ends the others
        code: Any = error.code if isinstance(error, SystemExit) else 0 if error is None else 1
        # What stops all of them is printed by the main process, and a lost peer by that one.
        printed = isinstance(error, SystemExit | KeyboardInterrupt | ScalpelError | None)
        if not printed and _LOST_PEER not in str(error):
            print(without_credentials(traceback.format_exc()), file=sys.stderr)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def start_keep_killed(run_id: str, process_id: str) -> None:
    """Leave a process behind that marks the run KILLED again once `mlflow run` has ended.

    When a project's process ends by Ctrl-C, `mlflow run`, the process `process_id`, notes FAILED
    on the run, also where the project has noted KILLED (it means to leave a terminated run alone,
    but compares a name with a number).
    """
    subprocess.Popen(
        [*_this_module("keep-killed"), run_id, process_id],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def keep_killed(run_id: str, process_id: int) -> int:
    """Mark the run KILLED once the process `process_id` has ended."""
    from mlflow import MlflowClient  # imported while `mlflow run` is still ending

    client = MlflowClient()
    wait_for_end(process_id)
    client.set_terminated(run_id, "KILLED")
    return 0


def wait_for_end(process_id: int, seconds: float = _WAIT_FOR_MLFLOW_RUN) -> bool:
    """Wait until the process has ended; False where it has not within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def _this_module(command: str) -> list[str]:
    return [sys.executable, "-m", "mlflow_scalpel.runs.processes", command]


def main(command: str, *words: str) -> int:
    """`launch WORDS` or `keep-killed RUN_ID PROCESS_ID`."""
    if command == "launch":
        return launch(list(words))
    run_id, process_id = words
    return keep_killed(run_id, int(process_id))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
