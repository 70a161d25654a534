"""What a figure draws, found in it."""

from __future__ import annotations

import json

import plotly.graph_objects as go


def trace(figure: go.Figure, panel: str, series: str):
    """The one trace of a series in a panel."""
    found = [t for t in figure.data if t.meta == {"panel": panel, "series": series}]
    assert len(found) == 1, [t.meta for t in figure.data]
    return found[0]


def words_of(figure: go.Figure) -> str:
    """All that a figure shows, as text; not the plain names that go into its numbers."""
    content = json.loads(figure.to_json())
    traces = [{k: v for k, v in one.items() if k != "meta"} for one in content["data"]]
    return json.dumps([traces, content["layout"]], ensure_ascii=False)
