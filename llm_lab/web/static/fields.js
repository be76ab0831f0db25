// One control for each recipe key. The value it shows without an answer, and the reason, come from the server.
import { data, el, fill } from "./lab.js";
import { answer, draft, isMissing, onLook, problems } from "./draft.js";

const MOST_ROWS = 10; // more choices become a drop-down list
let numbered = 0;
export const fields = []; // {path, element, visible, focus, field}

/** The kind of a group that has several: the optimizer's name; parts, config or checkpoint of a model. */
export function kindOf(section) {
  if (section === "model") {
    const model = draft.raw.model ?? {};
    return "checkpoint" in model ? "checkpoint" : "config" in model ? "config" : "parts";
  }
  return draft.seen.values?.[`${section}.name`];
}

const isOff = (section) => (draft.seen.off ?? []).includes(section);

/** Make the field of a key. path: the path with the entry's number, if the key is in a list. */
export function makeField(field, { path = field.path, about = "", label = field.label } = {}) {
  const id = `f${++numbered}`;
  const control = CONTROLS[widgetOf(field)](field, path, id);
  const reset = el("button.quiet.reset", { type: "button", hidden: true, title: "Use the default again" }, "Reset");
  reset.addEventListener("click", () => {
    answer({ path, value: null });
    control.focus();
  });
  const derived = el("p.derived", { id: `${id}-derived`, hidden: true });
  const error = el("p.error", { id: `${id}-error`, hidden: true });
  const help = el("p.help", { id: `${id}-help` }, says(field) ? "" : sentence(field.help));
  help.hidden = !help.textContent;
  const why = field.why && el("details.why", {}, el("summary", {}, "Why it matters"), el("p.help", {}, field.why));
  const name = el(control.group ? "span.label" : "label", control.group ? { id: `${id}-label` } : { for: id }, about, label);
  const head = el("div.label-row", {}, name, reset, el("code.key", {}, path));
  const isCheck = control.isCheck;
  const element = el("div.field", {}, head, help, control.note, control.element, derived, error, why);
  if (isCheck) {
    element.classList.add("is-check");
    head.prepend(control.element);
  }
  const described = `${id}-help ${id}-derived ${id}-error`;
  for (const input of control.inputs) {
    input.setAttribute("aria-describedby", described);
    if (control.group && control.inputs.length > 1) input.setAttribute("aria-labelledby", `${id}-label ${input.id}-text`);
  }
  if (control.group) {
    control.element.setAttribute("role", control.role ?? "radiogroup");
    control.element.setAttribute("aria-labelledby", `${id}-label`);
    control.element.setAttribute("aria-describedby", described);
  }
  const own = { path, field, element, visible: true, found: true, focus: () => control.focus() };
  own.update = () => {
    const { seen } = draft;
    const answered = seen.answers[path];
    const value = seen.values?.[path] ?? field.default ?? "";
    own.visible = !(
      seen.idle.includes(field.path) ||
      isOff(field.section) ||
      (field.of && field.of !== kindOf(field.section))
    );
    element.hidden = !(own.visible && own.found);
    control.update({ answered, value, choices: seen.choices[field.path] ?? {} });
    const reason = seen.reasons?.[path];
    derived.textContent = reason ? `Derived: ${value}, ${reason}.` : answered === undefined && field.derived ? `Derived: ${field.derived}.` : "";
    derived.hidden = !derived.textContent || (answered !== undefined && !reason);
    reset.hidden = answered === undefined || field.default === null && !field.derived && !seen.values?.[path];
    const wrong = problems().filter((problem) => problem.key === path && !isMissing(problem));
    error.textContent = wrong.map((problem) => inLabels(problem.text)).join(" ");
    error.hidden = !wrong.length;
    element.toggleAttribute("data-invalid", Boolean(wrong.length));
    for (const input of control.inputs) input.setAttribute("aria-invalid", String(Boolean(wrong.length)));
  };
  fields.push(own);
  own.forget = onLook(own.update);
  return own;
}

/** Drop fields whose list entry was removed. */
export function forgetFields(gone) {
  for (const one of gone) {
    one.forget();
    const index = fields.indexOf(one);
    if (index >= 0) fields.splice(index, 1);
  }
}

/** Whether the question repeats the help. */
const says = (field) => field.label.replace("?", "").toLowerCase() === field.help.toLowerCase();

export const sentence = (text) => (text ? text[0].toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : ".") : "");

const every = [...data.form.placed, ...data.form.tabs.flatMap((tab) => tab.sections.flatMap((section) => section.fields))];
const labels = new Map(every.map((field) => [field.path, field.label.replace(/\?$/, "")]));

/** A text of the server with the labels of its fields instead of dotted keys: "Learning rate = 500: ...". */
export const inLabels = (text) =>
  text.replaceAll(", or null", "").replace(/(?<![\w./-])[a-z]\w*(\.\w+)+(?![\w/]|\.\w)/g, (key, _, at) => {
    const entry = key.match(/\.(\d+)\./);
    const label = labels.get(key.replace(/\.\d+\./, ".N."));
    if (!label) return key;
    const set = key.startsWith("data.") && entry ? `Dataset ${Number(entry[1]) + 1}` : null;
    const name = key.endsWith(".path") && set ? set : set ? `${set}, ${label[0].toLowerCase()}${label.slice(1)}` : label;
    return at === 0 ? name : `“${name}”`;
  });

function widgetOf(field) {
  if (field.kind === "tokenizer") return "tokenizer";
  if (field.kind === "lines") return field.choices.length ? "several" : "lines";
  if (field.kind === "bool") return field.derived ? "list" : "check";
  if (field.choices.length) return field.common && field.choices.length <= MOST_ROWS ? "rows" : "list";
  return "text";
}

const CONTROLS = {
  text(field, path, id) {
    const input = el("input", { type: "text", id, autocomplete: "off", spellcheck: false });
    if (["int", "float"].includes(field.kind)) {
      input.inputMode = "decimal";
      input.classList.add("short");
    }
    input.addEventListener("input", () => answer({ path, text: input.value }, { typing: true }));
    const offered = field.candidates?.map(String) ?? offeredFor(field);
    const list = offered?.length && el("datalist", { id: `${id}-list` }, offered.map((value) => el("option", { value })));
    if (list) input.setAttribute("list", list.id);
    return {
      element: list ? el("div", {}, input, list) : input,
      inputs: [input],
      focus: () => input.focus(),
      update: ({ answered, value }) => {
        input.placeholder = value;
        if (document.activeElement !== input) input.value = answered ?? "";
      },
    };
  },

  lines(field, path, id) {
    const input = el("textarea", { id, rows: 3, spellcheck: false });
    input.addEventListener("input", () => answer({ path, text: input.value }, { typing: true }));
    return {
      element: el("div", {}, input, el("p.help", {}, "One on each line.")),
      inputs: [input],
      focus: () => input.focus(),
      update: ({ answered, value }) => {
        input.placeholder = value === '[""]' ? "No prompt: the model begins by itself" : value;
        if (document.activeElement !== input) input.value = answered ?? "";
      },
    };
  },

  check(field, path, id) {
    const input = el("input", { type: "checkbox", id });
    const note = el("p.help", {});
    input.addEventListener("change", () => {
      const text = String(input.checked);
      answer(text === field.default ? { path, value: null } : { path, text });
    });
    return {
      element: input,
      note,
      isCheck: true,
      inputs: [input],
      focus: () => input.focus(),
      update: ({ answered, value, choices }) => {
        input.checked = (answered ?? value) === "true";
        const why = choices[String(!input.checked)]?.why_not;
        input.disabled = Boolean(why);
        note.textContent = why ? `Not possible: ${why}.` : "";
      },
    };
  },

  list(field, path, id) {
    const names = field.kind === "bool" ? [["true", "yes"], ["false", "no"]] : field.choices;
    const select = el("select", { id });
    const open = el("option", { value: "" }, "");
    const options = names.map(([value, text]) => el("option", { value }, field.kind === "bool" ? text : `${value}${text ? ` – ${text}` : ""}`));
    select.append(open, ...options);
    select.addEventListener("change", () => answer({ path, text: select.value }));
    return {
      element: select,
      inputs: [select],
      focus: () => select.focus(),
      update: ({ answered, value, choices }) => {
        const shown = names.find(([name]) => name === value);
        const now = shown ? (field.kind === "bool" ? shown[1] : shown[0]) : value;
        open.textContent = now ? `${now} (${field.derived ? "derived" : "default"})` : field.derived ? "derived at the start" : "none";
        names.forEach(([name, text], index) => {
          const why = choices[name]?.why_not;
          options[index].disabled = Boolean(why);
          const label = field.kind === "bool" ? text : `${name}${text ? ` – ${text}` : ""}`;
          options[index].textContent = why ? `${field.kind === "bool" ? text : name} – not possible: ${why}` : label;
        });
        select.value = answered ?? "";
      },
    };
  },

  rows(field, path, id) {
    const rows = field.choices.map(([value, text], index) => {
      const input = el("input", { type: "radio", name: id, value, id: `${id}-${index}` });
      const note = el("span.note", {});
      const row = el("label.row", { for: input.id }, input, el("span", { id: `${input.id}-text` }, el("b", {}, value), " ", el("span.soft", {}, text), note));
      input.addEventListener("change", () => answer({ path, text: value }));
      return { value, input, note, row };
    });
    return {
      element: el("div.rows", {}, rows.map((one) => one.row)),
      group: true,
      inputs: rows.map((one) => one.input),
      focus: () => (rows.find((one) => one.input.checked) ?? rows[0]).input.focus(),
      update: ({ answered, value, choices }) => {
        for (const one of rows) {
          one.input.checked = one.value === (answered ?? value);
          const { why_not: why, effect } = choices[one.value] ?? {};
          one.input.disabled = Boolean(why);
          one.row.classList.toggle("disabled", Boolean(why));
          one.note.textContent = why ? `Not possible: ${why}` : (effect ?? "");
        }
      },
    };
  },

  several(field, path, id) {
    const rows = field.choices.map(([value, text], index) => {
      const input = el("input", { type: "checkbox", value, id: `${id}-${index}` });
      input.addEventListener("change", () => {
        const chosen = rows.filter((one) => one.input.checked).map((one) => one.value);
        answer({ path, value: chosen.length ? chosen : null });
      });
      return { value, input, row: el("label.row", { for: input.id }, input, el("span", { id: `${input.id}-text` }, el("b", {}, value), " ", el("span.soft", {}, text))) };
    });
    return {
      element: el("div.rows", {}, rows.map((one) => one.row)),
      group: true,
      role: "group",
      inputs: rows.map((one) => one.input),
      focus: () => rows[0].input.focus(),
      update: ({ answered, value }) => {
        const now = (answered ?? value).split("\n");
        for (const one of rows) one.input.checked = now.includes(one.value);
      },
    };
  },

  tokenizer(field, path, id) {
    const ways = [
      ["bytes", "bytes", "257 entries; any text, long sequences"],
      ["bpe", "a new BPE vocabulary", "trained on this run's data"],
      ["named", "an existing tokenizer", "from a folder or the Hub"],
    ];
    const size = el("input.short", { type: "text", inputMode: "numeric", "aria-label": "Maximum vocabulary size", placeholder: "4096" });
    const name = el("input", { type: "text", "aria-label": "Folder or name on the Hub", placeholder: "gpt2", spellcheck: false });
    let picked = null;
    const rows = ways.map(([value, title, text], index) => {
      const input = el("input", { type: "radio", name: id, value, id: `${id}-${index}` });
      input.addEventListener("change", () => {
        picked = value;
        send();
      });
      return { value, input, row: el("label.row", { for: input.id }, input, el("span", { id: `${input.id}-text` }, el("b", {}, title), " ", el("span.soft", {}, text))) };
    });
    const send = (typing = false) => {
      const bpe = Number(size.value.replaceAll(",", "") || 4096);
      const value = picked === "bytes" ? "bytes" : picked === "bpe" ? { bpe: Number.isFinite(bpe) ? bpe : size.value } : name.value.trim() || "gpt2";
      answer({ path, value }, { typing });
    };
    size.addEventListener("input", () => send(true));
    name.addEventListener("input", () => send(true));
    return {
      element: el("div.rows", {}, rows.map((one) => one.row), size, name),
      group: true,
      inputs: rows.map((one) => one.input),
      focus: () => (rows.find((one) => one.input.checked) ?? rows[0]).input.focus(),
      update: () => {
        const { seen, raw } = draft;
        const bpe = seen.values?.["tokenizer.bpe"];
        const now = raw.tokenizer ?? (bpe ? { bpe } : seen.values?.tokenizer);
        picked = now === "bytes" || now === undefined ? "bytes" : typeof now === "object" ? "bpe" : "named";
        for (const one of rows) one.input.checked = one.value === picked;
        size.hidden = picked !== "bpe";
        name.hidden = picked !== "named";
        if (document.activeElement !== size) size.value = picked === "bpe" ? String(now.bpe) : "";
        if (document.activeElement !== name) name.value = picked === "named" ? String(now) : "";
      },
    };
  },
};

function offeredFor(field) {
  if (field.names !== "model") return null;
  const scores = field.path.includes("rewards") || field.path.includes("critic") || field.path.includes("reward");
  return [...(scores ? (data.reward_models ?? []) : []), ...(data.runs ?? [])].map((run) => run.path);
}

/** A list of entries with the same keys, such as the terms of a reward. */
export function makeEntries(section, prefix, templates, { title, about, fresh, shown = () => true }) {
  const list = el("div.stack", {});
  const derived = el("p.derived", {});
  const box = el("div.stack", {}, about.help && el("p.help", {}, sentence(about.help)), derived, list);
  let count = -1;
  let own = [];
  const current = () => prefix.split(".").reduce((node, step) => node?.[step], draft.raw);
  onLook(() => {
    const entries = current() ?? [];
    if (entries.length !== count) {
      count = entries.length;
      forgetFields(own);
      own = [];
      const cards = entries.map((_, index) => {
        const made = templates.map((field) => makeField(field, { path: field.path.replace(".N.", `.${index}.`) }));
        own.push(...made);
        const remove = el("button.quiet", { type: "button" }, "Remove");
        remove.addEventListener("click", () => answer({ path: prefix, value: current().filter((_, at) => at !== index) }));
        return el("fieldset.entry", {}, el("legend", {}, `${title} ${index + 1}`), made.map((one) => one.element), el("div", {}, remove));
      });
      const add = el("button", { type: "button" }, `Add a ${title.toLowerCase()}`);
      add.addEventListener("click", () => answer({ path: prefix, value: [...(current() ?? []), fresh()] }));
      fill(list, cards, el("div", {}, add));
      derived.textContent = about.derived && !entries.length ? `Derived: ${about.derived}.` : "";
      derived.hidden = !derived.textContent;
    }
    for (const one of own) {
      const index = Number(one.path.slice(prefix.length + 1).split(".")[0]);
      if (!shown(one.path.split(".").pop(), entries[index] ?? {})) one.element.hidden = true;
    }
    box.hidden = isOff(section);
  });
  return box;
}
