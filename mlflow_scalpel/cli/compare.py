"""Measure checkpoints against their base.

Works on any two models that share an architecture: directories, hub names, or URIs of MLflow.
`mlflow-scalpel metrics` lists what can be measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

EXTRA = "measure"
EXAMPLE = """\
mlflow-scalpel compare models:/tiny-base/1 models:/tiny-sft/20 --metrics weights
mlflow-scalpel compare org/base runs:/RUN_ID --metrics weights kl --texts problems.jsonl --log
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("base", metavar="BASE", help="directory, hub name or URI of the base")
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="likewise for each checkpoint; runs:/RUN means all checkpoints of a run",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        action="extend",
        metavar="M",
        help="metrics or groups of metrics, as `mlflow-scalpel metrics` lists them",
    )
    parser.add_argument(
        "--texts", metavar="FILE", help="JSONL file with problem and solution, for kl and attention"
    )
    parser.add_argument(
        "--samples",
        metavar="FILE",
        help="samples.parquet of an evaluation, for capabilities (default: the newest in MLflow)",
    )
    parser.add_argument("--system-prompt", metavar="TEXT", help="system prompt of every text")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16", "float16"],
        help="dtype of the forward passes (default: float32)",
    )  # fmt: skip
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="D",
        help="Torch device of the forward passes, such as cuda (default: cpu)",
    )
    parser.add_argument(
        "--sample-seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the answers that the base samples for kl_on_base_samples",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=256,
        metavar="N",
        help="longest of these answers, in tokens (default: 256)",
    )
    parser.add_argument(
        "--all-tensors",
        action="store_true",
        help="measure embeddings, norms, heads and biases too: always the case",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="file to write the table to (.parquet or .csv)"
    )
    parser.add_argument(
        "--log",
        action="store_true",
        help="log an MLflow run with the table, its summary, a report and the tokens of largest KL",
    )
    parser.add_argument("--no-cache", action="store_true", help="measure everything again")


def run(arguments: argparse.Namespace) -> int:
    """Compare, and print what was measured of each checkpoint."""
    from mlflow_scalpel.comparison.compare import compare
    from mlflow_scalpel.comparison.engine import STANDARD
    from mlflow_scalpel.comparison.run_store import log_comparison, log_tokens
    from mlflow_scalpel.errors import ScalpelError

    if arguments.out and Path(arguments.out).suffix not in (".parquet", ".csv"):
        raise ScalpelError(f"--out {arguments.out}: give a file that ends in .parquet or .csv")
    tokens: list[pd.DataFrame] = []
    table = compare(
        arguments.base,
        arguments.checkpoints,
        metrics=arguments.metrics or STANDARD,
        texts=arguments.texts,
        samples=arguments.samples,
        system_prompt=arguments.system_prompt,
        dtype=arguments.dtype,
        device=arguments.device,
        cache=not arguments.no_cache,
        sample_seed=arguments.sample_seed,
        max_new_tokens=arguments.max_new_tokens,
        progress=True,
        on_tokens=tokens.extend if arguments.log else None,
    )
    _print(table)
    if arguments.out:
        out = Path(arguments.out)
        table.to_csv(out, index=False) if out.suffix == ".csv" else table.to_parquet(
            out, index=False
        )
        print(f"{len(table)} rows in {out}")
    if arguments.log:
        run_id = log_comparison(table)
        log_tokens(tokens, run_id)
        _log_report(table, run_id)
        print(f"logged as run {run_id}")
    return 0 if (table["status"] == "ok").any() else 1


def _log_report(table: pd.DataFrame, run_id: str) -> None:
    import tempfile

    from mlflow import MlflowClient

    from mlflow_scalpel.comparison.run_store import describe_runs
    from mlflow_scalpel.views.report.report import write_report

    runs = describe_runs(list(table["run_id"].dropna().unique()))
    with tempfile.TemporaryDirectory() as scratch:
        title = f"Compared with {table['base'].iloc[0]}"
        path = write_report(table, runs, Path(scratch) / "report.html", title=title)
        MlflowClient().log_artifact(run_id, str(path), "scalpel")


def _print(table: pd.DataFrame) -> None:
    import pandas as pd

    ok = table[table["status"] == "ok"]
    for (model, step), rows in ok.groupby(["model_id", "step"], sort=False, dropna=False):
        print(f"{model}{'' if pd.isna(step) else f'  step {step}'}")
        for line in lines(rows):
            print(f"  {line}")
        own = (table["model_id"] == model) & (table["step"].eq(step) | pd.isna(step))
        if said := _measured_share(table[own]):
            print(f"  {said}")
    bad = table[table["status"] != "ok"]
    for (model, status, reason), rows in bad.groupby(["model_id", "status", "reason"], sort=False):
        names = sorted(set(rows["metric"]))
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        print(f"{model}: {names[0]}{others}: {status} in {len(rows)} rows: {reason}")


def lines(rows: pd.DataFrame) -> list[str]:
    """What is printed of one model: a line a metric, and where they differ a partner and text.

    A mean is taken over the matrices of all layers; of the relative norm, over each other part of
    the model too. Partners of a pair, texts and benchmarks stand by themselves; of heads, whose
    changes go either way, the range is shown; bins are left to the table.
    """
    import pandas as pd

    from mlflow_scalpel.tensors.places import LAYER_PARTS

    found = []
    inside = rows["part"].isna() | rows["part"].isin(LAYER_PARTS)
    for name, every in rows.groupby("metric", sort=False):
        of_metric = every[inside[every.index]]
        parts = ["other", "texts"]
        for (other, texts), one in of_metric.groupby(parts, sort=False, dropna=False):
            unit = str(one["unit"].iloc[0])
            about = [] if pd.isna(other) else [f"with {other}"]
            if of_metric["texts"].nunique() > 1:
                about.append(f"on {str(texts).split(' ')[0]}")
            binned = one[one["bin"].notna()]
            if len(binned):
                said = [f"{len(binned)} values in bins, in the table (--out, --log)", *about]
                found.append(f"{name:38} {'':12} {unit:15} {', '.join(said)}")
            plain = one[one["bin"].isna()]
            if len(plain):
                value, over = _value(plain)
                line = f"{name:38} {value:<12} {unit:15} {', '.join([*over, *about])}"
                found.append(line.rstrip())
        outside = every[~inside[every.index]]
        if name == "weights/relative_frobenius" or not len(of_metric):
            for part, one in outside.groupby("part", sort=False):
                value, over = _value(one[one["bin"].isna()])
                unit = str(one["unit"].iloc[0])
                line = f"{name:38} {value:<12} {unit:15} {', '.join([*over, f'{part}'])}"
                found.append(line.rstrip())
    return found


def _measured_share(rows: pd.DataFrame) -> str:
    """How many of a model's tensors, and of its parameters, were measured; "" where not known."""
    from mlflow_scalpel.comparison.run_store import coverage

    measured, tensors, share = coverage(rows)
    if share is None:
        return ""
    return f"measured {measured} of {tensors} tensors, {100 * share:.3g} % of the parameters"


def _value(rows: pd.DataFrame) -> tuple[str, list[str]]:
    """The value of a metric, and what it is over."""
    if len(rows) == 1:
        row = rows.iloc[0]
        known = rows["stderr"].notna().all()
        over = [f"\u00b1 {row['stderr']:.2g} over {row['n']} problems"] if known else []
        return f"{row['value']:.6g}", over
    if rows["head"].notna().any():
        low, high = rows["value"].min(), rows["value"].max()
        far = rows.loc[rows["value"].abs().astype(float).idxmax()]
        return f"{low:.3g}..{high:.3g}", [
            f"{len(rows)} heads, furthest layer {far['layer']} head {far['head']}"
        ]
    return f"{rows['value'].mean():.6g}", [f"mean of {len(rows)}"]
