"""What an evaluation has found so far: a file a model, with MLflow as soon as it is there.

A file holds the model's rows, and beside them its scores. Files and metrics go through the run's
spool, so that a process may be killed at any time: what is in a file is not measured again, and its
metrics, sent again with the time they were first sent with, stand there once.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow
from mlflow import MlflowClient

from mlflow_scalpel.checkpoints.logging.spool import ArtifactEntry, MetricsEntry, MetricValue
from mlflow_scalpel.checkpoints.logging.uploads import uploader_for
from mlflow_scalpel.comparison import MeasuredModel
from mlflow_scalpel.evaluation.groups import GroupScore
from mlflow_scalpel.evaluation.harness import Evaluation, Score
from mlflow_scalpel.evaluation.record import lm_eval_name, result_file

RESULTS = "scalpel/results"


@dataclass(frozen=True)
class Result:
    """What was found of one model."""

    evaluation: Evaluation
    """Its samples may have the columns of gold.py too."""
    finished: int
    """Milliseconds since 1970."""

    def write(self, path: Path) -> None:
        """Write it as Parquet, whole or not at all."""
        rows = self.evaluation.samples.copy()
        # pandas keeps them in the file's metadata, to the last bit.
        rows.attrs = {
            "finished": self.finished,
            "scores": [asdict(score) for score in self.evaluation.scores],
        }
        scratch = path.with_suffix(".tmp")
        rows.to_parquet(scratch, index=False)
        os.replace(scratch, path)

    @classmethod
    def read(cls, path: Path) -> Result:
        """What `write` wrote; raises ValueError or OSError for a file that was cut off."""
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
        self._courier = uploader_for(run_id, output)
        shutil.rmtree(self.folder, ignore_errors=True)  # of a process that was killed
        self.folder.mkdir(parents=True)

    def fetch(self) -> None:
        """Bring here what earlier processes of the run have stored, but for what cannot be read."""
        self._courier.drain()  # what they had not sent yet
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

    def path(self, subject: MeasuredModel) -> Path:
        """Where the result of a model is, or will be."""
        return result_file(self.folder, subject)

    def read(self, subject: MeasuredModel) -> Result:
        """The result of a model that has one."""
        return Result.read(self.path(subject))

    def store(self, subject: MeasuredModel) -> Result:
        """Send the file of a model that was just measured, and its scores as metrics."""
        path = self.path(subject)
        self._courier.add(
            ArtifactEntry(folder=RESULTS), lambda folder: shutil.copy(path, folder / path.name)
        )
        return self.send_metrics(subject)

    def send_metrics(self, subject: MeasuredModel) -> Result:
        """Log each score with its standard error at the model's step, linked to the model.

        Doing it twice does no harm.
        """
        result, step = self.read(subject), subject.step or 0
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
        self._courier.add(MetricsEntry(metrics=metrics, model_id=subject.model_id))
        return result

    def close(self) -> None:
        """Wait until all is sent, and remove the files from here."""
        self._courier.drain()
        shutil.rmtree(self.folder)


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)
