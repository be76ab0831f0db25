// What the pages of experiments share: the list of results, tables that sort, texts with code, a started command.
import { ago, api, askNow, el, fill, showError } from "./lab.js";

/** A text whose parts between backticks become code. */
export function inline(text) {
  return String(text).split(/`([^`\n]+)`/).map((part, at) => (at % 2 ? el("code", {}, part) : part));
}

/** The commands of experiments whose folder does not exist yet, or that ended before it did, as rows of results. */
export const launched = (launches, experiment) =>
  launches
    .filter(({ kind, form }) => ["study", "sweep", "duel"].includes(kind) && (!experiment || form.split("?")[0] === `/experiments/${encodeURIComponent(experiment)}`))
    .map((one) => ({
      name: one.title, kind: one.kind, title: one.command, created_at: one.started, form: one.form, launch: one.number,
      status: one.error ? "failed" : "running", results: [one.error ?? "loading the libraries"],
    }));

async function dismiss(number) {
  try {
    await api(`/api/launches/${number}/dismiss`, { method: "POST" });
  } catch (error) {
    showError(error);
  }
  askNow();
}

/** Studies, sweeps and duels as a table, newest first. */
export function resultList(rows, empty) {
  if (!rows.length) return el("div.empty", {}, el("p", {}, empty));
  const lines = [...rows].sort((one, other) => other.created_at - one.created_at).map((row) =>
    el("tr", {},
      el("th", { scope: "row" },
        row.launch ? row.name : el("a", { href: `/experiments/run/${encodePath(row.name)}` }, row.name),
        row.title && el("small.result-title", {}, row.title)),
      el("td", {}, el("span.tag", {}, row.kind)),
      el("td", {}, status(row.status)),
      el("td.small", {}, row.results.join(" · "),
        row.form && row.status === "failed" && el("div.actions", {},
          el("a.button.quiet", { href: row.form }, "Change and start again"),
          row.launch && el("button.quiet", { type: "button", "aria-label": `Dismiss ${row.name}`, onclick: () => dismiss(row.launch) }, "Dismiss"))),
      el("td.soft.small.nowrap", {}, ago(row.created_at)),
    ),
  );
  const head = ["name", "kind", "status", "result", "when"].map((name) => el("th", { scope: "col" }, name));
  return el("div.wide", { role: "region", tabIndex: 0, "aria-label": "Results" },
    el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, lines)));
}

export const encodePath = (name) => name.split("/").map(encodeURIComponent).join("/");

export function status(name) {
  return el("span", { class: `status ${name === "broken" ? "failed" : name}` }, name);
}

const NUMBER = /^[+\-−]?[\d,]*\.?\d+(e[+\-]?\d+)?$/i;
const asNumber = (cell) => {
  if (typeof cell === "number") return cell;
  const text = String(cell ?? "").trim().replace(/\s*(s|min|h|k|M|%|B|kB|MB|GB)$/, "");
  return NUMBER.test(text) ? Number(text.replaceAll(",", "").replace("−", "-")) : NaN;
};

/** The display text of a cell. */
export function shown(cell) {
  if (cell === null || cell === undefined) return "";
  if (typeof cell === "boolean") return cell ? "yes" : "no";
  if (typeof cell !== "number") return String(cell);
  if (Number.isInteger(cell)) return Math.abs(cell) >= 10000 ? cell.toLocaleString("en-US") : String(cell);
  return Number(cell.toPrecision(4)).toString();
}

/**
 * A table that is sorted by pressing the head of a column. rows: lists of values, or of elements with data-value.
 * sort: {at, up}, kept by the caller if the table is rebuilt.
 */
export function sortableTable(head, rows, label, sort = {}) {
  const valueOf = (cell) => (cell instanceof Node ? cell.dataset.value ?? cell.textContent : cell);
  const numeric = head.map((_, at) => {
    const filled = rows.map((row) => valueOf(row[at])).filter((cell) => cell !== null && cell !== "" && cell !== "-" && cell !== "–");
    return filled.length > 0 && filled.filter((cell) => !Number.isNaN(asNumber(cell))).length * 2 > filled.length;
  });
  const body = el("tbody");
  const heads = head.map((name, at) => {
    if (!name) return el("td"); // nothing to sort by
    const button = el("button.sort", { type: "button", onclick: () => press(at) }, name);
    return el(numeric[at] ? "th.numeric" : "th", { scope: "col" }, button);
  });
  function press(at) {
    sort.up = sort.at === at ? !sort.up : true;
    sort.at = at;
    order();
  }
  function order() {
    const found = [...rows];
    if (sort.at !== undefined) {
      const { at } = sort;
      const sign = sort.up ? 1 : -1;
      found.sort((one, other) => {
        const [a, b] = [valueOf(one[at]), valueOf(other[at])];
        if (!numeric[at]) return sign * String(a ?? "").localeCompare(String(b ?? ""), "en", { numeric: true });
        const [x, y] = [asNumber(a), asNumber(b)];
        return Number.isNaN(x) ? (Number.isNaN(y) ? 0 : 1) : Number.isNaN(y) ? -1 : sign * (x - y);
      });
    }
    heads.forEach((one, at) => {
      if (sort.at === at) one.setAttribute("aria-sort", sort.up ? "ascending" : "descending");
      else one.removeAttribute("aria-sort");
    });
    fill(body, found.map((row) => el("tr", {}, row.map((cell, at) => {
      const content = cell instanceof Node ? cell : shown(cell);
      const kind = numeric[at] ? ".numeric" : "";
      return at === 0 ? el(`th${kind}`, { scope: "row" }, content) : el(`td${kind}`, {}, content);
    }))));
  }
  order();
  return el("div.wide", { role: "region", tabIndex: 0, "aria-label": label || head.join(", ") },
    el("table", {}, el("thead", {}, el("tr", {}, heads)), body));
}

/** Wait for the folder of a started command, and go to its page. Throws with what the command printed if it failed. */
export async function goToRun({ launch, run }) {
  for (;;) {
    if (run) break;
    const state = await api(`/api/experiments/launch/${launch}`);
    run = state.run;
    if (!run && state.exit_code !== null) throw new Error(state.error || "The command ended before there was a run.");
    if (!run) await new Promise((done) => setTimeout(done, 300));
  }
  location.assign(`/experiments/run/${encodePath(run)}`);
}
