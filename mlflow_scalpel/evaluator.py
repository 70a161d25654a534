"""MLflow's evaluator plugin `scalpel`: a checkpoint against its base by `mlflow.models.evaluate`.

mlflow.models.evaluate(
    data=texts,  # a DataFrame with the columns problem and solution
    model_type="scalpel",
    evaluators="scalpel",
    evaluator_config={"base": "models:/tiny-base/1", "candidate": "models:/tiny-sft/20"},
)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlflow.models.evaluation.base import EvaluationResult, ModelEvaluator

from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.extras import require_extra

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
        problem and solution, and where the extra `measure` is not installed.
        """
        require_extra("measure", "the evaluator scalpel")
        from mlflow_scalpel.comparison.compare import probe_of
        from mlflow_scalpel.comparison.engine import Comparison
        from mlflow_scalpel.comparison.measured_models import model_from
        from mlflow_scalpel.comparison.run_store import log_summary, log_table, summarise

        _check(evaluator_config)
        texts = dataset.features_data
        missing = {"problem", "solution"} - set(texts.columns)
        if missing:
            raise ScalpelError(
                f"data has no column {sorted(missing)[0]!r}; KL is measured on the columns "
                "problem and solution"
            )
        base = model_from(evaluator_config["base"])
        candidate = replace(model_from(evaluator_config["candidate"], base=base), run_id=run_id)
        pairs = list(zip(_texts(texts, "problem"), _texts(texts, "solution"), strict=True))
        prompt = evaluator_config.get("system_prompt")
        probe = probe_of("data", pairs, base, [candidate], system_prompt=prompt)
        table = Comparison(base, [probe]).measure(candidate)
        log_table(table, run_id)
        log_summary(table, run_id)
        return EvaluationResult(metrics=summarise(table), artifacts={})


def _texts(frame: Any, column: str) -> list[str]:
    """The texts of a column; raises ScalpelError for a list of messages and all else."""
    from mlflow_scalpel.data.values import NotText, as_text

    found = []
    for number, value in enumerate(frame[column].tolist()):
        try:
            text = as_text(value, column)
        except NotText as error:
            raise ScalpelError(f"data: row {number}: the column {column} {error}") from error
        if text is None:
            raise ScalpelError(f"data: row {number}: there is no {column}; leave such rows out")
        found.append(text)
    return found


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
