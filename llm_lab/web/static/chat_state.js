// The state of a chat: two slots for models, settings, and turns. A turn has the user's words and, for each slot, the
// answers to them, one of which counts. The page holds all of it, and sends what a model needs.
import { data } from "./lab.js";

export const defaults = Object.fromEntries(data.settings.map(({ name, default: value }) => [name, value]));
export const state = { slots: { a: null, b: null }, system: "", settings: { ...defaults }, turns: [], file: null };

const longest = defaults.max_new_tokens;

/** Adapt the length of replies to the models, unless the user chose it: small contexts have no room for long ones. */
export function followModels() {
  const usual = Math.min(longest, ...slots().map((key) => state.slots[key].about?.max_new_tokens ?? longest));
  const follows = state.settings.max_new_tokens === defaults.max_new_tokens;
  defaults.max_new_tokens = usual;
  if (follows) state.settings.max_new_tokens = usual;
  const field = document.querySelector("#setting-max_new_tokens");
  if (follows && field) field.value = usual;
}

export const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

/** The slots in use: "a", or "a" and "b". */
export const slots = () => Object.keys(state.slots).filter((key) => state.slots[key]);

/** A slot for a model, made from what the server knows about it (see describe_model). */
export function makeSlot(found) {
  return { ...found, about: null, status: "idle", detail: "", trust: false };
}

/** What the server loads for a slot: a run's name, the folder of a checkpoint, a folder or a Hub name. */
export const modelOf = (slot) => (slot.at === null ? slot.name : slot.points[slot.at].model);

/** The display name of a slot's model. */
export const labelOf = (slot) => (slot.step === null ? slot.name : `${slot.name} step ${slot.step.toLocaleString("en-US")}`);

/** "chat", "completion", or null for a model that has not been loaded. */
export const modeOf = (slot) => slot.about?.mode ?? (slot.chat === null ? null : slot.chat ? "chat" : "completion");

/** The answer of a turn that counts, or undefined. */
export function answerOf(turn, key) {
  const answers = turn.answers[key];
  return answers?.variants[answers.at];
}

/** Whether only one of the models can chat: then the second one gets only the last message, as in the terminal. */
export function modesDiffer() {
  const { a, b } = state.slots;
  return Boolean(a && b && modeOf(a) && modeOf(b) && modeOf(a) !== modeOf(b));
}

/** The messages before a turn, as a slot's model gets them. */
export function messagesBefore(turn, key) {
  if (key === "b" && modesDiffer()) return [];
  const mode = modeOf(state.slots[key]);
  return messages(key, state.turns.slice(0, state.turns.indexOf(turn)), mode);
}

/** The messages of a slot: those of turns with an answer in its mode. */
export function messages(key, turns = state.turns, mode = modeOf(state.slots[key])) {
  return turns.flatMap((turn) => {
    const given = answerOf(turn, key);
    if (!given || given.state === "writing" || (!given.text && given.state !== "done") || (mode && given.mode && given.mode !== mode)) return [];
    return [
      { role: "user", content: turn.text, ...(given.sources?.length ? { sources: given.sources } : {}) },
      { role: "assistant", content: given.text, ...(given.ended ? { ended: true } : {}) },
    ];
  });
}

/** The turns as they are saved: with every complete answer, also those that do not count. */
export function turnsToSave() {
  return state.turns.map(({ text, seed, answers }) => {
    const kept = {};
    for (const [key, { variants, at }] of Object.entries(answers)) {
      const complete = variants.filter((one) => one.state !== "writing");
      if (complete.length) kept[key] = { variants: complete, at: Math.max(0, complete.indexOf(variants[at])) };
    }
    return { text, seed, answers: kept };
  });
}

/** The turns of a saved conversation. */
export function turnsOf(saved) {
  if (!saved.turns) return turnsOfMessages(saved);
  return saved.turns.map((turn) => ({ ...turn, hits: Object.values(turn.answers)[0]?.variants[0].sources ?? [] }));
}

/** The turns of a file with messages only. A second model that joined late has only some of the first one's prompts. */
function turnsOfMessages(saved) {
  const turns = sideOf("a", saved);
  let end = turns.length;
  for (const turn of sideOf("b", saved.against).reverse()) {
    const at = turns.slice(0, end).findLastIndex(({ text }) => text === turn.text);
    if (at < 0) turns.splice(end, 0, turn);
    else {
      turns[at].answers.b = turn.answers.b;
      end = at;
    }
  }
  return turns;
}

function sideOf(key, side) {
  const turns = [];
  for (let index = 0; index < (side?.messages.length ?? 0); index += 2) {
    const [asked, answered] = side.messages.slice(index, index + 2);
    const given = { model: side.model, label: side.model, mode: side.mode, text: answered.content, ended: answered.ended ?? false };
    const variants = [{ ...given, sources: asked.sources ?? [], state: "done" }];
    turns.push({ text: asked.content, hits: asked.sources ?? [], seed: newSeed(), answers: { [key]: { variants, at: 0 } } });
  }
  return turns;
}

const KEY = "chat";
let timer;

/** Store the conversation in this tab, where it survives a reload, and a restart of the server. */
export function keep() {
  clearTimeout(timer);
  timer = setTimeout(keepNow, 300);
}

export function keepNow() {
  const { system, settings, turns, file } = state;
  const names = Object.fromEntries(slots().map((key) => [key, modelOf(state.slots[key])]));
  try {
    sessionStorage.setItem(KEY, JSON.stringify({ names, system, settings, turns, file }));
  } catch {
    // Without storage, or if it is full, the conversation lasts as long as the page.
  }
}

/** The conversation stored in this tab, or null. */
export function kept() {
  try {
    const found = JSON.parse(sessionStorage.getItem(KEY));
    if (!found || !Array.isArray(found.turns)) return null;
    for (const turn of found.turns) {
      turn.waits = false;
      for (const { variants } of Object.values(turn.answers)) {
        for (const one of variants) if (one.state === "writing") one.state = "stopped";
      }
    }
    return found;
  } catch {
    return null;
  }
}
