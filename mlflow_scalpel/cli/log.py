"""Log the checkpoints of finished runs of any trainer.

Finds the Hugging Face models in what Transformers, TRL, verl, OpenRLHF, torchtune, prime-rl and
others write. Running it again logs only what is missing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

EXAMPLE = "mlflow-scalpel log out/ --base org/name --algorithm grpo --experiment mine"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "directories",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="a run's directory (with checkpoint-N, global_step_N, step_N, ...), or one step's",
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="step of DIR, where its name does not say"
    )
    add_external_run(parser)


def add_external_run(parser: argparse.ArgumentParser) -> None:
    """Declare what `log` and `watch` take alike."""
    parser.add_argument(
        "--base", help="model that training started from: model URI, directory or hub name"
    )
    parser.add_argument(
        "--run-id", help="MLflow run to log to (default: one of its own for each directory)"
    )
    parser.add_argument(
        "--trainer-run",
        metavar="RUN",
        help="MLflow run that the trainer itself logged, for its learning rates and settings "
        "(default: the run with this output_dir)",
    )
    parser.add_argument("--experiment", help="MLflow experiment of a new run")
    parser.add_argument("--algorithm", help="how it was trained, such as grpo or sft")
    parser.add_argument("--register-as", metavar="NAME", help="name of the registered model")
    parser.add_argument(
        "--link",
        choices=("reflink", "hard", "copy"),
        help="how files get into a local artifact store (default: the first that works)",
    )
    parser.add_argument(
        "--trainer-state", action="store_true", help="also store optimizer, scheduler and RNG state"
    )
    parser.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="param of each checkpoint, such as learning_rate=1e-6",
    )


def external_run_of(arguments: argparse.Namespace) -> Any:
    """The ExternalRun that the arguments describe; raises ScalpelError where a param is none."""
    import mlflow

    from mlflow_scalpel.checkpoints.external.external_run import ExternalRun
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
    return ExternalRun(
        base=arguments.base,
        run_id=arguments.run_id,
        register_as=arguments.register_as,
        link=arguments.link,
        trainer_state=arguments.trainer_state,
        params=params,
        step=getattr(arguments, "step", None),
        trainer_run=arguments.trainer_run,
    )


def run(arguments: argparse.Namespace) -> int:
    """Log all, and print a line per checkpoint; 1 where one of them is lost."""
    from mlflow_scalpel.checkpoints.external.external_run import log_directory
    from mlflow_scalpel.checkpoints.logging.uploads import all_sent
    from mlflow_scalpel.errors import ScalpelError

    external = external_run_of(arguments)
    if external.step is not None and (len(arguments.directories) > 1 or external.step < 0):
        raise ScalpelError(f"--step {external.step}: is the step of one directory, and 0 or more")
    lost = 0
    for directory in arguments.directories:
        if not directory.is_dir():
            raise ScalpelError(f"{directory}: there is no such directory")
        with all_sent():
            run_id, uploads = log_directory(directory, external)
            print(f"{directory}: run {run_id}, {len(uploads)} checkpoints that it did not have")
            for step, upload in uploads.items():
                lost += not report(step, upload)
        lost += finish(directory, external, run_id, set(uploads))
    return 1 if lost else 0


def finish(
    directory: Path,
    external: Any,
    run_id: str,
    reported: set[int],
    gone: dict[int, str] | None = None,
) -> int:
    """Print what of the directory is not stored, and end the run; number of lost checkpoints.

    `reported` are steps that were printed already, `gone` those that were removed too early.
    """
    from mlflow_scalpel.checkpoints.external.external_run import (
        end_run,
        lost_steps,
        models_without_step,
    )

    lost = lost_steps(directory, external, run_id, reported, gone)
    for step, reason in lost.items():
        if step not in reported:
            print(f"step {step}: is not logged: {reason}", file=sys.stderr)
    for path in models_without_step(directory, external, run_id):
        print(
            f"{path}: holds a model too, which is not logged, since its name gives no step; "
            f"log it with: mlflow-scalpel log --step N --run-id {run_id} {shlex.quote(str(path))}"
        )
    if external.run_id is None:
        end_run(run_id)
    return len(lost)


def report(step: int, upload: Any) -> bool:
    """Wait for a checkpoint and print a line about it; whether it is READY."""
    from mlflow_scalpel.checkpoints.logging.uploader import UploadPending
    from mlflow_scalpel.checkpoints.search import NOTE_TAG
    from mlflow_scalpel.errors import ScalpelError

    try:
        model = upload.wait()
    except UploadPending:
        raise
    except ScalpelError as error:
        print(f"step {step}: FAILED: {error}", file=sys.stderr)
        return False
    print(f"step {step}: models:/{model.model_id}", flush=True)
    if note := model.tags.get(NOTE_TAG):
        print(f"step {step}: note: {note}", flush=True)
    return True
