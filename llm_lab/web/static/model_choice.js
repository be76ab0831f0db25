// Which model a run starts from: one of the user's runs, one of the library, a folder or a name.
import { data, el, fill, findAll, number } from "./lab.js";
import { answer, draft, onLook } from "./draft.js";

const SHOWN = 8;

/** The picker of model.checkpoint, above the field for typing a path or a name. */
export function makeModelChoice(typed) {
  const lists = [
    ["runs", "My runs", data.runs.map((run) => ({ name: run.path, why_not: run.why_not, title: run.path.replace(/^checkpoints\//, ""), about: run.about.split(": ").slice(1).join(": ") }))],
    ["library", "Library", data.library],
  ].filter(([, , rows]) => rows.length);
  const ways = [...lists.map(([name, title, rows]) => [name, `${title} (${rows.length})`]), ["typed", "A folder or a Hub name"]];
  const body = el("div", {});
  let way = null;
  const buttons = ways.map(([name, title]) => {
    const button = el("button", { type: "button", "aria-pressed": "false" }, title);
    button.addEventListener("click", () => show(name));
    return [name, button];
  });
  const panels = Object.fromEntries(lists.map(([name, title, rows]) => [name, makeList(title, rows)]));

  function show(name) {
    way = name;
    for (const [one, button] of buttons) button.setAttribute("aria-pressed", String(one === name));
    fill(body, name === "typed" ? typed.element : panels[name].element);
    typed.update();
  }

  onLook(() => {
    const now = draft.raw.model?.checkpoint;
    for (const panel of Object.values(panels)) panel.update(now);
    const holder = lists.find(([, , rows]) => rows.some((row) => row.name === now))?.[0];
    if (way === null) show(now ? (holder ?? "typed") : (lists[0]?.[0] ?? "typed"));
    else if (now && holder && way !== holder && way !== "typed") show(holder);
  });
  typed.onFocus = () => show("typed");
  return el("div.model-choice", {}, el("div.segmented", { role: "group", "aria-label": "Where the model is" }, buttons.map(([, button]) => button)), body);
}

function makeList(title, rows) {
  const made = rows.map((row, index) => {
    const input = el("input", { type: "radio", name: `model-${title}`, value: row.name, id: `model-${title}-${index}`.replaceAll(" ", "-"), disabled: Boolean(row.why_not) });
    input.addEventListener("change", () => answer({ path: "model.checkpoint", text: row.name }));
    const facts = row.facts ? el("span.soft", {}, row.facts) : null;
    const element = el(row.why_not ? "label.row.disabled" : "label.row", { for: input.id }, input, el("span", {}, el("b", {}, row.title ?? row.name), " ", el("span.soft", {}, row.about), facts && el("span.note", {}, facts), row.why_not && el("span.note.no", {}, `Not possible: ${row.why_not}`), row.fits && el("span.note", { class: row.fits_here ? "note" : "note no" }, row.fits)));
    return { row, input, element };
  });
  const search = el("input", { type: "search", "aria-label": `Search: ${title}`, placeholder: "Search" });
  const more = el("button.quiet", { type: "button" });
  let all = false;
  const filter = () => {
    const words = search.value.toLowerCase();
    let shown = 0;
    for (const one of made) {
      const hit = `${one.row.name} ${one.row.about}`.toLowerCase().includes(words);
      one.element.hidden = !hit || (!all && !words && shown >= SHOWN && !one.input.checked);
      shown += hit;
    }
    more.hidden = all || Boolean(words) || made.length <= SHOWN;
    more.textContent = `Show all ${number(made.length)}`;
  };
  search.addEventListener("input", filter);
  more.addEventListener("click", () => {
    all = true;
    filter();
  });
  const element = el("div.stack.tight", {}, made.length > SHOWN && search, el("div.rows", { role: "radiogroup", "aria-label": title }, made.map((one) => one.element)), el("div", {}, more));
  const update = (now) => {
    for (const one of made) one.input.checked = one.row.name === now;
    filter();
  };
  update(null);
  return { element, update };
}

/** What is pretrained: parts, a config, or a checkpoint; and the fields of each. */
export function makeScratchChoice(fields) {
  const ways = [
    ["parts", "Build it from parts", () => answer({ path: "model", value: {} })],
    ["config", "A design or a config.json", () => {}],
    ["checkpoint", "Continue from a model", () => {}],
  ];
  let way = null;
  const buttons = ways.map(([name, title, choose]) => {
    const button = el("button", { type: "button", "aria-pressed": "false" }, title);
    button.addEventListener("click", () => {
      if (way !== name && name === "parts") choose();
      show(name);
    });
    return [name, button];
  });
  const designs = data.designs.map((path) => {
    const button = el("button", { type: "button" }, path.split("/").pop());
    button.addEventListener("click", () => answer({ path: "model", value: { config: path } }));
    return button;
  });
  const config = el("input", { type: "text", placeholder: "path/to/config.json", "aria-label": "A config.json, a folder with one, or a name on the Hub" });
  config.addEventListener("input", () => config.value.trim() && answer({ path: "model", value: { config: config.value.trim() } }, { typing: true }));
  const typed = fields.find((one) => one.path === "model.checkpoint");
  const panels = {
    config: el("div.stack.tight", {}, designs.length ? el("div.actions", {}, designs) : null, config),
    checkpoint: makeModelChoice(typed),
  };
  const body = el("div", {});

  function show(name) {
    way = name;
    for (const [one, button] of buttons) button.setAttribute("aria-pressed", String(one === name));
    fill(body, panels[name]);
    for (const one of fields) {
      one.waiting = name !== kind();
      if (one.field.of !== "checkpoint") one.element.hidden = !one.visible || !one.found || name !== one.field.of;
    }
  }
  const kind = () => (draft.raw.model?.checkpoint ? "checkpoint" : draft.raw.model?.config ? "config" : "parts");

  onLook(() => {
    if (document.activeElement !== config) config.value = draft.raw.model?.config ?? "";
    show(way ?? kind());
  });
  for (const one of fields.filter((one) => one.field.of === "config")) one.element.remove();
  return el("div.model-choice", {}, el("div.segmented", { role: "group", "aria-label": "What is pretrained" }, buttons.map(([, button]) => button)), body);
}

/** Switch an adapter on and off: all weights, LoRA, QLoRA. */
export function makeAdapterChoice() {
  const ways = [
    ["all", "All weights"],
    ["lora", "LoRA"],
    ["qlora", "QLoRA"],
  ];
  const note = el("p.help", {});
  const buttons = ways.map(([name, title]) => {
    const button = el("button", { type: "button", "aria-pressed": "false" }, title);
    button.addEventListener("click", () => {
      const { load_in_4bit: before, ...rest } = draft.raw.lora ?? {};
      // Left out, it could become an adapter again if memory requires one.
      if (name === "all") answer({ path: "lora", off: true });
      else answer({ path: "lora", value: name === "qlora" ? { ...rest, load_in_4bit: true } : rest });
    });
    return [name, button];
  });
  onLook(() => {
    const { seen } = draft;
    const off = (seen.off ?? []).includes("lora");
    const now = off ? "all" : seen.values?.["lora.load_in_4bit"] === "true" ? "qlora" : "lora";
    const why = seen.choices["lora.load_in_4bit"]?.true?.why_not;
    for (const [name, button] of buttons) {
      button.setAttribute("aria-pressed", String(name === now));
      button.disabled = name === "qlora" && Boolean(why);
    }
    const derived = draft.raw.lora === undefined ? seen.reasons?.["lora.preset"] : null;
    note.textContent = [derived && `Derived: ${derived}.`, why && `QLoRA is not possible: ${why}.`].filter(Boolean).join(" ");
    note.hidden = !note.textContent;
  });
  return el("div", {}, el("div.segmented", { role: "group", "aria-label": "What is trained" }, buttons.map(([, button]) => button)), note);
}
