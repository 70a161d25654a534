"""`mlflow-scalpel upload`: what a run could not send while its tracking server was away."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "upload"
HELP = "send what waits in a spool"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "spool", type=Path, metavar="SPOOL", help="directory that the message named, or one above"
    )


def run(arguments: argparse.Namespace) -> int:
    """Send everything; raises Undelivered where the server is still away."""
    from mlflow_scalpel.checkpoints.courier import Courier
    from mlflow_scalpel.checkpoints.spool import Spool, find_spools

    for directory in find_spools(arguments.spool):
        spool = Spool.open(directory)
        waiting = len(spool.numbers())
        courier = Courier(spool)
        try:
            courier.drain()
        finally:
            courier.close()
        print(f"run {spool.run_id}: sent {waiting} entries to {spool.tracking_uri}")
    return 0
