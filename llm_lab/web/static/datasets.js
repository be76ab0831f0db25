// The datasets of a run: uploaded, named or built in; what is recognized in each, its first rows, its columns.
import { api, data, el, fill, find } from "./lab.js";
import { answer, draft, onLook, problems } from "./draft.js";
import { forgetFields, inLabels, makeField, sentence } from "./fields.js";

const kind = data.form.examples;
const looked = new Map(); // what was found in a dataset, by its keys

const COLUMN_NAMES = {
  messages: "The messages",
  prompt: "The question",
  completion: "The answer to train on",
  chosen: "The better answer",
  rejected: "The worse answer",
  answer: "The reference answer",
  text: "The text",
  text_column: "The text",
};

const current = () => draft.raw.data ?? [];
const put = (sets) => answer({ path: "data", value: sets });

const RECENT = 5; // uploaded files that are offered at first
let showUploads = () => {};
let removed = false;
let added = null; // path of the dataset to focus once it is shown

export function addSet(path) {
  if (current().some((one) => one.path === path)) return;
  added = path;
  put([...current(), { path }]);
}

/** The section of the datasets. templates: the fields of one. */
export function makeDatasets(templates) {
  const list = el("div.stack", {});
  const problem = el("p.error", { id: "data-problem", hidden: true });
  const adder = makeAdder();
  const more = el("details.more", {}, el("summary", {}, "Add another dataset"));
  const place = el("div", {}, adder);
  let shape = null;
  let own = [];
  onLook(() => {
    const sets = current();
    const now = JSON.stringify(sets.map((one) => [one.path, one.subset, one.split, one.streaming, one.text_column, one.columns]));
    if (shape !== now) {
      const count = shape === null ? -1 : JSON.parse(shape).length;
      const paths = shape === null ? null : JSON.stringify(JSON.parse(shape).map(([path]) => path));
      shape = now;
      if (count !== sets.length || paths !== JSON.stringify(sets.map((one) => one.path))) {
        forgetFields(own.flatMap((one) => one.fields));
        own = sets.map((_, index) => makeSet(index, templates));
        fill(list, own.map((one) => one.element));
        if (sets.length) {
          more.open = false;
          more.append(adder);
          fill(place, more);
        } else fill(place, adder);
      }
      for (const one of own) one.look();
      const index = sets.findIndex((one) => one.path === added);
      if (index >= 0) own[index].element.focus();
      else if (removed) (sets.length ? own.at(-1).element : find("#file")).focus();
      added = null;
      removed = false;
    }
    for (const one of own) one.update();
    const wrong = problems().filter((one) => one.key === "data");
    problem.textContent = sets.length || !wrong.length ? wrong.map((one) => inLabels(one.text)).join(" ") : "";
    problem.hidden = !problem.textContent;
  });
  return el("div.stack", {}, list, problem, place);
}

function makeSet(index, templates) {
  const found = el("div.found", { "aria-live": "polite" });
  const made = templates.map((field) => makeField(field, { path: field.path.replace(".N.", `.${index}.`) }));
  const path = made.find((one) => one.path.endsWith(".path"));
  const columns = made.filter((one) => one.path.includes(".columns."));
  const rest = made.filter((one) => one !== path && !columns.includes(one));
  const remove = el("button.quiet", { type: "button", "aria-label": `Remove dataset ${index + 1}` }, "Remove");
  remove.addEventListener("click", () => {
    removed = true;
    put(current().filter((_, at) => at !== index));
  });
  const columnBox = el("details", {}, el("summary", {}, "Columns"), columns.map((one) => one.element));
  const options = el("details", {}, el("summary", {}, "Path, split, weight"), path.element, rest.map((one) => one.element));
  const title = el("b.mono", {});
  const element = el("section.entry.dataset", { "aria-label": `Dataset ${index + 1}`, tabIndex: -1 }, el("div.label-row", {}, title, remove), found, columns.length ? columnBox : null, options);
  const show = (result) => showFound(found, result, index, () => look(true));
  async function look(download = false) {
    const source = current()[index];
    if (!source) return;
    const key = JSON.stringify([source, kind, download]);
    title.textContent = source.path;
    if (!looked.has(key)) {
      fill(found, el("p.soft", {}, "Reading the data ..."));
      looked.set(key, api("/api/data/look", { body: { source, kind, download } }));
    }
    try {
      const result = await looked.get(key);
      if (JSON.stringify([current()[index], kind, download]) !== key) return;
      show(result);
      offerColumns(columnBox, result.columns);
    } catch (error) {
      looked.delete(key);
      fill(found, el("p.error", {}, error.message));
    }
  }
  return {
    element,
    fields: made,
    look: () => look(),
    update: () => {
      // The weight of the only dataset has no effect.
      const weight = made.find((one) => one.path.endsWith(".weight"));
      if (weight && current().length < 2) weight.element.hidden = true;
      if (made.some((one) => one.element.hasAttribute("data-invalid") && !columns.includes(one))) options.open = true;
      if (columns.some((one) => one.element.hasAttribute("data-invalid"))) columnBox.open = true;
    },
  };
}

function offerColumns(box, columns) {
  const list = el("datalist", { id: `columns-${Math.random().toString(36).slice(2)}` }, columns.map((value) => el("option", { value })));
  box.querySelector(":scope > datalist")?.remove();
  box.append(list);
  for (const input of box.querySelectorAll("input")) input.setAttribute("list", list.id);
}

function showFound(box, result, index, download) {
  const parts = [];
  const asks = result.ask_columns && result.columns.length;
  if (asks) parts.push(el("p.warn", {}, "The columns are not recognized. Choose below which column is what."));
  else if (result.problem) parts.push(el("p.error", { role: "alert" }, inLabels(result.problem.replace(/^data\.0\b/, `data.${index}`))));
  else if (result.description) parts.push(el(result.on_hub && !result.rows.length ? "p.soft" : "p.good", {}, sentence(result.description)));
  if (result.on_hub && !result.rows.length) {
    const button = el("button", { type: "button" }, "Download it and show the first rows");
    button.addEventListener("click", download);
    parts.push(el("div", {}, button));
  }
  if (asks) parts.push(makeColumnChoice(result, index));
  if (result.rows.length) parts.push(makePreview(result.rows, result.columns));
  fill(box, parts);
}

/** What a row is, and which column holds each part of it. */
function makeColumnChoice(result, index) {
  const forms = result.forms ?? [["a text", ["text_column"]]];
  const optional = result.optional ?? [];
  const body = el("div.pair", {});
  const use = el("button.primary", { type: "button" }, "Use these columns");
  let selects = [];
  const buttons = forms.map(([name, fields]) => {
    const button = el("button", { type: "button", "aria-pressed": "false" }, name);
    button.addEventListener("click", () => choose(name, fields));
    return [name, button];
  });
  function choose(name, fields) {
    for (const [one, button] of buttons) button.setAttribute("aria-pressed", String(one === name));
    selects = fields.map((field, at) => {
      const may = optional.includes(field);
      const select = el("select", { id: `column-${index}-${field}` }, may && el("option", { value: "" }, "none"), result.columns.map((column) => el("option", { value: column }, column)));
      if (!may || result.columns.length >= fields.length) select.value = result.columns[Math.min(at, result.columns.length - 1)] ?? "";
      return [field, select];
    });
    fill(body, selects.map(([field, select]) => el("div.field", {}, el("label", { for: select.id }, COLUMN_NAMES[field] ?? field), select)));
  }
  use.addEventListener("click", () => {
    const chosen = Object.fromEntries(selects.map(([field, select]) => [field, select.value]).filter(([, column]) => column));
    const { text_column: text, ...columns } = chosen;
    put(current().map((one, at) => (at !== index ? one : text ? { ...one, text_column: text } : { ...one, columns })));
  });
  choose(...forms[0]);
  return el("div.columns-choice", {}, forms.length > 1 ? el("div.inline", {}, el("span", {}, "A row is"), el("div.segmented", { role: "group", "aria-label": "A row is" }, buttons.map(([, button]) => button))) : null, body, el("div", {}, use));
}

/** The first rows of a dataset as a table. All cells are plain text. */
function makePreview(rows, known) {
  const names = [...new Set([...known, ...rows.flatMap((row) => Object.keys(row))])].filter((name) => rows.some((row) => name in row));
  const head = el("tr", {}, names.map((name) => el("th", { scope: "col" }, name)));
  const body = rows.map((row) => el("tr", {}, names.map((name) => el("td", {}, el("div.cell", {}, row[name] ?? "")))));
  const table = el("div.wide.preview", { tabIndex: 0, role: "region", "aria-label": "First rows" }, el("table", {}, el("thead", {}, head), el("tbody", {}, body)));
  return el("details", { open: true }, el("summary", {}, rows.length === 1 ? "The first row" : `The first ${rows.length} rows`), table);
}

function makeAdder() {
  const input = el("input", { type: "file", accept: data.upload.suffixes.join(","), multiple: true, id: "file", class: "visually-hidden" });
  const progress = el("div.stack.tight", { "aria-live": "polite" });
  const zone = el(
    "label.drop",
    { for: "file" },
    el("b", {}, "Drop a file here, or choose one"),
    el("span.soft", {}, `${data.upload.suffixes.map((one) => one.slice(1)).join(", ")}; it stays on this machine, in uploads/`),
  );
  input.addEventListener("change", () => {
    for (const file of input.files) upload(file, progress);
    input.value = "";
  });
  for (const name of ["dragover", "dragenter"]) {
    zone.addEventListener(name, (event) => {
      event.preventDefault();
      zone.classList.add("over");
    });
  }
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    for (const file of event.dataTransfer.files) upload(file, progress);
  });
  const named = el("input", { type: "text", id: "data-path", placeholder: "path/to/data.jsonl, or owner/name on the Hub", spellcheck: false, autocomplete: "off" });
  const add = el("button", { type: "button" }, "Add");
  const addNamed = () => {
    if (!named.value.trim()) return;
    addSet(named.value.trim());
    named.value = "";
  };
  add.addEventListener("click", addNamed);
  named.addEventListener("keydown", (event) => event.key === "Enter" && addNamed());
  const samples = el("ul.samples", {}, data.samples.map((one) => offered(one.path, one.about)));
  const earlier = el("div", {});
  showUploads = (fresh) => {
    if (fresh && !data.uploads.some((one) => one.path === fresh.path)) data.uploads.unshift(fresh);
    const [first, rest] = [data.uploads.slice(0, RECENT), data.uploads.slice(RECENT)].map((part) => part.map((one) => offered(one.path, bytes(one.bytes))));
    fill(earlier, first.length > 0 && [
      el("p.label", {}, "Or take a file that you uploaded"), el("ul.samples", {}, first),
      rest.length > 0 && el("details", {}, el("summary", {}, `${rest.length} more`), el("ul.samples", {}, rest)),
    ]);
  };
  showUploads();
  return el(
    "div.adder",
    {},
    input,
    zone,
    progress,
    el("div.field", {}, el("label", { for: "data-path" }, "Or name a path or a dataset on the Hub"), el("div.inline", {}, named, add)),
    earlier,
    data.samples.length ? el("div", {}, el("p.label", {}, "Or try a built-in sample"), samples) : null,
  );
}

function offered(path, about) {
  const button = el("button.quiet", { type: "button" }, path);
  button.addEventListener("click", () => addSet(path));
  return el("li", {}, button, el("span.soft", {}, about));
}

export const bytes = (count) =>
  count >= 2 ** 30 ? `${(count / 2 ** 30).toFixed(1)} GiB` : count >= 2 ** 20 ? `${(count / 2 ** 20).toFixed(1)} MiB` : count >= 1024 ? `${Math.round(count / 1024)} KiB` : `${count} bytes`;

/** Send a file to uploads/, with its progress and a way to cancel; then it is one of the datasets. */
function upload(file, box) {
  const bar = el("progress", { max: file.size || 1, value: 0, "aria-label": `Upload of ${file.name}` });
  const cancel = el("button.quiet", { type: "button" }, "Cancel");
  const line = el("div.inline", {}, el("span", {}, file.name), bar, cancel);
  if (file.size > data.upload.largest) {
    fill(line, el("p.error", { role: "alert" }, `${file.name} is larger than ${bytes(data.upload.largest)}. Put it into a folder on this machine and name its path instead.`));
    box.append(line);
    return;
  }
  box.append(line);
  const request = new XMLHttpRequest(); // fetch does not report upload progress
  request.open("POST", `/api/uploads?name=${encodeURIComponent(file.name)}`);
  request.setRequestHeader("Content-Type", "application/octet-stream");
  request.upload.addEventListener("progress", (event) => (bar.value = event.loaded));
  const fail = (text) => fill(line, el("p.error", { role: "alert" }, text));
  request.addEventListener("load", () => {
    let answered = {};
    try {
      answered = JSON.parse(request.responseText);
    } catch {
      // The guard refuses with plain text.
    }
    if (request.status !== 200) return fail(answered.problems?.map((one) => one.text).join(" ") ?? request.responseText);
    line.remove();
    showUploads(answered);
    addSet(answered.path);
  });
  request.addEventListener("error", () => fail(`${file.name}: the upload was interrupted.`));
  cancel.addEventListener("click", () => {
    request.abort();
    line.remove();
  });
  request.send(file);
}

