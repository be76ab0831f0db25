// The parts of the page of a run that depend only on the data they show.
import { codeBlock, el, fill } from "./lab.js";
import { write } from "./numbers.js";

export function encodeRun(run) {
  return run.split("/").map(encodeURIComponent).join("/");
}

export const empty = (text) => el("div.empty", {}, el("p", {}, text));
export const facts = (rows) => el("dl.facts", {}, rows.flatMap(([label, text]) => [el("dt", {}, label), el("dd", {}, text)]));
export const table = (headings, rows, numeric = []) =>
  el(
    "div.wide", { tabIndex: 0 },
    el(
      "table", {},
      el("thead", {}, el("tr", {}, headings.map((text, at) => el(numeric.includes(at) ? "th.numeric" : "th", { scope: "col" }, text)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, at) => (at ? el(numeric.includes(at) ? "td.numeric" : "td", {}, cell) : el("th", { scope: "row" }, cell)))))),
    ),
  );

export function stage(one, at) {
  const title = one.begun ? el("a", { href: `/runs/${encodeRun(one.run)}` }, one.name) : one.name;
  return el(
    "li.card.stage", {},
    el("span.stage-number.numeric", { "aria-hidden": "true" }, String(at + 1)),
    el("div", {}, el("h3", {}, title), el("p.soft.small", {}, [one.stage, ...one.numbers].filter(Boolean).join(" · "))),
    el("span.soft.numeric", {}, one.time),
    el(`span.status.${one.status}`, {}, one.status),
    one.begun ? el("a.button.quiet", { href: `/runs/${encodeRun(one.run)}#curves`, "aria-label": `Curves of ${one.name}` }, "Curves") : el("span"),
  );
}

export function bars(row, word) {
  const [predicted, actual] = row.values;
  const most = Math.max(predicted ?? 0, actual ?? 0) || 1;
  const bar = (label, value, text, tone) => {
    const line = el(`div.bar.${tone}`);
    line.style.width = `${(100 * (value ?? 0)) / most}%`;
    return el("div.bar-row", {}, el("span.soft.small", {}, label), el("div.bar-room", {}, line), el("span.numeric", {}, text));
  };
  return el(
    "div.card", {},
    el("h3", {}, row.name, row.ratio && el("span.tag", {}, `${row.ratio} × predicted`)),
    bar("predicted", predicted, row.predicted, "planned"),
    bar(word, actual, row.actual, "actual"),
  );
}

export function recipeCode(text) {
  const block = codeBlock(text);
  const code = block.querySelector("code");
  fill(
    code,
    text.split("\n").flatMap((line, at, lines) => {
      const [, before, comment] = /^(.*?)((?:^|\s)#.*)?$/.exec(line);
      const end = at < lines.length - 1 ? "\n" : "";
      return [before, comment && el("span.comment", {}, comment), end].filter(Boolean);
    }),
  );
  return block;
}

export function node(one, key, here = false) {
  const title = one.href ? el("a", { href: one.href }, one.name) : el(here ? "b" : "span", {}, one.name);
  const inner = one.from.map((link) =>
    link.node
      ? node(link.node, link.key)
      : el("li", {}, el("div.tree-node", {}, el("span.tree-key", {}, link.key), el("span", {}, link.place), el("span.tag", {}, link.gone ? "missing" : "changed since"))),
  );
  if (one.scratch) inner.push(el("li", {}, el("div.tree-node", {}, el("span.tree-key", {}, "made from"), el("span.soft", {}, "scratch: random weights"))));
  return el(
    "li", {},
    el(
      "div.tree-node", {},
      key && el("span.tree-key", {}, key), title, el("span.tag", {}, one.stage),
      one.step !== null && el("span.soft", {}, `step ${one.step}`),
      here && el("span.soft", {}, "this run"),
      one.numbers.length > 0 && el("span.soft.small.numeric", {}, one.numbers.join(" · ")),
    ),
    inner.length > 0 && el("ul", {}, inner),
  );
}

/** The utilization of the GPUs. */
export function showGpus(box, gpus) {
  box.hidden = !gpus.length;
  fill(
    box,
    gpus.map((gpu, at) =>
      el(
        "div", {},
        el("b", {}, gpus.length > 1 ? `GPU ${at}` : "GPU"), el("span.soft", {}, gpu.name),
        gpu.use !== null && el("span.numeric", {}, `${write("percent", gpu.use)} busy`),
        gpu.used !== null && el("span.numeric", {}, `${write("size", gpu.used)} of ${write("size", gpu.total)}`),
        gpu.celsius !== null && el("span.numeric", {}, `${gpu.celsius} °C`),
        gpu.watts !== null && el("span.numeric", {}, `${Math.round(gpu.watts)} W`),
      ),
    ),
  );
}
