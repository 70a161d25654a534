"""What the first page would wait for, done before anybody asks.

Importing pandas, pyarrow and plotly, and plotly's own classes one by one as they are first used,
takes a second, which the first reader of each worker would spend before an empty page.
"""

from __future__ import annotations

import threading


def warm_in_background() -> threading.Thread:
    """Warm this process in a thread, while it answers requests already."""
    thread = threading.Thread(target=warm, name="scalpel-warm", daemon=True)
    thread.start()
    return thread


def warm() -> None:
    """Read and draw a table of one row, as a request for a page does."""
    import io

    from plotly.io.json import to_json_plotly

    from mlflow_scalpel.comparison.table import read_table, tidy
    from mlflow_scalpel.server import routes
    from mlflow_scalpel.views import pages
    from mlflow_scalpel.views.divergence.kl import kl_over_training

    for page in pages.PAGES:
        routes.shell(page.name, stock="", workspaces=False)
    row = {"run_id": "warm", "step": 1, "metric": "kl/all_tokens", "value": 1.0, "texts": "warm"}
    stored = io.BytesIO()
    tidy([row]).to_parquet(stored)
    stored.seek(0)
    to_json_plotly(kl_over_training(read_table(stored)))
