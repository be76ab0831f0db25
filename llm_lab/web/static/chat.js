// The chat page: choosing models, sending a message, and what runs while an answer arrives.
import { api, data, el, fill, find, number, showError, stream, toast } from "./lab.js";
import { box, connect, fit, searching, setSearching, showHint } from "./chat_box.js";
import { loadModel, showStatus, takeProgress, textOf, unload, withTrust } from "./chat_slots.js";
import { createPicker } from "./picker.js";
import { saveNow, showSaved, showSettings, showSystem } from "./chat_panel.js";
import { answerOf, keep, keepNow, kept, labelOf, makeSlot, messagesBefore, modelOf, modeOf, newSeed, slots, state, turnsOf } from "./chat_state.js";
import { announce, announceAnswer, drawSoon, icon, isAtEnd, scrollToEnd, showTurn, showTurns } from "./chat_turns.js";
import { reasonToSearch, search } from "./search.js";
import { speak, stopSpeaking } from "./voice.js";

const pickers = {};
let running = null; // the AbortController of the current answer
let finished = Promise.resolve();

// --- models

/** Put a model into a slot. Returns whether one has that name. */
async function choose(key, name, { step = null, load = true } = {}) {
  let found;
  try {
    found = await api("/api/chat/model", { body: { model: name } });
  } catch (error) {
    pickers[key]?.show(state.slots[key]?.name ?? "");
    toast(textOf(error), "bad");
    return false;
  }
  if (step !== null) {
    const at = found.points.findIndex((point) => point.name === found.name && point.number === step);
    if (at >= 0) Object.assign(found, { at, step: found.points[at].step });
    else toast(`${found.name} has no checkpoint of step ${number(step)}.`, "bad");
  }
  stop();
  if (state.slots[key]?.status === "loading") await unload(key);
  state.slots[key] = makeSlot(found);
  showModels();
  if (load) loadModel(key);
  return true;
}

/** Show the fields of the models, the slider, and everything that depends on them. */
function showModels() {
  const two = slots().length > 1;
  fill(find("#slots"), slots().map((key) => {
    pickers[key] ??= createPicker({ letter: key, label: key === "a" ? "Model" : "Second model", onPick: (name) => choose(key, name).then(() => box.focus()) });
    pickers[key].show(state.slots[key].name);
    const eject = el("button.quiet.icon.eject", { type: "button", title: "Free its memory", "aria-label": `Unload ${state.slots[key].name}`, onclick: () => unload(key).catch(showError) }, icon("eject"));
    const close = key === "b" && el("button.quiet.icon", { type: "button", title: "Close the comparison", "aria-label": "Close the comparison", onclick: closeComparison }, icon("close"));
    return el("div.slot", { id: `slot-${key}` }, two && el("span.letter", {}, key.toUpperCase()), el("div", {}, pickers[key].element, el("p.state", { role: "status" })), eject, close);
  }));
  slots().forEach(showStatus);
  find("#chat").classList.toggle("comparing", two);
  find("#compare").hidden = two;
  showTime();
  showSystem();
  showHint();
  showConversation();
  showAddress();
  keep();
}

function showAddress() {
  const { a, b } = state.slots;
  if (!a) return;
  const query = new URLSearchParams({ model: a.name });
  if (a.step !== null) query.set("step", a.step);
  if (b) query.set("against", modelOf(b));
  history.replaceState(null, "", `/chat?${query}${location.hash}`);
  document.title = `${labelOf(a)} · Chat · LLM Lab`;
}

async function startComparison() {
  const { a } = state.slots;
  const name = a?.base ?? a?.name;
  if (!name || !(await choose("b", name))) return;
  if (!a.base) pickers.b.open();
}

async function closeComparison() {
  stop();
  await unload("b").catch(showError);
  state.slots.b = null;
  showModels();
  box.focus();
}

// --- the same prompt, by another checkpoint

let timer;

function showTime() {
  const slot = state.slots.a;
  const points = slot?.points ?? [];
  find("#time").hidden = points.length < 2 || slot.at === null;
  if (find("#time").hidden) return;
  const range = find("#time-range");
  range.max = points.length - 1;
  range.value = slot.at;
  fill(find("#time-points"), points.map((_, index) => el("option", { value: String(index) })));
  showPoint();
}

function showPoint() {
  const { points } = state.slots.a;
  const at = Number(find("#time-range").value);
  find("#time-label").textContent = points[at].label;
  find("#time-range").setAttribute("aria-valuetext", points[at].label);
  find("#earlier").disabled = at === 0;
  find("#later").disabled = at === points.length - 1;
}

function moveTo(index) {
  const slot = state.slots.a;
  if (!slot || find("#time").hidden) return;
  const at = Math.min(Math.max(index, 0), slot.points.length - 1);
  find("#time-range").value = at;
  showPoint();
  clearTimeout(timer);
  timer = setTimeout(() => travel(at), 250);
}

async function travel(at) {
  const { points, trust, at: before, base, prompts } = state.slots.a;
  if (at === before) return;
  const { name, step, chat } = points[at];
  state.slots.a = { ...makeSlot({ name, step, points, at, base, prompts, chat }), trust };
  showModels();
  const turn = state.turns.at(-1);
  if (!turn) return;
  const known = turn.answers.a?.variants.findIndex((one) => one.model === modelOf(state.slots.a) && one.state === "done") ?? -1;
  stop();
  await finished;
  if (known >= 0) chooseVariant(turn, "a", known);
  else await run((signal) => answer(turn, "a", signal));
}

// --- messages

const actions = {
  edit(turn, text) {
    stop();
    finished.then(() => {
      state.turns.length = state.turns.indexOf(turn);
      showConversation();
      send(text);
    });
  },
  regenerate(turn, key) {
    if (state.settings.temperature < 1e-4) toast("Temperature is 0, so the reply is the same again.");
    else if (state.settings.seed !== null) toast("The seed is fixed, so the reply is the same again.");
    turn.seed = newSeed();
    run((signal) => answer(turn, key, signal));
  },
  choose: chooseVariant,
  async speak(text, button) {
    if (button.getAttribute("aria-pressed") === "true") return stopSpeaking();
    button.setAttribute("aria-pressed", "true");
    try {
      await speak(text);
    } catch (error) {
      toast(error.message, "bad");
    } finally {
      button.setAttribute("aria-pressed", "false");
    }
  },
};

function chooseVariant(turn, key, index) {
  turn.answers[key].at = Math.min(Math.max(index, 0), turn.answers[key].variants.length - 1);
  showTurn(turn, actions);
  changed();
}

async function send(written) {
  await started; // the second model of the address may not be loaded yet
  const wanted = /^\/search(?:\s+|$)/.test(written);
  const text = wanted ? written.replace(/^\/search\s*/, "") : written;
  const { a } = state.slots;
  if (!a) return pickers.a?.open() ?? toast("Choose a model first.");
  const mode = modeOf(a);
  if (!text.trim() && (wanted || mode !== "completion" || !state.turns.length)) {
    if (wanted) toast("Write the question after /search.");
    return;
  }
  await run(async (signal) => {
    let hits = [];
    try {
      hits = await hitsFor(text, wanted, signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      toast(textOf(error), "bad");
      return;
    }
    box.value = "";
    fit();
    setSearching(false);
    const turn = { text, hits, seed: newSeed(), answers: {} };
    state.turns.push(turn);
    find("#turns > .welcome")?.remove();
    turn.waits = true;
    for (const key of slots()) if (!signal.aborted) await answer(turn, key, signal);
    turn.waits = false;
    showTurn(turn, actions);
  });
}

/** Search results for a message: requested, or triggered by a word in it. Throws if a requested search fails. */
async function hitsFor(text, wanted, signal) {
  const asked = wanted || searching();
  if (modeOf(state.slots.a) === "completion") {
    if (asked) throw new Error("Base models continue a text: they can't use search results.");
    return [];
  }
  const word = asked ? null : await reasonToSearch(text);
  if (!asked && !word) return [];
  if (word) toast(`Your message has “${word}”, so the web is searched. You can turn this off in the settings.`);
  find("#hint").textContent = "Searching the web …";
  try {
    return (await search(text, { signal })).hits;
  } catch (error) {
    if (asked || error.name === "AbortError") throw error;
    toast(textOf(error), "bad"); // the model can still answer without results
    return [];
  } finally {
    showHint();
  }
}

/** Get one answer to a turn; it is added to those that the turn has. */
async function answer(turn, key, signal) {
  const slot = state.slots[key];
  const given = { model: modelOf(slot), label: labelOf(slot), mode: modeOf(slot), text: "", state: "writing", sources: [] };
  const messages = messagesBefore(turn, key);
  const answers = (turn.answers[key] ??= { variants: [], at: 0 });
  answers.variants.push(given);
  answers.at = answers.variants.length - 1;
  showTurn(turn, actions);
  scrollToEnd();
  const settings = { ...state.settings, seed: state.settings.seed ?? turn.seed };
  const system = slot.about?.no_system || given.mode === "completion" ? "" : state.system;
  const hits = given.mode === "completion" ? [] : turn.hits;
  let result = null;
  const take = (line) => {
    if (line.waiting) given.waiting = "Waiting: this model loads, or answers in another tab …";
    if (line.loading !== undefined) given.waiting = line.loading ? `Downloading ${number(line.loading / 1e6, 3)} MB …` : "Loading the model …";
    if (line.about) Object.assign(given, { mode: line.about.mode, waiting: "" });
    if (line.piece) given.text += line.piece;
    if (line.result) ({ result } = line);
    else takeProgress(slot, line);
    if (line.piece) announceAnswer(given.text, false);
    drawSoon(turn, key);
  };
  try {
    await withTrust(slot, (trust) => stream("/api/chat/reply", { slot: key, model: given.model, text: turn.text, messages, settings, system, hits, trust }, take, { signal }));
    if (!result) throw new TypeError("The reply ended early.");
    const { content, ended, sources, notice, ...stats } = result;
    Object.assign(given, { text: content, ended, sources, notice, stats, state: "done" });
    announceAnswer(content, true);
  } catch (error) {
    if (error.name === "AbortError") {
      if (slot.status === "loading") unload(key).catch(() => {});
      given.state = "stopped";
      announce("Stopped");
    } else {
      Object.assign(given, { state: "failed", error: textOf(error) });
    }
  }
  const follow = isAtEnd();
  showTurn(turn, actions);
  if (follow) scrollToEnd();
  changed();
}

function changed() {
  keep();
  if (state.file) saveNow(openSaved).catch(showError);
  else if (!find("#panel").hidden) showSaved(openSaved);
}

/** Do something that can be stopped, after the current work has ended. */
function run(work) {
  stop();
  const before = finished;
  const controller = new AbortController();
  running = controller;
  showRunning();
  finished = (async () => {
    await before;
    try {
      if (!controller.signal.aborted) await work(controller.signal);
    } catch (error) {
      showError(error);
    } finally {
      if (running === controller) running = null;
      showRunning();
      if (!document.activeElement || document.activeElement === document.body) box.focus();
    }
  })();
  return finished;
}

function stop() {
  running?.abort();
}

function showRunning() {
  find("#stop").hidden = !running;
  find("#send").hidden = Boolean(running);
  showHint();
}

function showConversation() {
  if (state.turns.length) showTurns(actions);
  else showWelcome();
  scrollToEnd();
}

function showWelcome() {
  const { a, b } = state.slots;
  const completion = a && modeOf(a) === "completion";
  const lead = !a
    ? "Choose a model above: one of your runs, a model on this machine, or any folder or Hub name."
    : completion
      ? "This is a base model: it was not trained to chat. Write the beginning of a text, and it continues it. Enter alone continues further."
      : "Write a message. Everything stays on this machine, except a question that you search the web for.";
  const more = b ? " A and B get the same prompts. A answers first, then B, so that their speeds can be compared." : "";
  const prompts = (a?.prompts ?? []).map((prompt) => el("button.prompt", { type: "button", onclick: () => send(prompt) }, prompt));
  fill(find("#turns"), el("div.welcome", {}, el("h2", {}, a ? (completion ? `Write with ${labelOf(a)}` : `Chat with ${labelOf(a)}`) : "Chat"), el("p.lead", {}, lead + more), prompts.length > 0 && el("div.prompts", { role: "group", "aria-label": "Prompts from the samples of this run" }, prompts)));
}

async function openSaved(saved, name) {
  stop();
  await finished;
  const wanted = { a: saved.model, b: saved.against?.model };
  Object.assign(state, { turns: turnsOf(saved), system: saved.system ?? "", settings: saved.settings, file: name });
  state.slots.b = null;
  for (const key of ["a", "b"]) {
    if (wanted[key] && (!state.slots[key] || modelOf(state.slots[key]) !== wanted[key])) await choose(key, wanted[key], { load: false });
  }
  showSettings();
  showModels();
  showSaved(openSaved);
  announce("Loaded");
}

function newChat() {
  stop();
  finished.then(() => {
    Object.assign(state, { turns: [], file: null });
    showConversation();
    showSaved(openSaved);
    keepNow();
    box.focus();
  });
}

// --- keys of the whole page

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !find("#trust").open) stop();
  else if (event.key === "Escape" && !find("#panel").hidden && find("#panel").contains(event.target)) togglePanel(false);
  if (event.altKey && (event.key === "ArrowUp" || event.key === "ArrowDown") && !find("#time").hidden) {
    event.preventDefault();
    moveTo(Number(find("#time-range").value) + (event.key === "ArrowUp" ? 1 : -1));
  }
});

// --- the page

find("#compare").addEventListener("click", startComparison);
find("#new").addEventListener("click", newChat);
find("#earlier").addEventListener("click", () => moveTo(Number(find("#time-range").value) - 1));
find("#later").addEventListener("click", () => moveTo(Number(find("#time-range").value) + 1));
find("#time-range").addEventListener("input", (event) => moveTo(Number(event.target.value)));
find("#toggle-panel").addEventListener("click", () => togglePanel(find("#panel").hidden));
find("#show-saved").addEventListener("click", () => {
  togglePanel(true);
  find("#saved").click();
});
find("#close-panel").addEventListener("click", () => togglePanel(false));

function togglePanel(open) {
  find("#panel").hidden = !open;
  find("#toggle-panel").setAttribute("aria-expanded", String(open));
  find("#chat").classList.toggle("with-panel", open);
  if (open) showSaved(openSaved);
  else find("#toggle-panel").focus();
}

/** The keyboard of a phone covers the page: use the height that is left. */
function fitScreen() {
  const top = find("#chat").getBoundingClientRect().top + scrollY;
  find("#chat").style.setProperty("--height", `${Math.round(visualViewport.height - top)}px`);
}
visualViewport.addEventListener("resize", fitScreen);
fitScreen();
addEventListener("pagehide", keepNow);

async function start() {
  const before = kept();
  const wanted = data.model ?? before?.names.a ?? data.newest;
  const step = data.step === null ? null : Number(data.step);
  showModels();
  if (wanted) await choose("a", wanted, { step, load: data.model !== null });
  const same = before && state.slots.a && before.names.a === modelOf(state.slots.a);
  const against = data.against ?? (same && !data.model ? before.names.b : null);
  if (state.slots.a && against) await choose("b", against);
  if (before) Object.assign(state.settings, before.settings);
  if (same) Object.assign(state, { turns: before.turns, system: before.system, file: before.file });
  if (!state.slots.a) {
    pickers.a ??= createPicker({ letter: "a", label: "Model", onPick: (name) => choose("a", name).then(() => box.focus()) });
    fill(find("#slots"), el("div.slot", { id: "slot-a" }, pickers.a.element));
  }
  showSettings();
  showConversation();
  showHint();
  if (/^#(settings|saved)$/.test(location.hash)) togglePanel(true);
  box.focus();
}

connect({ send, stop, isRunning: () => Boolean(running) });
const started = start().catch(showError);
