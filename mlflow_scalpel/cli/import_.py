"""Log published results as a run, to stand beside your own."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """\
mlflow-scalpel import norms.json kl.json --metric kl/all_tokens --dtype bfloat16 \\
    --experiment published --algorithm sft --learning-rate 5e-5 --steps 462
"""


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
    parser.add_argument("--experiment", required=True, metavar="E", help="name of the experiment")
    parser.add_argument(
        "--metric",
        nargs="+",
        default=[],
        metavar="M",
        help="what bare numbers by checkpoint are, such as kl/all_tokens or "
        "eval/in/MATH-500/sampled; FILE=M for one of several files",
    )
    parser.add_argument("--name", help="name of the run (default: its label in the file)")
    parser.add_argument("--algorithm", help="how it was trained, such as grpo or sft")
    parser.add_argument("--base", help="model that training started from")
    parser.add_argument("--learning-rate", type=_rate, metavar="R", help="peak learning rate")
    parser.add_argument(
        "--steps", type=_steps, metavar="N", help="number of steps of the whole training"
    )
    parser.add_argument("--dtype", help="dtype in which the values were computed")
    parser.add_argument("--data", help="data that it was trained on")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the training")
    parser.add_argument("--frozen", help="weights that training left alone, in words")
    parser.add_argument("--source", help="where the results were published")
    parser.add_argument(
        "--texts", default="published", help="name of the texts that KL was measured on"
    )
    tables = parser.add_argument_group(
        "tables of benchmarks",
        "each trained model becomes a run, with the scores of --base at step 0",
    )
    tables.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="M",
        help="models to take; with files of norms or KL, the one model that they describe",
    )
    tables.add_argument(
        "--in-domain",
        nargs="+",
        default=[],
        metavar="B",
        help="benchmarks that training was meant to improve (all others are out-of-domain)",
    )
    tables.add_argument(
        "--kind", default="reported", help="how the scores were measured, such as greedy or sampled"
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
