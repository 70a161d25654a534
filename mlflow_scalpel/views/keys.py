"""The sliders of figures by keyboard. A string, to be put into any page that shows figures."""

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
