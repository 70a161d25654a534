"""Scripts for pages and reports: Plotly, and the sliders of figures by keyboard.

Plotly is its build for cartesian figures, which the views are. The one that comes with the Python
package draws maps and globes too, is three times as large, and takes a browser twice as long to
read: most of what a page takes. It is the file of npm's `plotly.js-cartesian-dist-min`, unchanged,
of the version that the Python package has (a test compares them); to renew it: `npm pack
plotly.js-cartesian-dist-min@VERSION`.
"""

from __future__ import annotations

import functools
import importlib.resources

FILE = "plotly-cartesian.min.js"


#: Plotly's slider takes no focus. This makes a figure with one focusable (by Tab): the arrow keys
#: go to the checkpoint before and after, Home and End to the first and the last. A page that adds
#: figures later calls `scalpelKeys()` again.
SLIDER_KEYS = """
function scalpelKeys() {
  for (const figure of document.querySelectorAll(".js-plotly-plot")) {
    const sliders = figure.layout && figure.layout.sliders;
    if (!sliders || !sliders.length || figure.tabIndex === 0) continue;
    figure.tabIndex = 0;
    figure.setAttribute("role", "group");
    figure.setAttribute("aria-label", "Figure with a slider: arrow keys change the checkpoint");
    figure.addEventListener("keydown", (event) => {
      const slider = figure.layout.sliders[0];
      const last = slider.steps.length - 1;
      const now = slider.active || 0;
      const by = { ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1,
        Home: 0, End: last }[event.key];
      if (by === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      const next = Math.min(last, Math.max(0, by));
      if (next === now) return;
      const [data, layout] = slider.steps[next].args;
      Plotly.update(figure, data, { ...layout, "sliders[0].active": next });
    });
  }
}
window.addEventListener("load", scalpelKeys);
"""


@functools.cache
def plotly_js() -> str:
    """Plotly, which loads nothing else."""
    static = importlib.resources.files("mlflow_scalpel.views") / "static"
    return (static / FILE).read_text("utf-8")
