"""Serve the views of a remote tracking server, on this machine only."""

from __future__ import annotations

import argparse

EXAMPLE = "mlflow-scalpel ui --tracking-uri https://mlflow.example.org"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow server or store (default: MLFLOW_TRACKING_URI)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=5005,
        help="port on localhost; 0 takes a free one (default: 5005)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until interrupted."""
    import mlflow

    from mlflow_scalpel.server.loopback import serve

    serve(arguments.tracking_uri or mlflow.get_tracking_uri(), arguments.port)
    return 0
