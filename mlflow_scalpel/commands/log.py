"""`mlflow-scalpel log`: the checkpoints of finished runs of any trainer, as LoggedModels."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

NAME = "log"
HELP = "log the checkpoints of finished runs"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "directories",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="directory with checkpoint-N or step-N directories, or one of these",
    )
    add_origin(parser)


def add_origin(parser: argparse.ArgumentParser) -> None:
    """Declare what `log` and `watch` take alike."""
    parser.add_argument("--base", help="what training began with: model URI, directory, hub name")
    parser.add_argument("--run-id", help="MLflow run to log to; the directory's own unless given")
    parser.add_argument("--experiment", help="MLflow experiment of a run that is begun")
    parser.add_argument("--algorithm", help="what trained it, such as grpo or sft")
    parser.add_argument("--register-as", metavar="NAME", help="name of the registered model")
    parser.add_argument("--link", choices=("reflink", "hard", "copy"), help="into a local store")
    parser.add_argument(
        "--trainer-state", action="store_true", help="store optimizer and RNG state too"
    )
    parser.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of each checkpoint, such as learning_rate=1e-6",
    )


def origin_of(arguments: argparse.Namespace) -> Any:
    """The Origin that the arguments describe; raises ScalpelError where a param is none."""
    import mlflow

    from mlflow_scalpel.checkpoints.foreign import Origin
    from mlflow_scalpel.errors import ScalpelError

    params = {}
    for given in arguments.param:
        key, equals, value = given.partition("=")
        if not equals or not key:
            raise ScalpelError(f"--param {given}: is not KEY=VALUE, such as learning_rate=1e-6")
        params[key] = value
    if arguments.algorithm:
        params["algorithm"] = arguments.algorithm
    if arguments.experiment:
        mlflow.set_experiment(arguments.experiment)
    return Origin(
        base=arguments.base,
        run_id=arguments.run_id,
        register_as=arguments.register_as,
        link=arguments.link,
        trainer_state=arguments.trainer_state,
        params=params,
    )


def run(arguments: argparse.Namespace) -> int:
    """Log all, and print a line a checkpoint; 1 where one of them is FAILED."""
    from mlflow import MlflowClient

    from mlflow_scalpel.checkpoints.foreign import log_directory
    from mlflow_scalpel.checkpoints.log import all_sent
    from mlflow_scalpel.errors import ScalpelError

    origin = origin_of(arguments)
    failed = 0
    for directory in arguments.directories:
        if not directory.is_dir():
            raise ScalpelError(f"{directory}: there is no such directory")
        with all_sent():
            run_id, deliveries = log_directory(directory, origin)
            print(f"{directory}: run {run_id}, {len(deliveries)} checkpoints that it did not have")
            for step, delivery in deliveries.items():
                failed += not report(step, delivery)
        if origin.run_id is None:
            MlflowClient().set_terminated(run_id, "FINISHED")
    return 1 if failed else 0


def report(step: int, delivery: Any) -> bool:
    """Wait for a checkpoint and print a line about it; whether it is READY."""
    from mlflow_scalpel.checkpoints.courier import Undelivered
    from mlflow_scalpel.errors import ScalpelError

    try:
        model = delivery.wait()
    except Undelivered:
        raise
    except ScalpelError as error:
        print(f"step {step}: FAILED: {error}", file=sys.stderr)
        return False
    print(f"step {step}: models:/{model.model_id}", flush=True)
    return True
