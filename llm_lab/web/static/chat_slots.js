// The models of the chat on the server: loading them, what is known about them, freeing their memory.
import { LabError, api, fill, find, number, stream, withCode } from "./lab.js";
import { showHint } from "./chat_box.js";
import { showSystem } from "./chat_panel.js";
import { followModels, modelOf, modeOf, slots, state } from "./chat_state.js";

const GONE = "The server does not answer. Start it again with `llm-lab web`: this conversation stays here.";
const loads = {}; // slot: the AbortController of a model that is loading

export const textOf = (error) => (error instanceof LabError ? error.message : error instanceof TypeError ? GONE : error.message);

/** Load the model of a slot. */
export async function loadModel(key) {
  const slot = state.slots[key];
  loads[key]?.abort();
  const { signal } = (loads[key] = new AbortController());
  setStatus(slot, "loading", "Loading …");
  try {
    await withTrust(slot, (trust) => stream("/api/chat/load", { slot: key, model: modelOf(slot), trust }, (line) => takeProgress(slot, line), { signal }));
  } catch (error) {
    if (error.name !== "AbortError") setStatus(slot, "failed", textOf(error));
  }
}

/** Handle a line about the progress of loading. */
export function takeProgress(slot, { waiting, loading, about, result }) {
  if (waiting) setStatus(slot, "loading", "Waiting …");
  if (loading !== undefined) setStatus(slot, "loading", loading ? `Downloading ${number(loading / 1e6, 3)} MB` : "Loading …");
  if (about ?? result?.mode) {
    slot.about = about ?? result;
    const { parameters, context, device, dtype } = slot.about;
    const facts = [`${short(parameters)} parameters`, context && `context ${number(context)}`, `${dtype} on ${device}`];
    setStatus(slot, "ready", facts.filter(Boolean).join(" · "));
    followModels();
    showSystem();
    showHint();
  }
}

const short = (count) => (count >= 1e9 ? `${number(count / 1e9, 3)} B` : count >= 1e6 ? `${number(count / 1e6, 3)} M` : `${number(count / 1e3, 3)} K`);

/** Do something with a model; if it comes with its own code, ask, and do it again after the user's yes. */
export async function withTrust(slot, work) {
  try {
    return await work(slot.trust);
  } catch (error) {
    if (error.problems?.[0]?.key !== "trust_remote_code" || slot.trust) throw error;
    const dialog = find("#trust");
    find("#trust-text").textContent = error.message;
    dialog.returnValue = "no";
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    if (dialog.returnValue !== "yes") throw error;
    slot.trust = true;
    return work(true);
  }
}

/** Free the memory of a slot's model. */
export async function unload(key) {
  loads[key]?.abort();
  const slot = state.slots[key];
  await api("/api/chat/unload", { body: { slot: key } });
  if (slot) setStatus(slot, "idle", "");
}

function setStatus(slot, status, detail) {
  Object.assign(slot, { status, detail });
  const key = slots().find((one) => state.slots[one] === slot);
  if (key) showStatus(key);
}

export function showStatus(key) {
  const slot = state.slots[key];
  const place = find(`#slot-${key}`);
  if (!place) return;
  const mode = { chat: "chat model", completion: "base model" }[modeOf(slot)];
  find(".state", place).className = `state ${slot.status}`;
  const texts = slot.status === "failed" || slot.status === "loading" ? [slot.detail] : [mode, slot.detail || "not loaded yet"];
  find(".state", place).title = texts.filter(Boolean).join(" · ");
  fill(find(".state", place), withCode(find(".state", place).title));
  find(".eject", place).hidden = slot.status !== "ready";
}
