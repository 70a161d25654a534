"""Send what a run could not send while its tracking server was away."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLE = "mlflow-scalpel upload out/.scalpel/RUN_ID"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "spool",
        type=Path,
        metavar="SPOOL",
        help="directory that the message names, or a directory above it",
    )


def run(arguments: argparse.Namespace) -> int:
    """Send everything, what was set aside too; 1 where MLflow refuses some, or some is FAILED.

    UploadPending where the server is still away.
    """
    import mlflow

    from mlflow_scalpel.checkpoints.logging.spool import Spool, find_spools
    from mlflow_scalpel.checkpoints.logging.uploader import Uploader
    from mlflow_scalpel.credentials import without_credentials

    failed = 0
    for directory in find_spools(arguments.spool):
        spool = Spool.open(directory)
        spool.hold()
        spool.retry_refused()
        waiting = len(spool.numbers())
        mlflow.set_tracking_uri(spool.tracking_uri)  # files and versions go there too
        uploader = Uploader(spool)
        try:
            uploader.drain()
        finally:
            uploader.close()
        sent = waiting - uploader.refused
        place = without_credentials(spool.tracking_uri)
        print(f"run {spool.run_id}: sent {sent} of {waiting} entries to {place}")
        for step, reason in sorted(uploader.failed.items()):
            print(f"step {step}: FAILED: {without_credentials(reason)}", file=sys.stderr)
        failed += uploader.refused + len(uploader.failed)
    return 1 if failed else 0
