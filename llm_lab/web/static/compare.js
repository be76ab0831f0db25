// Several runs in one picture per metric, and their differences.
import { Curves, lookOf } from "./curves.js";
import { api, askNow, data, el, fill, find, showError, watch } from "./lab.js";

let compared = data;
let curves = null;
const places = new Map(); // a run keeps its color when another one is removed

fill(find("#names"), data.names.map((one) => el("option", { value: one.name }, one.label)));

function sources() {
  return compared.runs.map((run) => {
    if (!places.has(run.name)) {
      const taken = new Set(places.values());
      let place = 0;
      while (taken.has(place)) place += 1;
      places.set(run.name, place);
    }
    return { name: run.name, label: run.label, ...lookOf(places.get(run.name)) };
  });
}

async function change(names) {
  const address = new URL(location.href);
  address.searchParams.delete("run");
  for (const name of names) address.searchParams.append("run", name);
  try {
    compared = await api(`/api/compare?${new URLSearchParams(names.map((name) => ["run", name]))}`);
  } catch (error) {
    showError(error);
    return;
  }
  history.replaceState(null, "", address);
  for (const name of places.keys()) if (!names.includes(name)) places.delete(name);
  show();
}

function show() {
  const shown = sources();
  find("#nothing").hidden = shown.length > 0;
  const signature = JSON.stringify(compared.runs);
  if (find("#chosen").dataset.signature !== signature) {
    find("#chosen").dataset.signature = signature; // a focused button keeps the focus
    fill(find("#chosen"), shown.map((one, at) => chip(one, compared.runs[at])));
  }
  if (!curves && shown.length) {
    curves = new Curves(find("#curves"), [], { onRows: (source, update) => !update.complete && askNow() });
  }
  curves?.setSources(shown, true);
  showTables(shown);
}

function chip(one, run) {
  const hidden = curves?.hidden.has(one.name) ?? false;
  const line = el(`i.swatch.${one.color}`, { "aria-hidden": "true" });
  if (one.dash.length) line.classList.add("dashed");
  const toggle = el(
    "button.quiet", {
      type: "button", "aria-pressed": String(!hidden), title: hidden ? "Show this curve" : "Hide this curve",
      onclick: () => {
        curves.toggle(one.name);
        const now = curves.hidden.has(one.name);
        toggle.setAttribute("aria-pressed", String(!now));
        toggle.title = now ? "Show this curve" : "Hide this curve";
      },
    },
    line, one.label,
  );
  const others = () => compared.runs.map((other) => other.name).filter((name) => name !== one.name);
  return el(
    "li", {}, toggle, el(`span.status.${run.status}`, { title: run.status }, run.status),
    el("a.button.quiet", { href: run.href, "aria-label": `Open ${one.label}`, title: "Open" }, "↗"),
    el("button.quiet", { type: "button", "aria-label": `Remove ${one.label}`, title: "Remove", onclick: () => change(others()) }, "×"),
  );
}

function showTables(shown) {
  const { recipe, results, lineage } = compared;
  const names = () => shown.map((one) => el("th", { scope: "col" }, el(`i.swatch.${one.color}`, { "aria-hidden": "true" }), " ", one.label));
  const table = (first, rows, label) =>
    el("div.wide", { tabIndex: 0, role: "region", "aria-label": label }, el("table.differences", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, first), names())), el("tbody", {}, rows)));
  if (!shown.length) return fill(find("#tables"));
  return fill(
    find("#tables"),
    el("h2", {}, "Results"),
    results.length
      ? table(
          "result",
          results.map((row) =>
            el(
              "tr", {},
              el("th", { scope: "row", title: row.meaning }, row.name),
              row.values.map((value, at) => el(row.best.includes(at) ? "td.best" : "td", {}, value === "-" ? "–" : value, row.best.includes(at) && el("span.tag", {}, "best"))),
            ),
          ),
          "Results",
        )
      : el("p.soft", {}, "No results yet."),
    el("p.soft.small", {}, "The best value is marked where all were measured on the same data in the same way."),
    el("h2", {}, "What differs in their recipes"),
    recipe.length
      ? table(
          "key",
          recipe.map((row) =>
            el(
              "tr", {},
              el("th", { scope: "row" }, el("code", {}, row.key)),
              row.values.map((value, at) => el("td", {}, value === null ? el("span.soft", {}, "–") : el("code", {}, value), row.derived[at] && el("span.tag", { title: "This value was derived, not chosen" }, "derived"))),
            ),
          ),
          "What differs in their recipes",
        )
      : el("p.soft", {}, shown.length > 1 ? "Nothing: their recipes are the same." : "Add another run to see what differs."),
    lineage.some(Boolean) && [
      el("h2", {}, "Where they come from"),
      el("dl.facts.lineages", {}, shown.flatMap((one, at) => [el("dt", {}, one.label), el("dd", {}, lineage[at] || "–")])),
    ],
  );
}

find("#add").addEventListener("submit", (event) => {
  event.preventDefault();
  const box = find("#name");
  const name = box.value.trim();
  if (!name) return;
  box.value = "";
  const names = compared.runs.map((run) => run.name);
  if (!names.includes(name)) change([...names, name]);
});

show();

// The numbers of active runs change; they are updated at most every five seconds.
let refreshing = false;
watch("runs", (update) => {
  const names = new Set(compared.runs.map((run) => run.name));
  if (!update || update.all || refreshing || !update.rows.some((row) => names.has(row.name))) return;
  refreshing = true;
  setTimeout(() => {
    refreshing = false;
    change(compared.runs.map((run) => run.name));
  }, 5000);
});
