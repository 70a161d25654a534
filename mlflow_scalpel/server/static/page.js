// A view page: asks for its figures, draws each as it comes, and keeps the address up to date.
"use strict";

(() => {
  const { element, get, say, set, wanted } = scalpel;
  const { page, stock } = document.body.dataset;
  const config = { responsive: true, displaylogo: false, showSendToCloud: false };
  const places = new Map(
    [...document.querySelectorAll("[data-figure]")].map((place) => [place.dataset.figure, place]),
  );
  const sliders = new Map(); // stem -> its steps: label, and what Plotly.update is to change
  const busy = new Map(); // stem -> whether Plotly is at work on it once, or has to begin again
  const bar = document.getElementById("controls");
  const details = [...document.querySelectorAll("[data-detail]")].map((one) => one.dataset.detail);
  let asked = 0; // the newest request wins, for each figure and for each of the details
  const newest = new Map();
  let slider = null;
  let controls = [];

  // --- asking -----------------------------------------------------------------------------------

  async function load(stems) {
    const mine = ++asked;
    const done = new Set();
    for (const stem of stems) {
      newest.set(stem, mine);
      places.get(stem).classList.add("stale");
    }
    const query = Object.fromEntries(wanted);
    const part = stems.length < places.size ? { figures: stems.join(",") } : {};
    try {
      const response = await get("figures", { ...query, ...part, page });
      for await (const text of lines(response)) {
        const line = JSON.parse(text);
        await take(line, mine);
        done.add(line.stem);
      }
      say("");
    } catch (error) {
      say(error.message, true);
      for (const stem of stems) {
        if (newest.get(stem) === mine && !done.has(stem)) note(stem, "Not drawn: see above.");
      }
    }
  }

  async function* lines(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      const parts = (rest + (value || "")).split("\n");
      rest = parts.pop();
      yield* parts.filter((part) => part);
      if (done) break;
    }
    if (rest) yield rest;
  }

  async function take(line, mine) {
    if (line.controls && mine === asked) showControls((controls = line.controls));
    if (line.about) showAbout(line.about);
    if (!line.stem || newest.get(line.stem) !== mine) return;
    if (line.figure) await tryToDraw(line);
    else if (line.html !== undefined) showHtml(line.stem, line.html);
    else note(line.stem, line.empty || `This figure could not be drawn: ${line.error}`, !line.empty);
  }

  // --- showing ----------------------------------------------------------------------------------

  function place(stem) {
    const found = places.get(stem);
    found.classList.remove("stale");
    found.querySelector(".waiting")?.remove();
    return found;
  }

  function note(stem, text, bad = false) {
    const found = place(stem);
    if (found.classList.contains("js-plotly-plot")) Plotly.purge(found);
    delete found.dataset.heard;
    sliders.delete(stem);
    found.replaceChildren(element("p", { class: `card missing${bad ? " bad" : ""}` }, text));
    showSlider();
  }

  async function tryToDraw({ stem, figure, steps }) {
    try {
      await draw(stem, figure, steps);
    } catch (error) {
      console.error(error);
      note(stem, `This figure could not be drawn: ${error.message}`, true);
    }
  }

  async function draw(stem, figure, steps) {
    const found = place(stem);
    if (!found.classList.contains("js-plotly-plot")) found.replaceChildren();
    await Plotly.react(found, { ...figure, config });
    delete found.dataset.at;
    if (steps) sliders.set(stem, steps);
    else sliders.delete(stem);
    if (!found.dataset.heard) {
      found.dataset.heard = "yes";
      found.on("plotly_click", ({ points }) => clicked(points[0]));
    }
    showSlider();
    if (steps) await showMoment(stem);
    found.dataset.drawn = "yes";
  }

  // HTML that the server made of escaped text; the page's policy lets no script in it run.
  function showHtml(stem, html) {
    const found = place(stem);
    found.innerHTML = html;
    found.dataset.drawn = "yes";
  }

  function showAbout(about) {
    const parts = [
      element("p", {}, `${about.runs.length === 1 ? "Run" : "Runs"}: `, ...named(about.runs)),
      ...about.notes.map((text) => element("p", { class: "card missing" }, text)),
      ...gaps(about.gaps),
    ];
    document.getElementById("about").replaceChildren(...parts);
    document.title = `${about.runs.map((run) => run.name).join(", ").slice(0, 80)}: ${document.querySelector("h1").textContent}`;
  }

  function gaps(metrics) {
    if (!metrics.length) return [];
    const many = metrics.length === 1 ? "1 metric has" : `${metrics.length} metrics have`;
    const items = metrics.map((text) => element("li", {}, text));
    const summary = element("summary", {}, `${many} values missing`);
    return [element("details", { class: "gaps soft" }, summary, element("ul", {}, ...items))];
  }

  function named(runs) {
    return runs.flatMap((run, i) => [
      i ? ", " : "",
      stock
        ? element("a", { href: `${stock}#/experiments/${run.experiment}/runs/${run.id}`, dir: "auto" }, run.name)
        : element("bdi", {}, run.name),
    ]);
  }

  // --- settings ---------------------------------------------------------------------------------

  function showControls(controls) {
    const had = document.activeElement?.id;
    const range = bar.querySelector(".slider");
    bar.replaceChildren(...controls.map(controlOf), ...(range ? [range] : []));
    bar.hidden = bar.children.length === 0;
    if (had) document.getElementById(had)?.focus();
  }

  function controlOf(control) {
    const id = `set-${control.name}`;
    let field;
    if (control.yes) {
      field = element("input", { type: "checkbox", id });
      field.checked = control.value === "true";
    } else {
      const options = control.choices.map(([value, label]) => element("option", { value }, label));
      field = element("select", { id }, ...options);
      field.value = control.value;
    }
    field.addEventListener("change", () => {
      const value = control.yes ? String(field.checked) : field.value;
      // The default too: figures differ in what they show where nothing is set.
      set(control.name, value);
      load(control.figures);
    });
    return labelled(control.label, field);
  }

  function labelled(label, field) {
    return element("span", { class: "field" }, element("label", { for: field.id }, label), field);
  }

  function clicked(point) {
    if (point.data.type === "heatmap") choose(point);
    else if (details.includes("problems") && point.data.meta?.benchmark) {
      const { run, benchmark, steps, series } = point.data.meta;
      const chosen = { run, benchmark, step: steps[point.pointNumber], status: series };
      for (const [name, value] of Object.entries(chosen)) set(`problems.${name}`, String(value));
      more("problems");
      document.getElementById("problems").scrollIntoView();
    }
  }

  // A cell of a map of layers and matrices chooses both, and shows what is drawn of one matrix.
  function choose(point) {
    const chosen = { layer: String(point.y), matrix: String(point.x) };
    const fields = Object.keys(chosen).map((name) => document.getElementById(`set-${name}`));
    const has = (field, value) => field && [...field.options].some((one) => one.value === value);
    if (!has(fields[0], chosen.layer) || !has(fields[1], chosen.matrix)) return;
    Object.entries(chosen).forEach(([name, value], i) => {
      fields[i].value = value;
      set(name, value);
    });
    load(controls.find((one) => one.name === "layer").figures);
    document.getElementById("cell")?.scrollIntoView({ block: "nearest" });
  }

  // --- checkpoints ------------------------------------------------------------------------------

  // The labels of the longest of the figures' sliders, which all go over the same training.
  function moments() {
    const all = [...sliders.values()].map((steps) => steps.map((step) => step.label));
    return all.sort((a, b) => b.length - a.length)[0] || [];
  }

  function showSlider() {
    const labels = moments();
    const there = bar.querySelector(".slider");
    if (labels.length < 2) {
      there?.remove();
      slider = null;
    } else if (!there) {
      slider = element("input", { type: "range", id: "set-at", min: 0, step: 1 });
      const output = element("output", { for: "set-at" });
      const label = element("label", { for: "set-at" }, "checkpoint");
      bar.append(element("span", { class: "field slider" }, label, slider, output));
      slider.addEventListener("input", slide);
    }
    if (slider) {
      slider.max = labels.length - 1;
      const at = labels.indexOf(wanted.get("at"));
      slider.value = at < 0 ? labels.length - 1 : at;
      tell(labels[slider.value]);
    }
    bar.hidden = bar.children.length === 0;
  }

  function tell(label) {
    const said = /^[0-9.]+$/.test(label) ? `step ${label}` : label;
    slider.nextElementSibling.textContent = said;
    slider.setAttribute("aria-valuetext", said);
  }

  function slide() {
    const label = moments()[slider.value];
    tell(label);
    set("at", Number(slider.value) === Number(slider.max) ? "" : label);
    for (const stem of sliders.keys()) showMoment(stem);
  }

  // Shows the moment of the address. While Plotly is busy with one, only the newest one waits.
  async function showMoment(stem) {
    if (busy.has(stem)) return busy.set(stem, "again");
    const found = places.get(stem);
    try {
      do {
        busy.set(stem, "once");
        const steps = sliders.get(stem);
        if (!steps) break; // it has no slider any more
        const labels = moments();
        const at = labels.indexOf(wanted.get("at"));
        let i = steps.findIndex((step) => step.label === wanted.get("at"));
        if (i < 0) i = at < 0 ? steps.length - 1 : Math.round((at / (labels.length - 1)) * (steps.length - 1));
        if (found.dataset.at !== steps[i].label) {
          found.dataset.at = steps[i].label;
          await Plotly.update(found, ...steps[i].args);
        }
      } while (busy.get(stem) === "again");
    } finally {
      busy.delete(stem);
    }
  }

  // --- what is read beside the table ------------------------------------------------------------

  // Its fields stand in the address as KIND.FIELD.
  async function more(kind) {
    const form = document.querySelector(`[data-fields="${kind}"]`);
    const found = document.querySelector(`[data-detail="${kind}"]`);
    const query = { kind, runs: wanted.get("runs") };
    const mine = (newest.get(kind) || 0) + 1;
    newest.set(kind, mine);
    for (const [name, value] of wanted) {
      if (name.startsWith(`${kind}.`)) query[name.slice(kind.length + 1)] = value;
    }
    found.classList.add("stale");
    try {
      const answer = await (await get("more", query)).json();
      if (newest.get(kind) !== mine) return;
      const had = document.activeElement?.id;
      form.replaceChildren(...(answer.fields || []).map((field) => fieldOf(kind, field)));
      if (had) document.getElementById(had)?.focus();
      if (answer.empty) found.replaceChildren(element("p", { class: "card missing" }, answer.empty));
      else found.innerHTML = answer.html; // made of escaped text, as in showHtml
    } catch (error) {
      if (newest.get(kind) !== mine) return;
      found.replaceChildren(element("p", { class: "card missing bad" }, error.message));
    }
    found.classList.remove("stale");
  }

  function fieldOf(kind, field) {
    const id = `${kind}-${field.name}`;
    const options = field.choices.map(([value, label]) => element("option", { value }, label));
    const select = element("select", { id }, ...options);
    select.value = field.value;
    select.addEventListener("change", () => {
      set(`${kind}.${field.name}`, select.value);
      more(kind);
    });
    return labelled(field.label, select);
  }

  // --- beginning --------------------------------------------------------------------------------

  if (!scalpel.runs().length) {
    say("No run is chosen: choose some on the start page.");
    for (const stem of places.keys()) note(stem, "Waits for runs to be chosen.");
  } else {
    load([...places.keys()]).then(() => details.forEach(more));
  }
})();
