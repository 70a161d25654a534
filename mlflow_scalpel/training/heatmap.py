"""The picture of a checkpoint that MLflow's own charts show."""

from __future__ import annotations

from typing import Any

import pandas as pd


def heatmap_image(table: pd.DataFrame, step: int, maximum: float) -> Any:
    """The layer x matrix heat map of one checkpoint on the scale [0, maximum], as a picture."""
    from mlflow_scalpel.views import weight_heatmap
    from mlflow_scalpel.views.png import to_image

    # Of a size that MLflow shows whole beside other runs' pictures.
    return to_image(weight_heatmap(table, step=step, maximum=maximum), width=760)
