// The draft of a run: the answers so far, kept in the browser, and what the server derives from them.
import { api, data, LabError, showError } from "./lab.js";

const KEPT = `draft:${location.search}`;
const TYPING_MS = 250;
const AGAIN_MS = 2000;
const listeners = new Set();
let pending = [];
let asking = null;
let timer;

export const draft = { raw: data.raw, seen: data.first, refused: [] };

/** Call a listener with the draft now, and whenever its values change. Returns a function that unsubscribes. */
export function onLook(listener) {
  listeners.add(listener);
  listener(draft);
  return () => listeners.delete(listener);
}

/** Answer a key: {path, text} as typed, {path, value} as JSON, {path, off: true} to switch a group off. */
export function answer(change, { typing = false } = {}) {
  pending = [...pending.filter((one) => one.path !== change.path || "value" in one), change];
  draft.refused = [];
  clearTimeout(timer);
  timer = setTimeout(ask, typing ? TYPING_MS : 0);
}

/** Wait until the server has seen every answer. */
export async function settled() {
  clearTimeout(timer);
  while (asking || pending.length) await (asking ?? ask());
}

/** Show problems that were only found at the start, until the next answer. */
export function refuse(problems) {
  draft.seen.checked = [];
  draft.refused = problems;
  notify();
}

/** All problems to show: of the answers, of the data and models, and of a start that was refused. */
export function problems() {
  const found = [...draft.seen.problems, ...(draft.seen.checked ?? []), ...draft.refused];
  return found.filter((one, index) => found.findIndex((other) => other.text === one.text) === index);
}

/** Whether a problem only says that a first answer is still missing. */
export const isMissing = ({ key }) => (key === "model.checkpoint" && !draft.raw.model) || (key === "data" && !draft.raw.data?.length);

/** Add the results of the longer check to the last ones. */
export function addToLook(found) {
  draft.seen = { ...draft.seen, ...found, notice: "" };
  notify();
}

function notify() {
  for (const listener of listeners) listener(draft);
}

function ask() {
  if (asking) return asking;
  asking = exchange().finally(() => {
    asking = null;
    if (pending.length) timer = setTimeout(ask, lost ? AGAIN_MS : 0);
  });
  return asking;
}

let lost = false;

async function exchange() {
  const changes = pending;
  pending = [];
  try {
    draft.seen = await api("/api/new/look", { body: { recipe: draft.raw, changes } });
    draft.raw = draft.seen.raw;
    lost = false;
    keep();
    notify();
  } catch (error) {
    if (error instanceof LabError) showError(error);
    else {
      lost = true; // the server can't be reached: the answers are sent again
      pending = [...changes, ...pending];
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }
}

function keep() {
  try {
    localStorage.setItem(KEPT, JSON.stringify(draft.raw));
  } catch {
    // Without storage the draft lasts as long as the page.
  }
}

/** Delete the stored draft: it was started, or the user starts over. */
export function forget() {
  localStorage.removeItem(KEPT);
}

/** Restore the draft that was stored when the page was left. Returns whether there was one. */
export async function restore() {
  let kept = null;
  try {
    kept = JSON.parse(localStorage.getItem(KEPT));
  } catch {
    return false;
  }
  if (kept?.stage !== draft.raw.stage || JSON.stringify(kept) === JSON.stringify(draft.raw)) return false;
  try {
    draft.seen = await api("/api/new/look", { body: { recipe: kept, changes: [] } });
    draft.raw = draft.seen.raw;
    return true;
  } catch {
    forget();
    return false;
  }
}

/** The value at a dotted path of the answers. */
export const at = (path) => path.split(".").reduce((node, step) => node?.[step], draft.raw);
