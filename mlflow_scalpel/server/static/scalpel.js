// What the start page and the view pages share: the address, requests, and building of elements.
// Other people's text goes into text nodes only.
"use strict";

const scalpel = {
  // The address holds everything that is chosen.
  wanted: new URLSearchParams(location.search),

  set(name, value) {
    if (value) scalpel.wanted.set(name, value);
    else scalpel.wanted.delete(name);
    const query = scalpel.wanted.toString().replaceAll("%2C", ",").replaceAll("%2F", "/");
    history.replaceState(null, "", query ? `?${query}` : location.pathname);
    scalpel.keep();
  },

  runs() {
    return (scalpel.wanted.get("runs") || "").split(",").filter((run) => run);
  },

  // Of a server with MLflow's workspaces: the one that the address names, or that MLflow's own UI,
  // which keeps it there, was in last. The address then names it: a link means the same to others.
  workspace: "",
  enter() {
    if (!document.body.dataset.workspaces) return;
    scalpel.workspace =
      scalpel.wanted.get("workspace") || localStorage.getItem("mlflow.activeWorkspace") || "";
    if (!scalpel.workspace) return;
    scalpel.set("workspace", scalpel.workspace);
    for (const link of document.querySelectorAll("a.away")) link.href = scalpel.stock("/");
  },

  // The address of a page of MLflow's own UI.
  stock(path) {
    const query = scalpel.workspace ? `?${new URLSearchParams({ workspace: scalpel.workspace })}` : "";
    return `${document.body.dataset.stock}#${path}${query}`;
  },

  // Links to other pages take the chosen runs along, and what was chosen on the start page.
  keep() {
    const kept = new URLSearchParams();
    for (const name of ["workspace", "experiment", "base", "runs"]) {
      if (scalpel.wanted.get(name)) kept.set(name, scalpel.wanted.get(name));
    }
    const query = kept.toString().replaceAll("%2C", ",");
    for (const link of document.querySelectorAll("a[data-keep]")) {
      link.dataset.page ??= link.getAttribute("href");
      link.setAttribute("href", link.dataset.page + (query ? `?${query}` : ""));
    }
  },

  element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== undefined && value !== null && value !== false) made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  },

  // Text whose words are not broken at their hyphens: commands and their options.
  whole(text) {
    return text
      .split(/(\S*-\S+)/)
      .map((part, i) => (i % 2 ? scalpel.element("span", { class: "whole" }, part) : part));
  },

  say(text, bad = false) {
    const status = document.getElementById("status");
    status.textContent = text;
    status.classList.toggle("bad", bad);
    status.hidden = !text;
  },

  // A response that is not 200, as an error with what the server says.
  async get(path, query = {}, signal = undefined) {
    const address = `data/${path}?${new URLSearchParams(query)}`;
    const headers = scalpel.workspace ? { "X-MLFLOW-WORKSPACE": scalpel.workspace } : {};
    let response;
    try {
      response = await fetch(address, { credentials: "same-origin", headers, signal });
    } catch (error) {
      throw new Error(`The server does not answer (${error.message}). Is it running? Then reload.`);
    }
    if (!response.ok) {
      const text = await response.text();
      let said = `The server answered ${response.status}.`;
      try {
        said = JSON.parse(text).error || said;
      } catch {
        if (response.status === 401) said = "You are not logged in: reload the page.";
      }
      throw new Error(said);
    }
    return response;
  },
};

scalpel.keep();
scalpel.enter();
