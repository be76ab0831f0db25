// One experiment: its options as a form, checked as the user types, the exact command, Start, and earlier results.
import { api, codeBlock, data, el, fill, find, showError, watch } from "./lab.js";
import { createPicker } from "./picker.js";
import { goToRun, inline, launched, resultList } from "./study_parts.js";

fill(find("#summary"), data.error ? `It can't run: ${data.error}` : inline(data.summary));
fill(find("#about"), el("h2", {}, "What it does"), ...data.about.split(/\n\s*\n/).filter(Boolean).map((part) => el("p", {}, inline(part.replace(/\s+/g, " ")))));
if (!data.about) find("#about").hidden = true;

const form = find("#options");
const typed = { ...Object.fromEntries(data.options.map((option) => [option.name, option.default])), ...data.given };
const fields = new Map();

function control(option) {
  const id = `option-${option.name}`;
  const more = { id, name: option.name, "aria-describedby": `${id}-help ${id}-error` };
  if (option.kind === "bool" || option.kind === "choice") {
    const choices = option.kind === "bool" ? ["true", "false"] : option.choices;
    const select = el("select", more, choices.map((one) => el("option", { value: one }, one)));
    select.value = typed[option.name];
    return select;
  }
  if (option.is_model) {
    const take = (name) => {
      typed[option.name] = name || "null";
      check();
    };
    const picker = createPicker({ letter: option.name, id, placeholder: isOpen(option) ? "left out" : "Choose a model", onPick: take, onType: take });
    picker.show(isOpen(option) && typed[option.name] === "null" ? "" : typed[option.name]);
    picker.input.name = option.name;
    picker.input.setAttribute("aria-describedby", more["aria-describedby"]);
    return picker.input;
  }
  const mode = { int: "numeric", float: "decimal" }[option.kind];
  return el("input", { type: "text", inputmode: mode, autocomplete: "off", spellcheck: "false", value: isOpen(option) && typed[option.name] === "null" ? "" : typed[option.name],
    placeholder: option.required ? "required" : isOpen(option) ? "left out" : option.default, ...more });
}

/** Whether an option may be left out, and is by default. */
function isOpen(option) {
  return option.default === "null";
}

/** What may be typed; empty for a list of choices, which shows it itself. */
function helpOf({ kind, allowed, is_model: isModel }) {
  if (isModel) return "A run, a folder, or a name on the Hub.";
  if (kind === "bool" || kind === "choice") return "";
  return kind === "list" ? "Values separated by commas." : `${allowed[0].toUpperCase()}${allowed.slice(1).replace(", or null", ", or left out")}.`;
}

for (const option of data.options) {
  const input = control(option);
  const error = el("p.error", { id: `${input.id}-error` });
  const field = el("div.field", {},
    el("label", { for: input.id }, `${option.help[0]?.toUpperCase() ?? ""}${option.help.slice(1)}`, el("code", {}, option.name)),
    input.closest(".picker") ?? input,
    el("p.help", { id: `${input.id}-help` }, helpOf(option)),
    error,
  );
  if (!option.is_model) input.addEventListener("input", () => {
    typed[option.name] = isOpen(option) && !input.value.trim() ? "null" : input.value;
    check();
  });
  fields.set(option.name, { field, error });
  form.append(field);
}
if (!data.options.length) form.append(el("p.soft", {}, "It has no options."));
form.addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});

const button = el("button.primary", { type: "submit", disabled: Boolean(data.error) }, "Start");
button.setAttribute("form", "options");
const overwrite = el("input", { type: "checkbox", id: "overwrite" });
const problems = el("div", { role: "alert" });
fill(find("#start"),
  data.own ? el("p.small.soft", {}, `This runs the code in ${data.file}.`) : null,
  data.takes ? el("p.small.soft", {}, `With its default options it takes ${data.takes}.`) : null,
  el("p.small.soft", {}, "To resume a stopped study, start it again with the same options."),
  el("label.check", {}, overwrite, el("span", {}, "Replace the last run of this study")),
  el("div.actions", {}, button),
  problems,
);

let asked = 0;
let waiting;
function check() {
  clearTimeout(waiting);
  waiting = setTimeout(checkNow, 120);
}

async function checkNow() {
  const mine = ++asked;
  try {
    const found = await api("/api/experiments/check", { body: { name: data.name, options: typed } });
    if (mine === asked) show(found);
  } catch (error) {
    showError(error);
  }
}

function show({ command, problems: found }) {
  fill(find("#command"), codeBlock(command + (overwrite.checked ? " --overwrite" : "")));
  for (const [name, { field, error }] of fields) {
    const own = found.filter((problem) => (problem.key ?? "").split(".")[0] === name);
    field.toggleAttribute("data-invalid", own.length > 0);
    find("input, select", field).setAttribute("aria-invalid", String(own.length > 0));
    error.textContent = own.map((problem) => problem.text).join(" ");
  }
  const others = found.filter((problem) => !fields.has((problem.key ?? "").split(".")[0]));
  fill(problems, others.map((problem) => el("p.notice.bad", {}, problem.text)));
  button.disabled = found.length > 0;
}

async function start() {
  button.disabled = true;
  button.textContent = "Starting …";
  try {
    const body = { name: data.name, options: typed, overwrite: overwrite.checked };
    await goToRun(await api("/api/experiments/start", { body }));
  } catch (error) {
    fill(problems, el("p.notice.bad", {}, error.message));
    button.textContent = "Start";
    button.disabled = false;
  }
}

overwrite.addEventListener("change", checkNow);
if (!data.error) checkNow();

let results = data.earlier;
let commands = [];
const list = () => fill(find("#results"), resultList([...launched(commands, data.name), ...results], "This study has not run here yet."));
list();
watch(`results:${data.name}`, (rows) => rows && list((results = rows)));
watch("launches", (rows) => rows && list((commands = rows)));
