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
    """Send everything; 1 where MLflow refuses some, Undelivered where the server is still away."""
    from mlflow_scalpel.checkpoints.courier import Courier
    from mlflow_scalpel.checkpoints.spool import Spool, find_spools
    from mlflow_scalpel.credentials import without_credentials

    refused = 0
    for directory in find_spools(arguments.spool):
        spool = Spool.open(directory)
        waiting = len(spool.numbers())
        courier = Courier(spool)
        try:
            courier.drain()
        finally:
            courier.close()
        sent = waiting - courier.refused
        place = without_credentials(spool.tracking_uri)
        print(f"run {spool.run_id}: sent {sent} of {waiting} entries to {place}")
        refused += courier.refused
    return 1 if refused else 0
