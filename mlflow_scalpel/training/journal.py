"""What a training run logs while it goes on, by way of its uploader: nothing here waits."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from mlflow_scalpel.checkpoints.logging.spool import (
    ArtifactEntry,
    BestEntry,
    ImageEntry,
    MetricsEntry,
    MetricValue,
    TagsEntry,
)
from mlflow_scalpel.checkpoints.logging.uploader import Uploader
from mlflow_scalpel.checkpoints.logging.uploads import Upload
from mlflow_scalpel.comparison.run_queries import TABLE, TOKENS
from mlflow_scalpel.comparison.table import token_file_name, write_table
from mlflow_scalpel.run_warnings import WARNING_PREFIX, print_warning, warning_tag
from mlflow_scalpel.training.heatmap import heatmap_image

if TYPE_CHECKING:
    from transformers import TrainerState

SUMMARY = "scalpel/summary.json"
HEATMAP = "weights/relative_frobenius"  # key of the pictures in MLflow's image chart


class Journal:
    """Metrics, pictures, tables and tags of one run."""

    def __init__(self, uploader: Uploader) -> None:
        self.uploader = uploader
        self._warned: dict[str, bool] = {}  # by code, as it was last time
        self._logged: tuple[int, set[str]] = -1, set()  # newest step, and its metrics so far

    def metrics(
        self,
        values: Mapping[str, float],
        step: int,
        model: Upload | str | None = None,
        datasets: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        """Values at a step, of a model too where one is given (its upload, or its ID).

        A metric has one value at a step: what the trainer's summary says again at the end is left
        out. `datasets` gives name and digest of the dataset that a metric was measured on.
        """
        if step != self._logged[0]:
            self._logged = step, set()
        values = {key: value for key, value in values.items() if key not in self._logged[1]}
        self._logged[1].update(values)
        if not values:
            return
        now = int(time.time() * 1000)
        measured_on = datasets or {}
        entry = MetricsEntry(metrics=[])
        for key, value in values.items():
            name, digest = measured_on.get(key, (None, None))
            entry.metrics.append(
                MetricValue(
                    # what MLflow refuses in a key
                    key=re.sub(r"[^\w\-. :/]", "_", key),
                    value=value,
                    timestamp=now,
                    step=step,
                    dataset_name=name,
                    dataset_digest=digest,
                )
            )
        if isinstance(model, Upload):
            entry.job = model.job
        else:
            entry.model_id = model
        self.uploader.add(entry)

    def heatmap(self, table: pd.DataFrame, step: int, maximum: float) -> None:
        """The layer x matrix heat map of a checkpoint on the scale [0, maximum], as a picture."""
        image = heatmap_image(table, step, maximum)
        self.uploader.add(
            ImageEntry(key=HEATMAP, step=step, timestamp=int(time.time() * 1000)),
            lambda folder: image.save(folder / "image.png"),
        )

    def table(self, table: pd.DataFrame) -> None:
        """The tidy table so far, in place of the one before."""
        folder, name = TABLE.rsplit("/", 1)
        self.uploader.add(
            ArtifactEntry(folder=folder), lambda path: write_table(table, path / name)
        )

    def tokens(self, table: pd.DataFrame, step: int) -> None:
        """The table of single tokens of the checkpoint of a step."""
        name = token_file_name(step)
        self.uploader.add(
            ArtifactEntry(folder=TOKENS), lambda path: write_table(table, path / name)
        )

    def summary(self, rows: list[dict[str, Any]]) -> None:
        """One row per checkpoint, in the form that MLflow's UI shows as a table."""
        folder, name = SUMMARY.rsplit("/", 1)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        content = {"columns": columns, "data": [[row.get(c) for c in columns] for row in rows]}
        self.uploader.add(
            ArtifactEntry(folder=folder),
            lambda path: (path / name).write_text(json.dumps(content), encoding="utf-8"),
        )
        # By this tag MLflow's UI finds a table among a run's artifacts, as after `log_table`.
        shown = json.dumps([{"path": SUMMARY, "type": "table"}])
        self.tags({"mlflow.loggedArtifacts": shown})

    def warnings(self, messages: Mapping[str, str | None], run_id: str) -> None:
        """Warnings on the run, by code: printed the first time, and kept as they are the last time.

        None withdraws one, also one of a process that was killed.
        """
        for code, message in messages.items():
            if message is not None:
                if not self._warned.get(code):
                    print_warning(code, message, run_id)
                self.tags(warning_tag(code, message))
            elif self._warned.get(code, True):
                self.tags({f"{WARNING_PREFIX}{code}": None})
            self._warned[code] = message is not None

    def tags(self, tags: Mapping[str, str | None]) -> None:
        """Tags of the run; None removes one."""
        self.uploader.add(TagsEntry(tags=dict(tags)))

    def best(self, metric: str, mode: str) -> None:
        """Have the alias best-<run> follow the best version so far."""
        self.uploader.add(BestEntry(metric=metric, minimize=mode == "min"))


def numbers(logs: Mapping[str, Any], state: TrainerState) -> dict[str, float]:
    """What the trainer logs, as metrics."""
    values = {key: float(value) for key, value in logs.items() if isinstance(value, int | float)}
    if "num_tokens" in values:  # the trainer's own count begins at 0 when a run is resumed
        values["num_tokens"] = values.pop("num_input_tokens_seen", state.num_input_tokens_seen)
    return values
