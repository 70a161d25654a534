"""The way in: a checkpoint's files into a spool, and from there to MLflow, in the background."""
