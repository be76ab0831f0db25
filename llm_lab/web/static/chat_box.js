// The box at the bottom: the message, the search button, the microphone.
import { find, toast } from "./lab.js";
import { labelOf, modeOf, state } from "./chat_state.js";
import { announce } from "./chat_turns.js";
import { privacyNotice } from "./search.js";
import { createMicrophone } from "./voice.js";

export const box = find("#message");
let conversation = { send: async () => {}, stop() {}, isRunning: () => false };

/** Show what is being done with a message. */
export function connect(given) {
  conversation = given;
}

export const searching = () => find("#search").getAttribute("aria-pressed") === "true";

export function setSearching(on) {
  find("#search").setAttribute("aria-pressed", String(on));
  showHint();
}

/** Show what the keys do now, and what the box is for. */
export async function showHint() {
  const hint = find("#hint");
  const { a, b } = state.slots;
  const completion = Boolean(a) && modeOf(a) === "completion";
  box.placeholder = completion ? "The beginning of a text" : a ? `Message ${b ? `${labelOf(a)} and ${labelOf(b)}` : labelOf(a)}` : "Choose a model first";
  const globe = find("#search");
  globe.disabled = completion;
  globe.title = completion ? "Base models continue a text: they can't use search results" : "Search the web for this message";
  if (completion) globe.setAttribute("aria-pressed", "false");
  hint.classList.toggle("warn", searching());
  if (searching()) hint.textContent = await privacyNotice().catch((error) => error.message);
  else if (conversation.isRunning()) hint.textContent = b ? "A answers first, then B. Esc stops." : "Esc stops.";
  else hint.textContent = completion ? "Enter continues the text, Shift+Enter: new line" : "Enter sends, Shift+Enter: new line";
}

/** Make the box as high as its text. */
export function fit() {
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, innerHeight * 0.4)}px`;
}

box.addEventListener("input", fit);
box.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!conversation.isRunning()) conversation.send(box.value);
  }
});
find("#composer").addEventListener("submit", (event) => {
  event.preventDefault();
  conversation.send(box.value).then(() => box.focus());
});
find("#stop").addEventListener("click", () => {
  conversation.stop();
  box.focus();
});
find("#search").addEventListener("click", () => {
  setSearching(!searching());
  box.focus();
});

const microphone = createMicrophone({
  onText(text) {
    if (!text) return toast("Nothing was heard.");
    box.value = `${box.value.trimEnd()} ${text}`.trim();
    fit();
    box.focus();
  },
  onState(now) {
    const button = find("#microphone");
    const label = { asking: "Cancel: asking for the microphone", recording: "Stop the recording", transcribing: "Cancel: transcribing" }[now] ?? "Speak the message";
    button.className = `quiet icon ${now}`;
    button.title = label;
    button.setAttribute("aria-label", label);
    button.setAttribute("aria-pressed", String(now === "recording"));
    if (now !== "idle") announce({ asking: "Allow the microphone", recording: "Recording", transcribing: "Transcribing" }[now]);
  },
  onError: (error) => toast(error.message, "bad"),
});
find("#microphone").addEventListener("click", () => microphone.toggle());
