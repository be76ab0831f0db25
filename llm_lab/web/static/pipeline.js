// A recipe of several stages: what each does, its text to change and save, and a button that starts it.
import { api, codeBlock, data, el, fill, find, LabError, showError } from "./lab.js";
import { followLaunch } from "./launch.js";

const CHECK_MS = 400; // after the last key
const state = el("div", { role: "status" });
const button = find("#start");
const text = el("textarea.recipe-text", { spellcheck: false, "aria-label": "Recipe", wrap: "off" });
const name = el("input", { type: "text", id: "save-name", value: `my-${data.recipe.replace(/^my-/, "")}`, autocomplete: "off" });
const save = el("button.primary", { type: "submit" }, "Save the changed recipe");
const note = el("p.error", { role: "alert", hidden: true });
let editing = false;
let replace = false;

function showStages(stages, problems) {
  fill(
    find("#stages"),
    stages.map((stage, at) =>
      el(
        "section.card",
        {},
        el("div.label-row", {}, el("h2", {}, stage.name === stage.title ? stage.title : `${stage.name}: ${stage.title}`), el("button.quiet", { type: "button", "aria-label": `Edit ${stage.name}`, onclick: () => edit(at) }, "Edit")),
        stage.why_not && el("p.error", {}, stage.why_not),
        el("dl.facts.small", {}, stage.plan.lines.flatMap(([term, words, style]) => [el("dt", {}, term), el("dd", { class: style }, words)])),
      ),
    ),
  );
  fill(find("#problems"), problems.map((words) => el("p.notice.bad", {}, words)));
  save.disabled = problems.length > 0;
  button.disabled = editing || Boolean(problems.length || stages.some((stage) => stage.why_not));
}

const recipe = el("div", {}, el("div.label-row", {}, el("h3", {}, "Recipe"), el("button", { type: "button", onclick: () => edit() }, "Edit")), codeBlock(data.text));
fill(find("#recipe"), state, el("div", {}, el("h3", {}, "Command"), codeBlock(data.command)), recipe);
showStages(data.stages, data.problems);

/** Edit the text of the recipe, at one of its stages. */
function edit(stage = 0) {
  if (!editing) {
    editing = true;
    text.value = data.text;
    const form = el("form", {}, el("h3", {}, "Recipe"), text, el("div.field", {}, el("label", { for: "save-name" }, "Save it as"), name, el("p.help", {}, "It is written to configs/NAME.yaml; then you can start it.")), note, el("div.actions", {}, save, el("button", { type: "button", onclick: () => location.reload() }, "Discard the changes")));
    form.addEventListener("submit", keep);
    fill(recipe, form);
    button.disabled = true;
    button.title = "Save the changed recipe first.";
  }
  const begin = text.value.search(/^stages:/m);
  const entries = [...text.value.slice(begin).matchAll(/^ {0,4}- /gm)];
  const at = begin + (entries[stage]?.index ?? 0);
  text.focus();
  text.setSelectionRange(at, at);
  text.scrollTop = (text.value.slice(0, at).split("\n").length - 2) * parseFloat(getComputedStyle(text).lineHeight);
}

let waiting;
text.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(async () => {
    const checked = text.value;
    try {
      const { stages, problems } = await api("/api/new/pipeline", { body: { text: checked } });
      if (checked === text.value) showStages(stages, problems);
    } catch (error) {
      if (!(error instanceof LabError)) showError(error);
      else if (checked === text.value) fill(find("#problems"), el("p.notice.bad", {}, error.message));
      save.disabled = true;
    }
  }, CHECK_MS);
});
name.addEventListener("input", () => {
  replace = false;
  save.textContent = "Save the changed recipe";
});

async function keep(event) {
  event.preventDefault();
  note.hidden = true;
  try {
    const { address } = await api("/api/new/save-pipeline", { body: { text: text.value, name: name.value.trim(), replace } });
    location.assign(address);
  } catch (error) {
    note.hidden = false;
    note.textContent = error.message;
    if (error.status !== 409) return;
    replace = true;
    save.textContent = "Replace it";
  }
}

button.addEventListener("click", async () => {
  button.disabled = true;
  try {
    const { launch, command } = await api("/api/new/start-recipe", { body: { recipe: data.recipe } });
    await followLaunch(launch, command, state);
  } catch (error) {
    if (error instanceof LabError) fill(state, el("p.notice.bad", { role: "alert" }, error.message));
    else showError(error);
  } finally {
    button.disabled = false;
  }
});
