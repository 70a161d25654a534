"""Evaluation: a suite of lm-eval tasks over one model, or over several sets of weights."""

from mlflow_scalpel.evaluation.suite import Suite, load_suite

__all__ = ["Suite", "load_suite"]
