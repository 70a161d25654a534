"""The `mlflow-scalpel` command.

Each subcommand is a module here with `NAME`, `HELP`, `add(parser)` and `run(arguments)`; and with
`EXTRA`, where it needs more than a plain install.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys

from mlflow_scalpel import __version__
from mlflow_scalpel.credentials import guard_output, move_to_environment
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.extras import require_extra


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 0, what the command says, or 2 where the input is refused."""
    parser = argparse.ArgumentParser(
        prog="mlflow-scalpel",
        description="Checkpoints and comparisons of post-training, in the MLflow server that "
        "MLFLOW_TRACKING_URI names.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        if module.name.endswith("__main__"):
            continue
        command = importlib.import_module(module.name)
        subparser = subparsers.add_parser(
            command.NAME, help=command.HELP, description=command.__doc__
        )
        command.add(subparser)
        subparser.set_defaults(run=command.run, extra=getattr(command, "EXTRA", None))
    arguments = parser.parse_args(argv)
    move_to_environment()
    guard_output()
    # MLflow's bar for each small table that is read; what takes long says how far it is by itself.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        if arguments.extra is not None:
            require_extra(arguments.extra, f"mlflow-scalpel {arguments.command}")
        return int(arguments.run(arguments))
    except ScalpelError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from mlflow_scalpel.server_errors import is_of_mlflow, no_answer

        if not is_of_mlflow(error):
            raise
        print(no_answer(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
