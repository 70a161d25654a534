"""`mlflow-scalpel ui`: the pages for a tracking server that runs elsewhere, on loopback."""

from __future__ import annotations

import argparse

NAME = "ui"
HELP = "serve the views of another MLflow server on loopback"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow server or store; MLFLOW_TRACKING_URI else"
    )
    parser.add_argument("--port", type=int, default=5005, help="of loopback; 0 takes a free one")


def run(arguments: argparse.Namespace) -> int:
    """Serve until interrupted."""
    import mlflow

    from mlflow_scalpel.server.loopback import serve

    serve(arguments.tracking_uri or mlflow.get_tracking_uri(), arguments.port)
    return 0
