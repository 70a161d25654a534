// A view page: asks for its figures, and keeps the address up to date.
"use strict";

(() => {
  const { drawing, element, get, say, set, wanted, whole } = scalpel;
  const { page, stock } = document.body.dataset;
  const status = document.getElementById("status");
  const bar = document.getElementById("controls");
  const details = [...document.querySelectorAll("[data-detail]")].map((one) => one.dataset.detail);
  // Of each figure, and of each of the details, the newest request wins.
  const newest = new Map();
  const requests = new Set(); // those under way
  const waiting = new Set(); // stems of figures that are not drawn as the page's settings have them
  const failed = new Map(); // stem -> why there is no such figure; the next request tries it again
  let last = null; // the newest request of all
  let leaving = false;
  let slider = null;
  let controls = [];

  // --- asking -----------------------------------------------------------------------------------

  async function load(stems) {
    const mine = { stems: new Set([...stems, ...failed.keys()]), stop: new AbortController() };
    for (const stem of mine.stems) {
      newest.set(stem, mine);
      waiting.add(stem);
      failed.delete(stem);
      drawing.expect(stem);
    }
    for (const other of requests) {
      if (![...other.stems].some((stem) => newest.get(stem) === other)) other.stop.abort();
    }
    last = mine;
    requests.add(mine);
    tell();
    const all = mine.stems.size === drawing.figures.size;
    const part = all ? {} : { figures: [...mine.stems].join(",") };
    try {
      const query = { ...Object.fromEntries(wanted), ...part, page };
      const response = await get("figures", query, mine.stop.signal);
      for await (const text of lines(response)) take(JSON.parse(text), mine);
      if (mine.stems.size) throw new Error("The server's answer broke off.");
    } catch (error) {
      fail(mine, error);
    }
    requests.delete(mine);
  }

  async function* lines(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      const parts = (rest + (value || "")).split("\n");
      rest = parts.pop();
      yield* parts;
      if (done) break;
    }
    if (rest) throw new Error("The server's answer broke off.");
  }

  function take(line, mine) {
    if (line.controls && mine === last) showControls((controls = line.controls));
    if (line.about) showAbout(line.about);
    if (!line.stem) return;
    mine.stems.delete(line.stem);
    if (newest.get(line.stem) === mine) drawing.show(line.stem, line);
  }

  // What was to come of a request, and is not asked for anew, will not come.
  function fail(mine, error) {
    if (leaving) return;
    for (const stem of mine.stems) {
      if (newest.get(stem) !== mine) continue;
      failed.set(stem, error.message);
      drawing.show(stem, { empty: "Not drawn: its numbers did not come." });
    }
    tell();
  }

  drawing.told.drawn = (stem, problem) => {
    if (!last) return; // nothing was asked for
    waiting.delete(stem);
    if (problem) failed.set(stem, problem);
    tell();
  };

  // What the page waits for, or what went wrong. Once it has been drawn, this stands over the page
  // and not in it: nothing moves, and it is seen wherever the reader is.
  function tell() {
    const [problem] = failed.values();
    if (problem) {
      if (status.classList.contains("bad")) return; // what went wrong first
      say(problem, true);
      const again = element("button", { type: "button" }, "Try again");
      again.addEventListener("click", () => load([]));
      status.append(" ", again);
    } else if (!waiting.size) {
      performance.mark("all drawn"); // read by the browser's tools, and by benchmarks/pages.py
      say("");
      status.classList.add("over");
    } else if (status.hidden || status.classList.contains("bad")) {
      say("Waiting for the figures.");
    }
  }

  // A page that is left stops asking. Where the browser shows it again as it was, it goes on.
  addEventListener("pagehide", () => {
    leaving = true;
    for (const request of requests) request.stop.abort();
  });
  addEventListener("pageshow", (event) => {
    leaving = false;
    if (event.persisted && waiting.size) begin([...waiting]);
  });

  // --- showing ----------------------------------------------------------------------------------

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
        ? element("a", { href: scalpel.stock(`/experiments/${run.experiment}/runs/${run.id}`), dir: "auto" }, run.name)
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

  drawing.told.clicked = (point) => {
    if (point.data.type === "heatmap") choose(point);
    else if (details.includes("problems") && point.data.meta?.benchmark) {
      const { run, benchmark, steps, series } = point.data.meta;
      const chosen = { run, benchmark, step: steps[point.pointNumber], status: series };
      for (const [name, value] of Object.entries(chosen)) set(`problems.${name}`, String(value));
      more("problems");
      document.getElementById("problems").scrollIntoView();
    }
  };

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
    // Once it has its height: else only the first of it would be in view.
    load(controls.find((one) => one.name === "layer").figures).then(() => {
      document.getElementById("cell")?.scrollIntoView({ block: "nearest" });
    });
  }

  // --- checkpoints ------------------------------------------------------------------------------

  drawing.told.moments = () => {
    const labels = drawing.moments();
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
      tellMoment(labels[slider.value]);
    }
    bar.hidden = bar.children.length === 0;
  };

  function tellMoment(label) {
    const said = /^[0-9.]+$/.test(label) ? `step ${label}` : label;
    slider.nextElementSibling.textContent = said;
    slider.setAttribute("aria-valuetext", said);
  }

  function slide() {
    const label = drawing.moments()[slider.value];
    tellMoment(label);
    set("at", Number(slider.value) === Number(slider.max) ? "" : label);
    drawing.slide();
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
      if (answer.empty) found.replaceChildren(element("p", { class: "card missing" }, ...whole(answer.empty)));
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

  function begin(stems) {
    load(stems).then(() => details.forEach(more));
    drawing.ready().catch(() => {}); // whoever draws says so
  }

  if (!scalpel.runs().length) {
    say("No run is chosen: ");
    status.append(element("a", { href: `./${location.search}` }, "choose some on the start page"), ".");
    for (const part of document.querySelectorAll("main section, .contents")) part.hidden = true;
  } else begin(drawing.figures.keys());
})();
