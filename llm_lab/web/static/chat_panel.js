// The panel at the side: the system prompt and the sampling settings, and the saved conversations.
import { ago, api, data, el, fill, find, showError, toast, withCode } from "./lab.js";
import { searchSettings } from "./search.js";
import { voiceSettings } from "./voice.js";
import { defaults, keep, modelOf, modeOf, messages, slots, state, turnsToSave } from "./chat_state.js";
import { announce } from "./chat_turns.js";

const NAMES = {
  temperature: "Temperature",
  top_p: "Top p",
  top_k: "Top k",
  max_new_tokens: "Maximum length",
  repetition_penalty: "Repetition penalty",
  seed: "Seed",
};
const SLIDERS = { temperature: [0, 2, 0.05], top_p: [0.05, 1, 0.05] };

// --- settings

/** Fill in the settings; changes take effect at once. */
export function showSettings() {
  const system = el("textarea", { id: "system", rows: "3", placeholder: "Instructions for the whole conversation", "aria-describedby": "system-why" });
  system.value = state.system;
  system.addEventListener("input", () => {
    state.system = system.value;
    keep();
  });
  const reset = el("button.quiet", { type: "button", onclick: () => (Object.assign(state.settings, defaults), showSettings(), keep()) }, "Reset to the defaults");
  fill(
    find("#settings-panel"),
    el("div.field", {}, el("label", { for: "system" }, "System prompt"), system, el("p.help", { id: "system-why" })),
    data.settings.map(settingField),
    reset,
    el("details", {}, el("summary", {}, "Web search"), searchSettings()),
    el("details", {}, el("summary", {}, "Voice"), voiceSettings()),
  );
  showSystem();
}

/** Show whether the model supports a system prompt. */
export function showSystem() {
  const field = find("#system");
  const slot = state.slots.a;
  if (!field || !slot) return;
  const why = slot.about?.no_system ?? (modeOf(slot) === "completion" ? "system: base models do not support a system prompt. Put instructions at the start of the prompt." : null);
  field.disabled = Boolean(why);
  find("#system-why").textContent = why ?? "";
}

function settingField(setting) {
  const id = `setting-${setting.name}`;
  const error = el("p.error", { id: `${id}-error`, role: "alert", hidden: true });
  const input = el("input", { id, type: "text", inputmode: setting.whole ? "numeric" : "decimal", "aria-describedby": `${id}-help ${id}-error`, placeholder: setting.name === "seed" ? "none" : "" });
  const slider = SLIDERS[setting.name] && el("input", { type: "range", "aria-label": `${NAMES[setting.name]}, slider` });
  if (slider) [slider.min, slider.max, slider.step] = SLIDERS[setting.name];
  const show = () => {
    const value = state.settings[setting.name];
    input.value = value ?? "";
    if (slider) slider.value = value;
  };
  const take = (text) => {
    const value = parse(setting, text);
    error.hidden = value !== undefined;
    error.textContent = error.hidden ? "" : `Allowed: ${setting.allowed}.`;
    field.toggleAttribute("data-invalid", !error.hidden);
    if (value === undefined) return;
    state.settings[setting.name] = value;
    if (slider) slider.value = value;
    keep();
  };
  input.addEventListener("input", () => take(input.value));
  slider?.addEventListener("input", () => {
    take(slider.value);
    input.value = slider.value;
  });
  const line = slider ? el("div.with-slider", {}, slider, input) : input;
  const field = el("div.field.setting", {}, el("label", { for: id }, NAMES[setting.name], el("code", {}, setting.name)), line, el("p.help", { id: `${id}-help` }, setting.help), error);
  show();
  return field;
}

/** The value of a field; undefined where it is not allowed, null for no seed. */
function parse(setting, text) {
  const given = text.trim().replaceAll("_", "");
  if (setting.name === "seed" && ["", "none", "off"].includes(given.toLowerCase())) return null;
  const value = Number(given);
  const fits = given !== "" && Number.isFinite(value) && value >= setting.minimum && value <= setting.maximum;
  return fits && (!setting.whole || Number.isInteger(value)) ? value : undefined;
}

// --- saved conversations

/** Fill the list of saved conversations. open(saved, name) shows one. */
export async function showSaved(open) {
  const panel = find("#saved-panel");
  const started = state.turns.length > 0;
  const save = el("button.primary", { type: "button", disabled: !started || Boolean(state.file), onclick: () => saveNow(open).catch(showError) }, state.file ? "Saved" : "Save this conversation");
  const exported = el("a.button", { href: "#", onclick: (event) => (event.preventDefault(), exportMarkdown()) }, "Export as Markdown");
  const hint = state.file ? `Saved as conversations/${state.file}.json; new messages are added to it.` : "Conversations are files in conversations/. `llm-lab chat` opens them with /load.";
  let rows = [];
  try {
    rows = (await api("/api/chat/conversations")).conversations;
  } catch (error) {
    showError(error);
  }
  fill(
    panel,
    el("div.actions", {}, save, started && exported),
    el("p.help", {}, withCode(hint)),
    rows.length ? el("ul.saved", {}, rows.map((row) => savedRow(row, open))) : el("p.soft", {}, "Nothing is saved yet."),
  );
}

let asking = null; // the conversation that the next click deletes, even after the list is redrawn

function savedRow(row, open) {
  const address = `/api/chat/conversations/${encodeURIComponent(row.name)}`;
  const load = async () => open(await api(address), row.name);
  const remove = el("button.quiet", { type: "button", "aria-label": `Delete “${row.title}”` }, asking === row.name ? "Really?" : "Delete");
  remove.addEventListener("click", async () => {
    if (asking !== row.name) {
      asking = row.name;
      remove.textContent = "Really?";
      setTimeout(() => {
        if (asking === row.name) asking = null;
        remove.textContent = "Delete";
      }, 4000);
      return;
    }
    asking = null;
    try {
      await api(address, { method: "DELETE" });
      if (state.file === row.name) state.file = null;
      await showSaved(open);
    } catch (error) {
      showError(error);
    }
  });
  const models = row.against ? `${row.model} | ${row.against}` : row.model;
  return el(
    "li",
    { "aria-current": row.name === state.file ? "true" : undefined },
    el("button.quiet.open", { type: "button", onclick: () => load().catch(showError) }, el("span.title", {}, row.title), el("small", {}, `${models} · ${row.turns} prompt${row.turns === 1 ? "" : "s"} · ${ago(row.time)}`)),
    el("span.row", {}, el("a.button.quiet", { href: `${address}/file`, download: "", "aria-label": `Download “${row.title}”` }, "JSON"), remove),
  );
}

/** Write the conversation to its file, or to a new one. */
export async function saveNow(open) {
  const sides = slots().map((key) => ({ mode: modeOf(state.slots[key]) ?? "chat", model: modelOf(state.slots[key]), messages: messages(key) }));
  const [first, against] = sides;
  const { turns } = state;
  const body = { ...first, name: state.file, system: state.system, settings: state.settings, against: against ?? null, turns: turnsToSave() };
  const { name, file } = await api("/api/chat/conversations", { body });
  if (state.turns !== turns) return; // another conversation was opened in the meantime
  if (!state.file) announce(`Saved as ${file}`);
  else if (state.file !== name) toast(`Saved as ${file}: ${state.file}.json has messages that are no longer in this conversation.`);
  state.file = name;
  keep();
  await showSaved(open);
}

function exportMarkdown() {
  const texts = state.turns.flatMap((turn) => [
    `**User**\n\n${turn.text}`,
    ...slots().flatMap((key) => {
      const given = turn.answers[key]?.variants[turn.answers[key].at];
      return given?.text ? [`**${given.label}**\n\n${given.text}`] : [];
    }),
  ]);
  const url = URL.createObjectURL(new Blob([`${texts.join("\n\n")}\n`], { type: "text/markdown" }));
  el("a", { href: url, download: `${state.file ?? "conversation"}.md` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
