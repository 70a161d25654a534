// The start page: an experiment's runs, of which some are chosen.
"use strict";

(() => {
  const { element, get, say, set, wanted } = scalpel;
  const experiment = document.getElementById("experiment");
  const base = document.getElementById("base");
  const filter = document.getElementById("filter");
  const table = document.getElementById("runs");
  const body = table.tBodies[0];
  let rows = []; // of the experiment
  const chosen = new Set(scalpel.runs());

  function showCount() {
    document.getElementById("chosen").hidden = chosen.size === 0;
    const most = Number(document.getElementById("choice").dataset.most);
    const count = document.getElementById("count");
    const many = `${chosen.size} run${chosen.size === 1 ? "" : "s"} chosen`;
    count.textContent = chosen.size > most ? `${many}; a page shows at most ${most}:` : `${many}:`;
    count.classList.toggle("bad", chosen.size > most);
  }

  function choose(run, yes) {
    if (yes) chosen.add(run);
    else chosen.delete(run);
    set("runs", [...chosen].join(","));
    showCount();
  }

  function steps(run) {
    if (!run.checkpoints.length) return run.imported ? "published numbers" : "none";
    const list = element("details");
    const many = `${run.checkpoints.length}: steps ${run.checkpoints[0]} to ${run.checkpoints.at(-1)}`;
    list.append(element("summary", {}, many));
    list.addEventListener("toggle", () => list.open && !list.querySelector("ul") && fillSteps(list, run));
    return list;
  }

  async function fillSteps(list, run) {
    const waiting = element("p", { class: "soft" }, "Waiting for the checkpoints.");
    list.replaceChildren(list.querySelector("summary"), waiting);
    try {
      const { checkpoints } = await (await get("checkpoints", { run: run.id })).json();
      const items = checkpoints.map((one) => {
        const where = { runs: run.id, by: "step", at: one.step, step: one.step };
        if (scalpel.workspace) where.workspace = scalpel.workspace;
        const link = element("a", { href: `weights?${new URLSearchParams(where)}` }, `step ${one.step}`);
        const state = one.state === "READY" ? "" : ` ${one.state}${one.reason ? `: ${one.reason}` : ""}`;
        return element("li", {}, link, state);
      });
      waiting.replaceWith(element("ul", {}, ...items));
    } catch (error) {
      waiting.textContent = error.message;
      waiting.classList.add("bad");
    }
  }

  function rowOf(run) {
    const box = element("input", { type: "checkbox", id: `run-${run.id}`, value: run.id });
    box.checked = chosen.has(run.id);
    box.addEventListener("change", () => choose(run.id, box.checked));
    const started = run.started ? new Date(run.started).toISOString().slice(0, 16).replace("T", " ") : "";
    const cells = [
      box,
      element("label", { for: `run-${run.id}` }, run.name),
      run.algorithm,
      run.learning_rate,
      run.base,
      steps(run),
      run.measured.join(", ") || "nothing yet",
      run.imported ? "imported" : run.status.toLowerCase(),
      element("span", {}, ...scalpel.whole(started)),
    ];
    const row = element("tr", {}, ...cells.map((cell) => element("td", {}, cell)));
    row.dataset.text = `${run.name} ${run.algorithm}`.toLowerCase();
    row.dataset.base = run.base;
    return row;
  }

  function sift() {
    const text = filter.value.toLowerCase();
    for (const row of body.rows) {
      row.hidden =
        !row.dataset.text.includes(text) || (base.value !== "" && row.dataset.base !== base.value);
    }
  }

  function showBases() {
    const names = [...new Set(rows.map((run) => run.base).filter((name) => name))].sort();
    base.replaceChildren(
      element("option", { value: "" }, "any"),
      ...names.map((name) => element("option", { value: name }, name)),
    );
    base.value = names.includes(wanted.get("base")) ? wanted.get("base") : "";
  }

  async function showRuns() {
    const mine = experiment.value;
    const name = experiment.selectedOptions[0]?.textContent || "";
    say(`Waiting for the runs of ${name}.`);
    body.replaceChildren(); // those of another experiment
    table.hidden = true;
    try {
      const answer = await (await get("runs", { experiment: mine })).json();
      if (experiment.value !== mine) return; // another one was chosen meanwhile
      rows = answer.runs;
      showBases();
      body.replaceChildren(...rows.map(rowOf));
      table.hidden = rows.length === 0;
      sift();
      if (!rows.length) {
        say(
          "No run of this experiment has checkpoints or measurements. Train with `mlflow run . -e " +
            "sft` or `-e grpo`, log checkpoints of another trainer with `mlflow-scalpel log DIR`, " +
            "or import published results with `mlflow-scalpel import FILE`.",
        );
      } else {
        say(answer.left_off ? `The newest runs; ${answer.left_off} older ones are not listed.` : "");
        performance.mark("all drawn"); // read by the browser's tools, and by benchmarks/pages.py
      }
    } catch (error) {
      if (experiment.value === mine) say(error.message, true);
    }
    showCount();
  }

  async function begin() {
    try {
      const { experiments } = await (await get("experiments")).json();
      experiment.append(...experiments.map((one) => element("option", { value: one.id }, one.name)));
      if (!experiments.length) return say("There is no experiment that you may read.");
      if (experiments.some((one) => one.id === wanted.get("experiment"))) {
        experiment.value = wanted.get("experiment");
      }
      await showRuns();
    } catch (error) {
      say(error.message, true);
    }
  }

  experiment.addEventListener("change", () => {
    set("experiment", experiment.value);
    set("base", "");
    showRuns();
  });
  base.addEventListener("change", () => {
    set("base", base.value);
    sift();
  });
  filter.addEventListener("input", sift);
  document.getElementById("choice").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("none").addEventListener("click", () => {
    for (const run of [...chosen]) choose(run, false);
    for (const box of body.querySelectorAll("input")) box.checked = false;
  });
  begin();
})();
