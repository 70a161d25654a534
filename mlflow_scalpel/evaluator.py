"""MLflow's evaluator plugin `scalpel`: a checkpoint against its base by `mlflow.models.evaluate`.

mlflow.models.evaluate(
    data=texts,  # a DataFrame with the columns problem and solution
    model_type="scalpel",
    evaluators="scalpel",
    evaluator_config={"base": "models:/tiny-base/1", "candidate": "models:/tiny-sft/20"},
)
"""

from __future__ import annotations

import time
from typing import Any

from mlflow.models.evaluation.base import EvaluationResult, ModelEvaluator

from mlflow_scalpel.errors import ScalpelError

MODEL_TYPE = "scalpel"
_SETTINGS = {"base", "candidate", "system_prompt"}


class ScalpelEvaluator(ModelEvaluator):
    """Measures the weights of `candidate` against `base`, and KL(base || candidate) on the data."""

    @classmethod
    def can_evaluate(cls, *, model_type: str, evaluator_config: Any, **kwargs: Any) -> bool:
        """Only its own model type: MLflow asks every evaluator where the user names none."""
        return model_type == MODEL_TYPE

    def evaluate(
        self,
        *,
        model_type: str,
        dataset: Any,
        run_id: str,
        evaluator_config: dict[str, Any],
        **kwargs: Any,
    ) -> EvaluationResult:
        """Log the tidy table on the run, and its summary at the candidate's step on its model.

        `evaluator_config` holds `base` and `candidate` (directory, hub name or models:/ URI), and
        may hold `system_prompt`. Raises ScalpelError for other keys, or data without the columns
        problem and solution.
        """
        from mlflow import MlflowClient
        from mlflow.entities import Metric
        from transformers import AutoTokenizer

        from mlflow_scalpel.comparison import Comparison, build_probe
        from mlflow_scalpel.comparison.store import log_table
        from mlflow_scalpel.training.summary import summarise

        _check(evaluator_config)
        texts = dataset.features_data
        missing = {"problem", "solution"} - set(texts.columns)
        if missing:
            raise ScalpelError(
                f"data has no column {sorted(missing)[0]!r}; KL is measured on the columns "
                "problem and solution"
            )
        base = _subject(evaluator_config["base"])
        candidate = _subject(evaluator_config["candidate"], run_id)
        probe = build_probe(
            "data",
            list(zip(texts["problem"], texts["solution"], strict=True)),
            AutoTokenizer.from_pretrained(base.directory),
            system_prompt=evaluator_config.get("system_prompt"),
        )
        table = Comparison(base, [probe]).measure(candidate)
        log_table(table, run_id)
        summary = summarise(table)
        now = int(time.time() * 1000)
        linked = candidate.model_id if candidate.model_id.startswith("m-") else None
        MlflowClient().log_batch(
            run_id,
            metrics=[
                Metric(key, value, now, candidate.step, model_id=linked, run_id=run_id)
                for key, value in summary.items()
            ],
        )
        return EvaluationResult(metrics=summary, artifacts={})


def _check(settings: dict[str, Any]) -> None:
    for name in ("base", "candidate"):
        if name not in settings:
            raise ScalpelError(f"evaluator_config has no {name!r}; give a directory or a model URI")
    unknown = sorted(set(settings) - _SETTINGS)
    if unknown:
        raise ScalpelError(
            f"evaluator_config has {unknown[0]!r}, which is unknown; it takes "
            f"{', '.join(sorted(_SETTINGS))}"
        )


def _subject(source: str, run_id: str | None = None) -> Any:
    from mlflow import MlflowClient

    from mlflow_scalpel.checkpoints import model_id_of, resolve
    from mlflow_scalpel.checkpoints.manifest import content_digest
    from mlflow_scalpel.comparison import Subject

    directory, model_id = resolve(source), model_id_of(source)
    params = MlflowClient().get_logged_model(model_id).params if model_id else {}
    rates = params.get("learning_rate_sum")
    return Subject(
        directory,
        model_id or source,
        params.get("digest") or content_digest(directory),
        int(params.get("step", "0")),
        run_id,
        params.get("algorithm"),
        float(rates) if rates else None,
    )
