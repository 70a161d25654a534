"""`mlflow-scalpel import`: published results as a run beside one's own."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "import"
HELP = "log published results as a run"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="tidy table (.csv, .parquet), .json of norms or of bare numbers by checkpoint "
        "(LABEL-step-NUMBER), or table of benchmark, model, accuracy; files of one label become "
        "one run",
    )
    parser.add_argument("--experiment", required=True, metavar="E", help="its name")
    parser.add_argument(
        "--metric",
        nargs="+",
        default=[],
        metavar="M",
        help="what bare numbers by checkpoint are, such as kl/all_tokens or "
        "eval/in/MATH-500/sampled; FILE=M for one of several files",
    )
    parser.add_argument("--name", help="of the run; its label unless given")
    parser.add_argument("--algorithm", help="such as grpo or sft")
    parser.add_argument("--base", help="what training began with")
    parser.add_argument("--learning-rate", type=_rate, metavar="R")
    parser.add_argument("--steps", type=_steps, metavar="N", help="of the whole training")
    parser.add_argument("--dtype", help="in which the values were computed")
    parser.add_argument("--data", help="what it was trained on")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--frozen", help="which weights training left alone")
    parser.add_argument("--source", help="where the results were published")
    parser.add_argument("--texts", default="published", help="name of the texts KL was measured on")
    tables = parser.add_argument_group(
        "tables of benchmarks",
        "each trained model becomes a run, with the scores of --base at step 0",
    )
    tables.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="M",
        help="which models to take; with files of norms or KL, the one that they are of",
    )
    tables.add_argument(
        "--in-domain",
        nargs="+",
        default=[],
        metavar="B",
        help="benchmarks that training was meant to improve; the others are out-of-domain",
    )
    tables.add_argument(
        "--kind", default="reported", help="how they were measured, such as greedy or sampled"
    )


def _rate(text: str) -> float:
    value = float(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a learning rate; give a number above 0")
    return value


def _steps(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of steps; give 1 or more")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Import the files, and print the runs."""
    from mlflow_scalpel.comparison.published.runs import About, import_files

    about = About(**{name: getattr(arguments, name) for name in About.model_fields})
    for run_id in import_files(arguments.files, arguments.experiment, about):
        print(f"imported as run {run_id}")
    return 0
