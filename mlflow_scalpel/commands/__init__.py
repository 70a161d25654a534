"""The subcommands of `mlflow-scalpel`, a file each: `add` declares arguments, `run` does the work.

Nothing heavy is imported before `run`, so that `--help` answers at once.
"""
