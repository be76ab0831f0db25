// The list of runs: search, filter, sort, fold, choose some and compare them.
import { ago, api, askNow, data, duration, el, fill, find, findAll, showError, watch } from "./lab.js";

const STATUSES = { all: "All", running: "Running", done: "Done", stopped: "Stopped", ended: "Died or failed" };
const SORTS = { new: "Newest first", old: "Oldest first", name: "Name", status: "Status", stage: "Stage", size: "Size", loss: "Loss" };
const ORDER = ["starting", "running", "failed", "interrupted", "broken", "stopped", "done"];
const EMPTY = { kind: "run", status: "unknown", stage: "", size: "", numbers: [], label: "" };

const runs = new Map(); // name: the row from the server
const lines = new Map(); // name: {line, signature}; an element is kept while its run is shown
const chosen = new Set();
const open = new Set();
const asked = new URLSearchParams(location.search);
const view = {
  q: asked.get("q") ?? "",
  status: asked.get("status") in STATUSES ? asked.get("status") : "all",
  stage: asked.get("stage") ?? "",
  sort: asked.get("sort") in SORTS ? asked.get("sort") : "new",
};

function take({ rows, gone, all }) {
  if (all) for (const [name, run] of runs) if (run.kind !== "launch") runs.delete(name);
  for (const row of rows) runs.set(row.name, { ...EMPTY, ...row });
  for (const name of gone) runs.delete(name);
  for (const name of chosen) if (!runs.has(name)) chosen.delete(name);
  show();
}

/** Commands whose folder does not exist yet, or that ended before it did. */
function takeLaunches(rows) {
  for (const [name, run] of runs) if (run.kind === "launch") runs.delete(name);
  for (const row of rows) {
    const about = { kind: "launch", label: row.title, created_at: row.started, error: row.error, launch: row.number, command: row.command, form: row.form };
    runs.set(` launch ${row.number}`, { ...EMPTY, ...about, name: ` launch ${row.number}`, status: row.error ? "failed" : "starting", numbers: [row.error ?? "loading the libraries and the data"] });
  }
  show();
}

async function dismiss(number) {
  try {
    await api(`/api/launches/${number}/dismiss`, { method: "POST" });
  } catch (error) {
    showError(error);
  }
  askNow();
}

// --- which rows, in which order

const byName = new Intl.Collator("en", { numeric: true });
const missingLast = (one, other, compare) =>
  one === undefined || one === null ? (other === undefined || other === null ? 0 : 1) : other === undefined || other === null ? -1 : compare(one, other);
const COMPARE = {
  new: (one, other) => missingLast(one.created_at, other.created_at, (a, b) => b - a),
  old: (one, other) => missingLast(one.created_at, other.created_at, (a, b) => a - b),
  name: (one, other) => byName.compare(one.name, other.name),
  status: (one, other) => ORDER.indexOf(one.status) - ORDER.indexOf(other.status),
  stage: (one, other) => byName.compare(one.stage, other.stage),
  size: (one, other) => missingLast(one.parameters, other.parameters, (a, b) => b - a),
  loss: (one, other) => missingLast(one.loss, other.loss, (a, b) => a - b),
};
const sorted = (rows) => [...rows].sort((one, other) => COMPARE[view.sort](one, other) || COMPARE.new(one, other));

function matches(run) {
  const status = ["interrupted", "failed", "broken", "unknown"].includes(run.status) ? "ended" : run.status === "starting" ? "running" : run.status;
  if (view.status !== "all" && status !== view.status) return false;
  if (view.stage && run.stage !== view.stage) return false;
  if (!view.q) return true;
  const text = [run.name, run.stage, run.status, run.size, ...run.numbers].join(" ").toLowerCase();
  return view.q.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

/** [run, depth] of every row to show. A search also covers folded groups. */
function visible() {
  const inner = new Map();
  for (const run of runs.values()) {
    if (!inner.has(run.parent ?? null)) inner.set(run.parent ?? null, []);
    inner.get(run.parent ?? null).push(run);
  }
  const filtered = view.q || view.status !== "all" || view.stage;
  const found = [];
  const visit = (run, depth) => {
    const at = found.length;
    found.push([run, depth]);
    const children = inner.get(run.name) ?? [];
    const ordered = run.kind === "pipeline" && view.sort === "new" ? children : sorted(children);
    let some = false;
    if (filtered || open.has(run.name)) for (const child of ordered) some = visit(child, depth + 1) || some;
    if (!filtered) return true;
    const own = matches(run);
    if (own && !some && open.has(run.name)) {
      for (const child of ordered) found.push([child, depth + 1]);
    } else if (!own && !some) found.length = at;
    return own || some;
  };
  for (const run of sorted(inner.get(null) ?? [])) visit(run, 0);
  return found;
}

// --- the table

const address = (run) =>
  (["study", "sweep", "duel"].includes(run.kind) ? "/experiments/run/" : "/runs/") + run.name.split("/").map(encodeURIComponent).join("/");

function lineOf(run, depth) {
  const known = lines.get(run.name);
  const unfolded = open.has(run.name);
  const signature = JSON.stringify([run, depth, unfolded]);
  if (known?.signature === signature) {
    known.line.querySelector("input")?.toggleAttribute("checked", chosen.has(run.name));
    return known.line;
  }
  const box = run.kind === "run" && el("input", {
    type: "checkbox", checked: chosen.has(run.name), "aria-label": `Choose ${run.label}`,
    onchange: (event) => {
      if (event.target.checked) chosen.add(run.name);
      else chosen.delete(run.name);
      event.target.closest("tr").classList.toggle("chosen-row", event.target.checked);
      showChosen();
    },
  });
  const fold = run.children > 0 && el("button.quiet.fold", {
    type: "button", "aria-expanded": String(unfolded), "aria-label": `${run.children} runs in ${run.label}`,
    onclick: () => {
      if (!open.delete(run.name)) open.add(run.name);
      show();
      lines.get(run.name)?.line.querySelector(".fold")?.focus();
    },
  }, el("span", { "aria-hidden": "true" }, "›"));
  const isLaunch = run.kind === "launch";
  const progress = run.status === "running" && run.max_steps && run.step !== undefined && run.step !== null;
  const steps = progress && `step ${run.step.toLocaleString("en-US")} of ${run.max_steps.toLocaleString("en-US")}`;
  const left = run.left !== undefined && run.left !== null && `${duration(run.left)} left`;
  const line = el(
    "tr", { "data-run": run.name },
    el("td.choose", {}, box),
    el("th.run-name", { scope: "row" }, el("div", {}, fold, isLaunch ? el("span", { title: run.command }, run.label) : el("a", { href: address(run) }, run.label), run.children > 0 && el("span.tag", {}, `${run.children}`))),
    el("td.run-status", {}, el(`span.status.${run.status === "starting" ? "running" : run.status}`, { title: run.error ? `${data.notes[run.status] ?? ""} ${run.error}` : data.notes[run.status] }, run.status)),
    el("td.run-stage", {}, run.stage),
    el("td.numeric.run-size", {}, run.size),
    el(
      "td.run-numbers.numeric", {},
      progress && el("div.mini", {}, el("progress", { max: run.max_steps, value: run.step, "aria-label": `Progress of ${run.label}` }), el("span", {}, [steps, left].filter(Boolean).join(", "))),
      run.numbers.slice(0, 2).map((text) => el(isLaunch ? "span.launch-text" : "span.run-number", {}, text)),
      isLaunch && run.error && run.form && el("a.button.quiet", { href: run.form }, "Change and start again"),
      isLaunch && run.error && el("button.quiet", { type: "button", "aria-label": `Dismiss ${run.label}`, onclick: () => dismiss(run.launch) }, "Dismiss"),
    ),
    el("td.numeric.run-when", {}, el("time", { "data-time": run.created_at, title: run.created_at ? new Date(run.created_at * 1000).toLocaleString() : undefined }, run.created_at ? ago(run.created_at) : "")),
  );
  line.style.setProperty("--depth", depth);
  line.classList.toggle("chosen-row", chosen.has(run.name));
  if (known && document.activeElement && known.line.contains(document.activeElement)) {
    // The row with the focus is redrawn: its new element gets the focus.
    const place = [...known.line.querySelectorAll("a, button, input")].indexOf(document.activeElement);
    queueMicrotask(() => [...line.querySelectorAll("a, button, input")][place]?.focus());
  }
  lines.set(run.name, { line, signature });
  return line;
}

function show() {
  const rows = visible();
  const body = find("#rows");
  find("#first").hidden = runs.size > 0;
  find("#tools").hidden = !runs.size;
  find("#table").hidden = !rows.length;
  rows.forEach(([run, depth], at) => {
    const line = lineOf(run, depth);
    if (body.children[at] !== line) body.insertBefore(line, body.children[at] ?? null);
  });
  while (body.children.length > rows.length) body.lastElementChild.remove();
  const kept = new Set(rows.map(([run]) => run.name));
  for (const name of lines.keys()) if (!kept.has(name)) lines.delete(name);
  const outer = [...runs.values()].filter((run) => !run.parent).length;
  const filtered = view.q || view.status !== "all" || view.stage;
  find("#count").textContent = !runs.size ? "" : filtered ? (rows.length ? `${rows.length} shown` : "No run matches.") : `${outer} ${outer === 1 ? "run" : "runs"}`;
  showStages();
  showChosen();
  for (const heading of findAll("thead [data-sort]")) {
    const here = heading.dataset.sort === view.sort;
    if (here) heading.setAttribute("aria-sort", ["new", "size"].includes(view.sort) ? "descending" : "ascending");
    else heading.removeAttribute("aria-sort");
  }
}

function showChosen() {
  const bar = find("#selected");
  bar.hidden = !chosen.size;
  if (!chosen.size) return;
  const names = [...chosen];
  const query = names.map((name) => `run=${encodeURIComponent(name)}`).join("&");
  const signature = names.join("\n");
  if (bar.dataset.signature === signature) return;
  bar.dataset.signature = signature;
  fill(
    bar,
    el("span", {}, `${names.length} chosen`),
    el("a.button.primary", { href: `/compare?${query}` }, "Compare"),
    el("button.quiet", {
      type: "button",
      onclick: () => {
        chosen.clear();
        for (const box of findAll("#rows input[type=checkbox]")) box.checked = false;
        for (const line of findAll("#rows .chosen-row")) line.classList.remove("chosen-row");
        showChosen();
      },
    }, "Clear"),
  );
}

// --- search, filter, sort

let shownStages = "";

function showStages() {
  const stages = [...new Set([...runs.values()].map((run) => run.stage))].filter(Boolean).sort(byName.compare);
  if (shownStages === stages.join("\n")) return;
  shownStages = stages.join("\n");
  fill(find("#stage"), el("option", { value: "" }, "All stages"), stages.map((stage) => el("option", { value: stage }, stage)));
  find("#stage").value = stages.includes(view.stage) ? view.stage : "";
}

function change(key, value) {
  view[key] = value;
  const query = new URL(location.href);
  const plain = { q: "", status: "all", stage: "", sort: "new" };
  for (const [name, now] of Object.entries(view)) {
    if (now === plain[name]) query.searchParams.delete(name);
    else query.searchParams.set(name, now);
  }
  history.replaceState(null, "", query);
  for (const one of findAll("#statuses button")) one.setAttribute("aria-pressed", String(one.dataset.status === view.status));
  find("#sort").value = view.sort;
  show();
}

fill(
  find("#statuses"),
  Object.entries(STATUSES).map(([status, name]) =>
    el("button", { type: "button", "data-status": status, "aria-pressed": String(status === view.status), onclick: () => change("status", status) }, name),
  ),
);
fill(find("#sort"), Object.entries(SORTS).map(([key, name]) => el("option", { value: key }, name)));
find("#sort").value = view.sort;
find("#search").value = view.q;
find("#search").addEventListener("input", (event) => change("q", event.target.value.trim()));
find("#stage").addEventListener("change", (event) => change("stage", event.target.value));
find("#sort").addEventListener("change", (event) => change("sort", event.target.value));
for (const heading of findAll("thead [data-sort]")) {
  const text = heading.textContent;
  fill(heading, el("button.quiet.sorter", { type: "button", onclick: () => change("sort", heading.dataset.sort === "new" && view.sort === "new" ? "old" : heading.dataset.sort) }, text));
}

take(data);
watch("runs", (update) => update && take(update), data.cursor);
watch("launches", (rows) => rows && takeLaunches(rows));
setInterval(() => {
  for (const time of findAll("time[data-time]")) if (time.dataset.time) time.textContent = ago(Number(time.dataset.time));
}, 30_000);
