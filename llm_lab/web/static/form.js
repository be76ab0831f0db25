// The form of a run: four tabs of fields, made from the recipe schema.
import { api, data, el, fill, find, findAll, showError, toast } from "./lab.js";
import { answer, draft, forget, onLook, problems, restore, settled } from "./draft.js";
import { fields, makeEntries, makeField, sentence } from "./fields.js";
import { makeAdapterChoice, makeModelChoice, makeScratchChoice } from "./model_choice.js";
import { makeDatasets } from "./datasets.js";
import { makeXray } from "./xray.js";
import { makePlan } from "./plan.js";

const { form } = data;
const restored = await restore();
const sections = []; // {element, fields, more}

function makeSection(section) {
  const lists = [...new Set(section.fields.filter((field) => field.path.includes(".N.")).map((field) => field.path.split(".N.")[0]))];
  const single = section.fields.filter((field) => !field.path.includes(".N."));
  const made = single.map((field) => makeField(field));
  const common = made.filter((one) => one.field.common);
  const rest = made.filter((one) => !one.field.common);
  const parts = [];
  if (section.name === "model" && form.from_scratch) {
    parts.push(makeScratchChoice(made));
  } else if (section.name === "model") {
    parts.push(makeModelChoice(made[0]));
    rest.splice(0);
  }
  if (section.name === "lora") parts.push(makeAdapterChoice());
  else if (section.can_be_off) parts.push(makeSwitch(section));
  if (section.name === "data") parts.push(makeDatasets(section.fields.filter((field) => field.path.startsWith("data.N."))), form.trains ? makeXray() : null);
  parts.push(el("div.fields", {}, common.map((one) => one.element)));
  for (const list of lists.filter((name) => name !== "data")) {
    const templates = section.fields.filter((field) => field.path.startsWith(`${list}.N.`));
    parts.push(makeEntries(section.name, list, templates, { title: "Reward", about: section.lists[list], fresh: () => ({ name: "exact_match" }), shown: showsOption }));
  }
  const more = rest.filter((one) => one.element.parentElement === null || !one.element.closest(".model-choice"));
  const details = more.length ? el("details.more", {}, el("summary", {}, "More options"), more.map((one) => one.element)) : null;
  if (section.name === "model" && form.from_scratch) parts.push(details, makeDesign());
  else parts.push(details);
  const element = el("section.card.section", { "data-section": section.name }, el("h2", {}, section.title), section.help && section.name !== "model" && section.name !== "data" ? el("p.help", {}, sentence(section.help)) : null, parts);
  sections.push({ element, fields: made, more: details, own: more });
  return element;
}

/** A reward term shows the options that it has. */
function showsOption(key, term) {
  const kinds = { pattern: ["regex", "format"], length: ["length"], ngram: ["repetition"] };
  const options = data.reward_options ?? kinds;
  if (key in options) return options[key].includes(term.name) || term[key] !== undefined;
  const other = ["name", "model", "python"].filter((one) => term[one] !== undefined);
  return !["name", "model", "python"].includes(key) || !other.length || other.includes(key);
}

function makeSwitch(section) {
  const id = `switch-${section.name}`;
  const input = el("input", { type: "checkbox", id, role: "switch" });
  input.addEventListener("change", () => answer(input.checked ? { path: section.name, value: {} } : { path: section.name, off: true }));
  onLook(() => (input.checked = !(draft.seen.off ?? []).includes(section.name)));
  return el("label.check", { for: id }, input, el("span", {}, "On"));
}

function makeDesign() {
  const button = el("button", { type: "button" }, "Save these parts as a design");
  const name = el("input.short", { type: "text", "aria-label": "Name of the design", placeholder: "my-model" });
  let replace = false;
  button.addEventListener("click", async () => {
    try {
      await settled();
      const { config } = await api("/api/new/design", { body: { recipe: draft.raw, name: name.value.trim() || "my-model", replace } });
      toast(`Saved: ${config}/config.json`);
      replace = false;
    } catch (error) {
      showError(error);
      if (error.status === 409) {
        replace = true;
        button.textContent = "Replace the design";
      }
    }
  });
  const line = el("div.inline.design", {}, name, button);
  onLook(() => (line.hidden = Boolean(draft.raw.model?.checkpoint || draft.raw.model?.config)));
  return line;
}

for (const tab of form.tabs) fill(find(`#panel-${tab.name}`), tab.sections.map(makeSection));
const placed = form.placed.find((field) => field.path === "name");
fill(find("#plan"), makePlan(makeField(placed), goTo));

// --- problems: marks on the tabs, and links to the fields

const tabOf = (key) => {
  const holder = [...fields].filter((one) => key === one.path || key.startsWith(`${one.path}.`) || one.path.startsWith(`${key}.`))[0];
  return holder?.element.closest("[role=tabpanel]") ?? find(`[data-section="${CSS.escape(key.split(".")[0])}"]`)?.closest("[role=tabpanel]") ?? null;
};

function goTo(key) {
  endSearch();
  const panel = tabOf(key);
  if (panel) find(`#${panel.getAttribute("aria-labelledby")}`).click();
  const shown = fields.filter((one) => one.visible);
  const field = shown.find((one) => one.path === key) ?? shown.find((one) => one.path.startsWith(`${key}.`));
  for (let box = field?.element.parentElement; box; box = box.parentElement) if (box.tagName === "DETAILS") box.open = true;
  if (key === "data") find("#file")?.focus();
  else if (key === "model.checkpoint") (find(".model-choice .rows input") ?? find(".model-choice input"))?.focus();
  else field?.focus();
  (field?.element ?? find(`[data-section="${CSS.escape(key.split(".")[0])}"]`))?.scrollIntoView({ block: "center" });
}

onLook(() => {
  const wrong = problems();
  for (const tab of findAll("[role=tab]")) {
    const panel = tab.getAttribute("aria-controls");
    const count = wrong.filter((one) => one.key && tabOf(one.key)?.id === panel).length;
    const mark = find(".mark", tab);
    mark.hidden = !count;
    mark.textContent = count ? String(count) : "";
    mark.setAttribute("aria-label", `${count} missing or wrong`);
    mark.title = `${count} missing or wrong`;
  }
  for (const one of sections) {
    if (one.more) one.more.hidden = !one.own.some((field) => field.visible && field.found);
    if (one.more && one.own.some((field) => field.element.hasAttribute("data-invalid"))) one.more.open = true;
  }
  if (draft.seen.notice) toast(draft.seen.notice);
  draft.seen.notice = "";
});

// --- search

const search = find("#search");

function showHits() {
  const words = search.value.toLowerCase().trim();
  let hits = 0;
  for (const one of fields.filter((field) => field.path !== placed.path)) {
    one.found = !words || `${one.path} ${one.field.label} ${one.field.help}`.toLowerCase().includes(words);
    hits += words ? one.found && one.visible : 0;
    one.update();
  }
  document.body.classList.toggle("searching", Boolean(words));
  for (const one of sections) {
    one.element.hidden = Boolean(words) && !one.fields.some((field) => field.found && field.visible);
    if (one.more) {
      one.more.open = Boolean(words) && one.own.some((field) => field.found && field.visible);
      one.more.hidden = !one.own.some((field) => field.visible && field.found);
    }
  }
  find("#nothing").hidden = !words || hits > 0;
}
search.addEventListener("input", showHits);

/** Going to a field ends the search. */
function endSearch() {
  if (!search.value) return;
  search.value = "";
  showHits();
}
for (const tab of findAll("[role=tab]")) tab.addEventListener("click", endSearch);

// --- the next tab, and starting over

const tabs = findAll("[role=tab]");
const showStep = () => {
  const next = tabs[tabs.findIndex((tab) => tab.getAttribute("aria-selected") === "true") + 1];
  const button = next && el("button", { type: "button" }, `Next: ${form.tabs[tabs.indexOf(next)].title}`);
  button?.addEventListener("click", () => {
    next.click();
    scrollTo({ top: 0 });
    next.focus();
  });
  fill(find("#step"), button);
};
find("[role=tablist]").addEventListener("choose", showStep);
showStep();

const startOver = () => {
  forget();
  location.reload();
};
find("#again").addEventListener("click", startOver);
if (restored) {
  const button = el("button.quiet", { type: "button" }, "Start over");
  button.addEventListener("click", startOver);
  const note = find("#restored");
  fill(note, "Your earlier answers were kept. ", button);
  note.hidden = false;
}
