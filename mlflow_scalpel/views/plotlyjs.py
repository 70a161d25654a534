"""Plotly's script for pages and reports: its build for cartesian figures, which the views are.

The build that comes with the Python package draws maps and globes too, is three times as large,
and takes a browser twice as long to read: most of what a page takes. It is the file of npm's
`plotly.js-cartesian-dist-min`, unchanged, of the version that the Python package has (a test
compares them); to renew it: `npm pack plotly.js-cartesian-dist-min@VERSION`.
"""

from __future__ import annotations

import functools
import importlib.resources

FILE = "plotly-cartesian.min.js"


@functools.cache
def plotly_js() -> str:
    """The script, which loads nothing else."""
    static = importlib.resources.files("mlflow_scalpel.views") / "static"
    return (static / FILE).read_text("utf-8")
