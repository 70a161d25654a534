"""Comparison: models and their base go through the metrics, one tidy table comes out.

From the question to the table: `compare` takes names of models, `engine` runs each group of metrics
(`weights/` on files, `forward/` on texts), `table` is what comes out. `run_store` keeps tables on
MLflow's runs, `run_queries` says which belong together, `gather` joins those of several runs.
"""
