"""Evaluation: a suite of lm-eval tasks over one model, or over a base and checkpoints of a run."""
