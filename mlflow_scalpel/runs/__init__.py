"""A stage as an MLflow run: its lifecycle, signals, processes, resume, and nested experiments."""
