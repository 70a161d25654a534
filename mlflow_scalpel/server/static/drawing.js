// Draws a page's figures: one at a time, those in view first, and of each what came last.
"use strict";

scalpel.drawing = (() => {
  const { element, wanted, whole } = scalpel;
  const config = { responsive: true, displaylogo: false, showSendToCloud: false };
  // awaited: whether the server's answer is not there yet; line: what of it is to be drawn;
  // plotted: whether Plotly draws there; steps: of its slider, each a label and what Plotly.update is
  // to change; at: the label of the one drawn
  const figures = new Map(
    [...document.querySelectorAll("[data-figure]")].map((place) => {
      const stem = place.dataset.figure;
      return [stem, { stem, place, awaited: false, line: null, plotted: false, steps: null, at: null }];
    }),
  );
  const todo = new Set();
  const told = { drawn() {}, clicked() {}, moments() {} }; // what the page wants to be told
  let working = false;
  let plotly = null;

  // Plotly is nearly all that a page loads. It is asked for after the page's data, which the server
  // finds while the browser reads it.
  function ready() {
    plotly ??= new Promise((done, failed) => {
      const script = element("script", { src: document.body.dataset.plotly });
      script.addEventListener("load", done);
      script.addEventListener("error", () => {
        plotly = null; // the next figure tries again
        failed(new Error("the server did not send plotly.js"));
      });
      document.head.append(script);
    });
    return plotly;
  }

  // A line of the server's answer, in place of whatever that figure shows or was to show.
  function show(stem, line) {
    const one = figures.get(stem);
    one.awaited = false;
    one.line = line;
    one.place.hidden = Boolean(line.told_at);
    // Room is kept before anything is drawn, so that what is in view stays there.
    if (line.figure) one.place.style.minHeight = `${line.figure.layout.height}px`;
    bring(one);
  }

  // Another answer is asked for: what was not drawn yet of the last one never will be.
  function expect(stem) {
    const one = figures.get(stem);
    one.awaited = true;
    one.line = null;
    one.place.classList.add("stale");
  }

  function slide() {
    for (const one of figures.values()) if (one.steps) bring(one);
  }

  // --- one at a time ----------------------------------------------------------------------------

  async function bring(one) {
    todo.add(one);
    if (working) return;
    working = true;
    while (todo.size) {
      if (![...todo].some(urgent)) await idle();
      const next = [...todo].find(urgent) || [...todo][0];
      todo.delete(next);
      await work(next);
    }
    working = false;
  }

  function urgent({ place, line }) {
    if (line && !line.figure) return true; // text is there at once
    const box = place.getBoundingClientRect();
    return box.top < innerHeight && box.bottom > 0;
  }

  function idle() {
    return new Promise((done) => requestIdleCallback(done, { timeout: 100 }));
  }

  // What came while Plotly was at work is drawn before the next figure.
  async function work(one) {
    try {
      for (;;) {
        const line = one.line;
        const step = line ? null : momentOf(one);
        if (line) {
          one.line = null;
          await put(one, line);
        } else if (step && step.label !== one.at) {
          one.at = step.label;
          await Plotly.update(one.place, ...step.args);
        } else break;
      }
      if (!one.awaited) told.drawn(one.stem);
    } catch (error) {
      console.error(error);
      if (one.awaited || one.line) return;
      const said = `This figure could not be drawn: ${error.message}.`;
      note(one, said, true);
      told.drawn(one.stem, said);
    }
  }

  async function put(one, line) {
    if (line.figure) return draw(one, line);
    if (line.html === undefined) {
      if (line.told_at) return note(one, ""); // words in another figure's place speak for it too
      return note(one, line.empty || `This figure could not be drawn: ${line.error}`, !line.empty);
    }
    // HTML that the server made of escaped text; the page's policy lets no script in it run.
    one.place.innerHTML = line.html;
    drawn(one);
  }

  async function draw(one, { figure, steps }) {
    await ready();
    if (one.awaited || one.line) return; // overtaken
    const { place } = one;
    if (!one.plotted) place.replaceChildren();
    await Plotly.react(place, { ...figure, config });
    if (!one.plotted) place.on("plotly_click", ({ points }) => told.clicked(points[0]));
    one.plotted = true;
    one.steps = steps || null;
    one.at = steps ? steps.at(-1).label : null;
    told.moments();
    drawn(one);
  }

  function drawn({ place, awaited }) {
    if (!awaited) place.classList.remove("stale");
    place.dataset.drawn = "yes";
    performance.mark(`drawn: ${place.dataset.figure}`);
  }

  function note(one, text, bad = false) {
    const { place } = one;
    if (one.plotted) Plotly.purge(place);
    one.plotted = false;
    one.steps = null;
    place.classList.remove("stale", "js-plotly-plot");
    place.style.minHeight = "";
    delete place.dataset.drawn;
    place.replaceChildren(element("p", { class: `card missing${bad ? " bad" : ""}` }, ...whole(text)));
    told.moments();
  }

  // --- checkpoints ------------------------------------------------------------------------------

  // The labels of the longest of the figures' sliders, which all go over the same training.
  function moments() {
    const all = [...figures.values()].map(({ steps }) => (steps || []).map((step) => step.label));
    return all.sort((a, b) => b.length - a.length)[0] || [];
  }

  // The step that shows the moment of the address: the last one unless it names another.
  function momentOf({ steps }) {
    if (!steps) return null;
    const labels = moments();
    const at = labels.indexOf(wanted.get("at"));
    const named = steps.find((step) => step.label === wanted.get("at"));
    if (named || at < 0) return named || steps.at(-1);
    return steps[Math.round((at / (labels.length - 1)) * (steps.length - 1))];
  }

  return { figures, told, ready, show, expect, slide, moments };
})();
