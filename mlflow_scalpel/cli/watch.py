"""Log the checkpoints of a run in progress, each once it is complete."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from mlflow_scalpel.cli.log import add_external_run, external_run_of, finish, report

if TYPE_CHECKING:
    from mlflow_scalpel.checkpoints.logging.uploads import Upload

EXAMPLE = "mlflow-scalpel watch out/ --base org/name --algorithm sft --until-idle 3600"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="where the trainer writes checkpoint-N"
    )
    add_external_run(parser)
    parser.add_argument(
        "--interval", type=float, default=5.0, help="seconds between two scans (default: 5)"
    )
    parser.add_argument(
        "--until-idle",
        type=float,
        metavar="SECONDS",
        help="stop once nothing new has appeared for this long",
    )


def run(arguments: argparse.Namespace) -> int:
    """Log until idle or interrupted; 1 where a checkpoint is lost."""
    from mlflow_scalpel.checkpoints.external.external_run import run_of
    from mlflow_scalpel.checkpoints.external.watch import watch
    from mlflow_scalpel.checkpoints.logging.uploads import all_sent

    directory, stop = arguments.directory, _Stop()
    taken: list[tuple[int, Upload]] = []  # a step that is written anew comes again
    gone: dict[int, str] = {}
    external = external_run_of(arguments)
    print(f"watching {directory}; Ctrl-C ends it, when all is sent", flush=True)
    with all_sent():
        for step, upload in watch(
            directory,
            external,
            interval=arguments.interval,
            idle=arguments.until_idle,
            stopped=lambda: stop.asked,
            report=lambda line: print(line, flush=True),
            gone=gone,
        ):
            print(f"step {step}: complete; uploading", flush=True)
            taken.append((step, upload))
        if stop.asked:
            print("interrupted; sending what is under way", flush=True)
        failed = [step for step, upload in taken if not report(step, upload)]
    steps = {step for step, _ in taken}
    lost = finish(directory, external, run_of(directory, external), steps, gone)
    return 1 if lost or failed else 0


class _Stop:
    """Whether the first SIGINT or SIGTERM came; the second ends the process at once.

    An exception that a signal raises is lost where it hits a callback or a destructor of some
    library; a flag is not.
    """

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
