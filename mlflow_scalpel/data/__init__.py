"""Problems: from a hub dataset, a local file or a generator, always as the same rows."""

from mlflow_scalpel.data.sources import load_rows

__all__ = ["load_rows"]
