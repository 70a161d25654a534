"""Finds the checkpoints of a run."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import LoggedModel

from mlflow_scalpel.errors import ScalpelError


@dataclass(frozen=True)
class Checkpoint:
    """A logged checkpoint of a run."""

    model_id: str
    step: int
    digest: str
    status: str
    learning_rate_sum: float | None
    """Sum of the learning rates of all steps up to this one; None where nobody logged it."""

    @property
    def uri(self) -> str:
        return f"models:/{self.model_id}"


def checkpoints_of_run(run_id: str) -> tuple[Checkpoint | None, list[Checkpoint]]:
    """The base that the run began with (step 0), and its checkpoints in order of step.

    Two requests, however many checkpoints there are. The base is None where the run names none.
    """
    client = MlflowClient()
    run = client.get_run(run_id)
    models = client.search_logged_models(
        [run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'", max_results=1000
    )
    found = sorted(
        (_checkpoint(model) for model in models if model.params.get("step", "0") != "0"),
        key=lambda checkpoint: checkpoint.step,
    )
    if not found:
        raise ScalpelError(
            f"run {run_id} ({run.info.run_name}) has logged no checkpoint; give the ID of a "
            "training run, as the UI's run page shows it"
        )
    inputs = run.inputs.model_inputs if run.inputs else []
    bases = [client.get_logged_model(entry.model_id) for entry in inputs]
    base = next((_checkpoint(model) for model in bases if model.params.get("step") == "0"), None)
    return base, found


def _checkpoint(model: LoggedModel) -> Checkpoint:
    return Checkpoint(
        model_id=model.model_id,
        step=int(model.params.get("step", "0")),
        digest=model.params.get("digest", ""),
        status=str(model.status),
        learning_rate_sum=float(rates)
        if (rates := model.params.get("learning_rate_sum"))
        else None,
    )
