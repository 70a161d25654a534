"""Where the pages get runs and their files from: MLflow, as one user is allowed to see it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Experiment, LoggedModel, Run
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList

from mlflow_scalpel.checkpoints.search import all_experiments, every, made_by
from mlflow_scalpel.comparison.run_queries import COMPARISONS_WHERE, compared_by
from mlflow_scalpel.errors import ScalpelError

RUNS_A_PAGE = 1000

T = TypeVar("T")


class NotReadable(ScalpelError):
    """There is no such run, or the user may not read it: which of the two is not told."""


class Source(Protocol):
    """What one user may read of one MLflow server. Nothing here changes anything."""

    user: str
    """The same for two sources that may read the same; for keys of caches only."""

    def experiments(self) -> list[Experiment]:
        """Every experiment that is not deleted, the last changed first."""

    def runs(self, experiment_id: str, where: str = "") -> list[Run]:
        """The runs of an experiment, the newest first, that match MLflow's filter `where`."""

    def run(self, run_id: str) -> Run:
        """A run; raises NotReadable."""

    def models(self, run: Run) -> list[LoggedModel]:
        """The LoggedModels that a run made."""

    def files(self, run_id: str, folder: str) -> dict[str, int]:
        """Path -> bytes of the files in a folder of a run's artifacts; {} without the folder."""

    def artifact(self, run_id: str, path: str) -> bytes:
        """The content of a file of the run's artifacts."""


class ByClient:
    """A server, or a store, as MLflow's public client sees it with this process's credentials."""

    user = ""

    def __init__(self, tracking_uri: str) -> None:
        self._uri = tracking_uri
        self._client = MlflowClient(tracking_uri)

    def experiments(self) -> list[Experiment]:
        """See `Source`."""
        return sorted(all_experiments(self._client), key=last_changed, reverse=True)

    def runs(self, experiment_id: str, where: str = "") -> list[Run]:
        """See `Source`."""
        return every(
            lambda token: self._client.search_runs(
                [experiment_id], where, max_results=RUNS_A_PAGE, page_token=token
            )
        )

    def run(self, run_id: str) -> Run:
        """See `Source`."""
        return _readable(run_id, lambda: self._client.get_run(run_id))

    def models(self, run: Run) -> list[LoggedModel]:
        """See `Source`."""
        return made_by(self._client, run)

    def files(self, run_id: str, folder: str) -> dict[str, int]:
        """See `Source`."""
        found = self._client.list_artifacts(run_id, folder)
        return {file.path: int(file.file_size or 0) for file in found if not file.is_dir}

    def artifact(self, run_id: str, path: str) -> bytes:
        """See `Source`."""
        from mlflow.artifacts import download_artifacts

        with tempfile.TemporaryDirectory() as scratch:
            file = download_artifacts(
                run_id=run_id, artifact_path=path, dst_path=scratch, tracking_uri=self._uri
            )
            return Path(file).read_bytes()


def comparisons_of(source: Source, runs: Sequence[Run]) -> list[Run]:
    """The finished comparisons that measured any of these runs, the newest first."""
    ids = {run.info.run_id for run in runs}
    experiments = sorted({str(run.info.experiment_id) for run in runs})
    found = [one for each in experiments for one in source.runs(each, COMPARISONS_WHERE)]
    return [one for one in found if compared_by(one) & ids and one.info.run_id not in ids]


def last_changed(experiment: Experiment) -> int:
    """When somebody last changed an experiment, in milliseconds; 0 where that is not known."""
    return int(experiment.last_update_time or experiment.creation_time or 0)


def not_readable(run_id: str) -> NotReadable:
    """What to say of a run that is not there, or that the user may not read."""
    return NotReadable(
        f"run {run_id}: there is no such run, or you may not read it; choose runs on the start page"
    )


def _readable(run_id: str, get: Callable[[], Run]) -> Run:
    try:
        return get()
    except MlflowException as error:
        if error.get_http_status_code() in (403, 404) or "403" in str(error):
            raise not_readable(run_id) from error
        raise


def paged(page: Callable[[str | None], tuple[Sequence[T], str | None]]) -> list[T]:
    """The results of all pages; `page` takes a token, and gives results and the next token."""

    def as_mlflow(token: str | None) -> PagedList[T]:
        results, following = page(token)
        return PagedList(list(results), following or None)

    return every(as_mlflow)
