"""Checkpoints: a training step as an MLflow LoggedModel and a registered version."""
