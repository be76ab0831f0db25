// The models: the user's own, and the library with what fits on this machine.
import { data, el, fill, find, number } from "./lab.js";

const short = (count) => (count >= 1e9 ? `${number(count / 1e9, 3)} B` : count >= 1e6 ? `${number(count / 1e6, 3)} M` : count >= 1e3 ? `${number(count / 1e3, 3)} k` : number(count));
const link = (text, path, query) => el("a.button", { href: `${path}?${new URLSearchParams(query)}`, "aria-label": `${text}: ${Object.values(query).pop()}` }, text);
const tune = (name) => link("Fine-tune", "/new", { stage: "sft", model: name });
const chat = (name) => link("Chat", "/chat", { model: name });

function own(title, rows, actions, about) {
  if (!rows.length) return null;
  const lines = rows.map((row) =>
    el("tr", {}, el("th", { scope: "row" }, about(row)), el("td", {}, row.about ?? "a design: no weights yet"), el("td.numeric", {}, row.parameters ? short(row.parameters) : "–"), el("td.numeric", {}, number(row.context)), el("td", {}, el("div.actions.end", {}, actions(row)))),
  );
  const head = el("tr", {}, [title, "State", "Parameters", "Context", ""].map((text, index) => el(index === 4 ? "td" : "th", index === 4 ? {} : { scope: "col", class: index === 2 || index === 3 ? "numeric" : "" }, text)));
  return el("section", {}, el("h2", {}, title), el("div.wide", { tabIndex: 0, role: "region", "aria-label": title }, el("table.own", {}, el("thead", {}, head), el("tbody", {}, lines))));
}

function libraryRow(row) {
  const tags = row.methods.map((one) => el("span", { class: one.fits ? "tag fits" : "tag" }, one.fits ? "✓ " : "✗ ", one.name, el("span.visually-hidden", {}, one.fits ? " fits" : " does not fit")));
  const reasons = row.methods.map((one) => el("li", {}, `${one.name[0].toUpperCase()}${one.name.slice(1)}: ${one.reason}`));
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, row.name, el("div.soft.small", {}, [row.is_chat ? "answers" : "continues text", row.note].filter(Boolean).join("; "))),
    el("td.numeric", {}, short(row.parameters)),
    el("td.numeric", {}, number(row.context)),
    el("td", {}, row.license, row.gated && el("div.soft.small", {}, row.gated)),
    el("td", {}, el("div.tags", {}, tags), el("details.small", {}, el("summary", {}, row.fits_here ? "How" : "Why not"), el("ul.methods", {}, reasons))),
    el("td", {}, el("div.actions.end", {}, tune(row.name), chat(row.name))),
  );
}

function show() {
  const words = find("#search").value.toLowerCase();
  const here = (row) => [row.name, row.about, row.family, row.license].join(" ").toLowerCase().includes(words);
  const fits = find("#fits").checked;
  const runs = data.runs.filter(here);
  const designs = data.designs.filter(here);
  const rows = data.library.filter((row) => here(row) && (!fits || row.fits_here));
  const head = el("tr", {}, ["Model", "Parameters", "Context", "License", "What fits here, in fine-tuning", ""].map((text, index) => el(text ? "th" : "td", text ? { scope: "col", class: index === 1 || index === 2 ? "numeric" : "" } : {}, text)));
  fill(
    find("#models"),
    own("My runs", runs, (row) => [tune(row.path), chat(row.path)], (row) => el("a", { href: `/runs/${row.name}` }, row.name)),
    own("My designs", designs, (row) => [link("Pretrain", "/new", { stage: "pretrain", config: row.path })], (row) => row.name),
    el("h2", {}, `Library (${rows.length})`),
    rows.length
      ? el("div.wide", { tabIndex: 0, role: "region", "aria-label": "Library" }, el("table.library", {}, el("thead", {}, head), el("tbody", {}, rows.map(libraryRow))))
      : el("div.empty", {}, el("p", {}, fits ? "No model of the library matches this search and fits on this machine." : "No model has this in its name.")),
    el("p.help.soft.small", {}, "What fits is estimated for sequences of up to 1,024 tokens. For a gated model, accept its terms on its page on the Hub, then sign in: hf auth login."),
  );
}

for (const name of ["search", "fits"]) find(`#${name}`).addEventListener("input", show);
show();
