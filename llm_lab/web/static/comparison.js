// The form of a sweep or a duel: the plan is checked as the user types, before anything runs.
import { api, codeBlock, data, el, fill, find, showError } from "./lab.js";
import { createPicker } from "./picker.js";
import { goToRun } from "./study_parts.js";

const isDuel = data.kind === "duel";
const form = find("#form");
const values = {
  kind: data.kind, recipe: "", other: "", preset: "", seeds: String(data.seeds), measure: "", name: "", jobs: "1", by: "both",
  ...data.given,
};

const field = (label, input, help, element = input) => {
  input.id ||= `field-${label.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`;
  input.setAttribute("aria-describedby", `${input.id}-help`);
  return el("div.field", {}, el("label", { for: input.id }, label), element, help ? el("p.help", { id: `${input.id}-help` }, help) : null);
};
const bound = (name, input, event = "input") => {
  input.value = values[name];
  input.addEventListener(event, () => {
    values[name] = input.value;
    if (name === "recipe") suggestKeys();
    check();
  });
  return input;
};
const text = (name, more = {}) => bound(name, el("input", { type: "text", autocomplete: "off", spellcheck: "false", ...more }));

/** A field with the recipes and runs of this folder to choose from. */
function recipeField(label, name, placeholder, help) {
  const take = (value) => {
    values[name] = value;
    if (name === "recipe") suggestKeys();
    check();
  };
  const picker = createPicker({
    letter: name, id: `field-${label.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`, what: "Recipes", placeholder, other: "the path of a recipe, or of a run",
    find: async () => data.recipes, onPick: take, onType: take,
  });
  picker.show(values[name]);
  return field(label, picker.input, help, picker.element);
}

const keyNames = el("datalist", { id: "key-names" });
const rows = el("div.rows");

function keyRow(row) {
  const key = el("input", { type: "text", list: "key-names", placeholder: "optimizer.learning_rate", "aria-label": "Key",
    autocomplete: "off", spellcheck: "false", value: row.key });
  const given = el("input", { type: "text", placeholder: isDuel ? "0.001,0.003" : "0.001,0.003,0.01",
    "aria-label": "Values, separated by commas", autocomplete: "off", spellcheck: "false", value: row.values });
  const remove = el("button.quiet", { type: "button", "aria-label": "Remove this key" }, "×");
  const line = el("div.row", {}, key, given, remove);
  key.addEventListener("input", () => { row.key = key.value; check(); });
  given.addEventListener("input", () => { row.values = given.value; check(); });
  remove.addEventListener("click", () => {
    values.keys.splice(values.keys.indexOf(row), 1);
    line.remove();
    check();
  });
  return line;
}

const addRow = () => {
  const row = { key: "", values: "" };
  values.keys.push(row);
  rows.append(keyRow(row));
  return row;
};
rows.append(...values.keys.map(keyRow));

const presets = el("select", {}, el("option", { value: "" }, "none: the keys below"),
  data.presets.map((one) => el("option", { value: one.name }, `${one.name}: ${one.about}`)));
const by = el("select", {}, el("option", { value: "both" }, "both: at equal tokens and at equal time"),
  el("option", { value: "tokens" }, "tokens"), el("option", { value: "time" }, "time"));

form.append(
  keyNames,
  recipeField(isDuel ? "First recipe" : "Recipe", "recipe", "Choose a recipe", "A recipe, or a run: then its recipe is used."),
  isDuel ? recipeField("Second recipe", "other", "none: two values of a key, below", "Leave it empty to compare two values of one key.") : "",
  isDuel ? "" : field("Preset", bound("preset", presets, "change"), "The usual comparisons, derived from the recipe."),
  el("fieldset.field", {},
    el("legend.label", {}, isDuel ? "Keys" : "Keys and values"),
    rows,
    el("div.actions", {}, el("button", { type: "button", onclick: () => { addRow(); find(".row:last-child input", rows).focus(); } }, "Add a key")),
    el("p.help", {}, isDuel
      ? "Two values of one key are compared. A key with one value changes both recipes."
      : "Several values are compared; several keys make a grid. A key with one value changes the recipe for all runs.")),
  field("Seeds", text("seeds", { inputmode: "numeric" }), isDuel
    ? "Runs of each recipe. With fewer than six, no difference can be distinguished from chance."
    : "Runs of each configuration. One shows large differences; for small ones, use three or more."),
  el("details", {}, el("summary", {}, "More options"),
    isDuel ? field("How to compare", bound("by", by, "change")) : "",
    field("Measure", text("measure", { placeholder: "the held-out result of the stage" }), "The result to compare by, such as eval_loss."),
    field("Name", text("name", { placeholder: "derived from the recipe and the keys" }), "The name of its folder in checkpoints/. The name of an existing one resumes it."),
    field("Runs at a time", text("jobs", { inputmode: "numeric" }), "They share the cores; with several GPUs, each run gets one.")),
);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});

const button = el("button.primary", { type: "submit", disabled: true }, "Start");
button.setAttribute("form", "form");
fill(find("#start"), el("div.actions", {}, button));

let asked = 0;
let waiting;
function check() {
  clearTimeout(waiting);
  button.disabled = true;
  waiting = setTimeout(checkNow, 350);
}

const isEmpty = () => !values.recipe.trim() || !(values.preset || values.other.trim() || values.keys.some((row) => row.key && row.values));

async function checkNow() {
  const mine = ++asked;
  if (values.recipe.trim()) find("#plan").setAttribute("aria-busy", "true");
  try {
    const found = await api("/api/experiments/compare/check", { body: values });
    if (mine === asked) show(found);
  } catch (error) {
    showError(error);
  }
}

function show({ command, plan, problems }) {
  find("#plan").removeAttribute("aria-busy");
  fill(find("#command"), codeBlock(command));
  button.disabled = !plan;
  if (!plan) {
    const hint = isDuel ? "Choose a recipe, and a second one or two values of a key." : "Choose a recipe, and a preset or a key with its values.";
    fill(find("#plan"), isEmpty() ? el("p.soft", {}, hint) : problems.map((problem) => el("p.notice.bad", {}, problem.text)));
    return;
  }
  const facts = plan.rows.filter(([name]) => name !== "note");
  fill(find("#plan"),
    el("dl.facts", {}, facts.flatMap(([name, said]) => [el("dt", {}, name), el("dd", {}, said)])),
    el("p.small.soft.labels", {}, plan.configurations.slice(0, 8).join(" · ") + (plan.configurations.length > 8 ? " …" : "")),
    plan.rows.filter(([name]) => name === "note").map(([, said]) => el("p.notice.warn.small", {}, said)));
}

async function suggestKeys() {
  try {
    const { keys } = await api("/api/experiments/keys", { body: { recipe: values.recipe } });
    fill(keyNames, keys.map((one) => el("option", { value: one.name }, one.help)));
  } catch {
    fill(keyNames); // the check reports what is wrong with the recipe
  }
}

async function start() {
  if (button.disabled) return;
  button.disabled = true;
  button.textContent = "Starting …";
  try {
    await goToRun(await api("/api/experiments/compare/start", { body: values }));
  } catch (error) {
    showError(error);
    button.textContent = "Start";
    button.disabled = false;
  }
}

if (values.recipe) suggestKeys();
checkNow();
