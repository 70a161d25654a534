"""Results of an evaluation so far: one file per model, with MLflow as soon as it is there.

A file holds the model's rows, and beside them its scores. Files and metrics go through the run's
spool, so that a process may be killed at any time: what is in a file is not measured again, and its
metrics, sent again with the time they were first sent with, stand there once.

What may be wrong with the results is a warning on the evaluation's run and on the run evaluated.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow
from mlflow import MlflowClient

from mlflow_scalpel.checkpoints.atomic import write_atomically
from mlflow_scalpel.checkpoints.logging.spool import ArtifactEntry, MetricsEntry, MetricValue
from mlflow_scalpel.checkpoints.logging.uploads import uploader_for
from mlflow_scalpel.comparison.measured_models import MeasuredModel
from mlflow_scalpel.evaluation.harness import Evaluation, Score
from mlflow_scalpel.evaluation.record import Plan, lm_eval_name, result_file, rows_of
from mlflow_scalpel.evaluation.scoring import GroupScore, left_out_words
from mlflow_scalpel.evaluation.suite import Suite
from mlflow_scalpel.run_warnings import warn, withdraw

RESULTS = "scalpel/results"


@dataclass(frozen=True)
class Result:
    """The result of one model."""

    evaluation: Evaluation
    """Its samples may have the columns of gold.py too."""
    finished: int
    """Milliseconds since 1970."""

    def write(self, path: Path) -> None:
        """Write it as Parquet, completely or not at all."""
        rows = self.evaluation.samples.copy()
        # pandas keeps them in the file's metadata, to the last bit.
        rows.attrs = {
            "finished": self.finished,
            "scores": [asdict(score) for score in self.evaluation.scores],
        }
        write_atomically(path, rows.to_parquet(index=False))

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read what `write` wrote; raises ValueError or OSError for a file that was cut off."""
        rows = pd.read_parquet(path)
        about, rows.attrs = rows.attrs, {}
        scores = [_score(fields) for fields in about["scores"]]
        return cls(Evaluation(scores, rows), about["finished"])


def _score(fields: dict[str, Any]) -> Score:
    group = fields.pop("group")
    return Score(**fields, group=None if group is None else GroupScore(**group))


class Results:
    """The results of one evaluation run, in a folder here and as artifacts of the run."""

    def __init__(self, run_id: str, output: Path) -> None:
        self.folder = output / "results"
        self._run_id = run_id
        self._uploader = uploader_for(run_id, output)
        shutil.rmtree(self.folder, ignore_errors=True)  # of a process that was killed
        self.folder.mkdir(parents=True)

    def fetch(self) -> None:
        """Bring here what earlier processes of the run have stored, but for what cannot be read."""
        self._uploader.drain()  # what they had not sent yet
        client = MlflowClient()
        for file in client.list_artifacts(self._run_id, RESULTS):
            path = self.folder / Path(file.path).name
            if path.suffix != ".parquet":  # of an upload that was cut off
                continue
            mlflow.artifacts.download_artifacts(
                run_id=self._run_id, artifact_path=file.path, dst_path=str(self.folder)
            )
            try:
                Result.read(path)
            except (OSError, pyarrow.ArrowInvalid) as error:
                print(f"{file.path}: was cut off ({error}), and is measured again")
                path.unlink()

    def path(self, model: MeasuredModel) -> Path:
        """The path of a model's result, there or not."""
        return result_file(self.folder, model)

    def read(self, model: MeasuredModel) -> Result:
        """The result of a model that has one."""
        return Result.read(self.path(model))

    def store(self, model: MeasuredModel) -> Result:
        """Send the file of a model that was just measured, and its scores as metrics."""
        path = self.path(model)
        self._uploader.add(
            ArtifactEntry(folder=RESULTS), lambda folder: shutil.copy(path, folder / path.name)
        )
        return self.send_metrics(model)

    def send_metrics(self, model: MeasuredModel) -> Result:
        """Log each score with its standard error at the model's step, linked to the model.

        Doing it twice does no harm.
        """
        result, step = self.read(model), model.step or 0
        values = {score.metric: score.value for score in result.evaluation.scores}
        values |= {f"{score.metric}_stderr": score.stderr for score in result.evaluation.scores}
        for score in result.evaluation.scores:
            if score.group is not None:
                name = lm_eval_name(score.metric)
                values |= {name: score.group.value, f"{name}_stderr": score.group.stderr}
        metrics = [
            MetricValue(key=key, value=value, timestamp=result.finished, step=step)
            for key, value in values.items()
            if value == value
        ]
        self._uploader.add(MetricsEntry(metrics=metrics, model_id=model.model_id))
        return result

    def close(self) -> None:
        """Wait until all is sent, and remove the files from here."""
        self._uploader.drain()
        shutil.rmtree(self.folder)


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def keep_warnings(
    messages: Mapping[str, str | None], suite: Suite, plan: Plan, run_id: str
) -> None:
    """Warn by subject; None takes back the warning of an earlier evaluation.

    The codes are `evaluation_SUITE_...`: an evaluation replaces the warnings of earlier ones with
    the same suite, and leaves those of others.
    """
    runs = [run_id, *([] if plan.run is None else [plan.run.info.run_id])]
    for about, message in messages.items():
        code = f"evaluation_{suite.name}_{about}"
        if message is None:
            withdraw(code, *runs)
        else:
            warn(code, message, *runs)


def warnings_of_results(
    found: list[tuple[Evaluation, MeasuredModel]], unreadable: Mapping[str, int]
) -> dict[str, str | None]:
    """Warnings of the results of all models, by subject; None where there is nothing to warn of.

    `unreadable` has the unreadable gold answers, by score, of which the user was warned before.
    """
    rows = pd.concat([rows_of(*one) for one in found], ignore_index=True)
    scores = [(model.step or 0, score) for one, model in found for score in one.scores]
    return {
        "left_out": _left_out((evaluation for evaluation, _ in found), unreadable),
        "unfinished": unfinished_words(rows),
        "short_of_context": crowded_words(scores),
    }


def _left_out(evaluations: Iterable[Evaluation], unreadable: Mapping[str, int]) -> str | None:
    most: dict[str, tuple[int, int, int]] = {}  # of a model: unreadable, too long, all
    for score in (score for evaluation in evaluations for score in evaluation.scores):
        new = 0 if score.ungraded <= unreadable.get(score.metric, 0) else score.ungraded
        before = most.get(score.metric, (0, 0, 0))
        most[score.metric] = (
            max(before[0], new),
            max(before[1], score.not_graded),
            max(before[2], score.n + score.ungraded + score.not_graded),
        )
    words = [left_out_words(metric, *counts) for metric, counts in most.items() if any(counts[:2])]
    return "; ".join(words) or None


CUT_SHARE = 0.5
"""Share of a task's completions cut at the token limit from which people are warned."""
_MOST_LISTED = 6


def unfinished_words(rows: pd.DataFrame) -> str | None:
    """The warning of tasks most of whose completions were cut off; None where there are none.

    `rows` has a row a completion, with the columns label, kind, step and finished (null for tasks
    that generate nothing).
    """
    made = rows[rows["finished"].notna()]
    if not len(made):
        return None
    finished = made["finished"].astype(float).groupby([made["label"], made["kind"], made["step"]])
    counts = finished.agg(["sum", "count"]).reset_index()
    cut = counts[counts["sum"] <= (1.0 - CUT_SHARE) * counts["count"]]
    if not len(cut):
        return None
    listed = [
        f"{row.label} ({row.kind}) at step {row.step}: {row.sum:.0f} of {row.count}"
        for row in cut.sort_values(["sum", "step"]).itertuples(index=False)
    ]
    more = f"; and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
    none = " In some, none did." if (cut["sum"] == 0).any() else ""
    return (
        f"few completions ended before the token limit: {'; '.join(listed[:_MOST_LISTED])}{more}."
        f"{none} What is cut off is graded as it stands. Either max_new_tokens is too short, or "
        "the model does not stop: it never learned to, or the token that it ends with is not an "
        "end token of its tokenizer and generation config (eos_token of the training recipe)"
    )


def crowded_words(scores: Iterable[tuple[int, Score]]) -> str | None:
    """The warning of tasks whose prompts left less room than they allow; (step, score) each."""
    worst: dict[str, Score] = {}
    for _, score in scores:
        if score.crowded > (worst[score.metric].crowded if score.metric in worst else 0):
            worst[score.metric] = score
    if not worst:
        return None
    listed = [
        f"{name.removeprefix('eval/')}: {score.crowded} of {score.n + score.ungraded} problems"
        for name, score in worst.items()
    ]
    return (
        "prompts leave less of the model's context than max_new_tokens, so that completions are "
        f"cut at its end ({'; '.join(listed)}); take fewer shots, a shorter system prompt or "
        "fewer new tokens"
    )
