// Look inside a model: the inputs, the measurement in a worker of the server, a slider over the run's checkpoints.
import { api, codeBlock, data, el, fill, find, showError, stream, withCode } from "./lab.js";
import { createPicker } from "./picker.js";
import { createViews } from "./look_views.js";

const state = { model: data.model || data.newest || "", against: data.against, points: [], at: null };
let first = data.described; // so that nothing moves once the page is shown
const prompt = find("#prompt");
const doing = find("#doing");
prompt.value = data.prompt;

const checkpoint = () => {
  const point = state.points[state.at];
  return point && state.at !== state.own ? point.folder : undefined;
};
const asChat = find("#as-chat");
const asked = () => ({ model: state.model, against: state.against || undefined, prompt: prompt.value, checkpoint: checkpoint(), chat: !find("#chat-line").hidden && asChat.checked });
/** Like `asked`, with the exact text that the model read, because the command does not apply a chat template. */
const inTerminal = () => ({ ...asked(), prompt: asked().chat && state.read?.prompt === prompt.value ? state.read.text : prompt.value });

const views = createViews({
  ramps: data.ramps,
  ask: {
    attribution: (position) => api("/api/look/attribution", { body: { ...asked(), position } }),
    ablation: (layer, head) => api("/api/look/ablation", { body: { ...asked(), layer, head } }),
  },
});

// --- the inputs

const models = createPicker({ letter: "look", label: "Model", onPick: choose });
const others = createPicker({ letter: "against", label: "Compare with", onPick: chooseOther });
find("#model").append(models.element);
find("#against").append(others.element);
find("#against input").placeholder = "Nothing";

async function choose(name, step) {
  state.model = name;
  models.show(name);
  try {
    await describe(step);
  } catch (error) {
    fill(find("#problem"), el("p.notice.bad", {}, withCode(error.message)));
  }
}

function chooseOther(name) {
  state.against = name;
  others.show(name);
  find("#no-against").hidden = !name;
  describe().catch(showError);
}
find("#no-against").addEventListener("click", () => {
  chooseOther("");
  find("#against input").focus();
});

/** Request what is known about the model before it is loaded: its checkpoints, its base, the command. */
async function describe(step) {
  if (!state.model) return;
  const name = state.model;
  const found = first ?? (await api("/api/look/model", { body: inTerminal() }));
  first = null;
  if (name !== state.model) return;
  if (JSON.stringify(found.points) !== JSON.stringify(state.points)) {
    state.points = found.points;
    state.own = found.at;
    state.at = found.at;
  }
  const wanted = step ? found.points.findIndex((point) => String(point.number) === step) : -1;
  if (wanted >= 0) state.at = wanted;
  fill(find("#problem"));
  fill(find("#command"), codeBlock(found.command));
  const base = find("#base");
  base.hidden = !found.base || state.against === found.base;
  if (found.base) fill(base, "It was trained from ", el("button.link", { type: "button", onclick: () => chooseOther(found.base) }, found.base), ".");
  if (state.chatOf !== name) {
    state.chatOf = name;
    find("#chat-line").hidden = !found.chat;
    asChat.checked = Boolean(found.chat) && data.raw !== "1";
  }
  showPrompts(found.prompts);
  showSlider();
}

function showPrompts(prompts) {
  find("#prompts").hidden = !prompts.length;
  const take = (text) => {
    prompt.value = text;
    asChat.checked = true;
    prompt.focus();
    measure();
  };
  fill(find("#prompts"), "Prompts of its run: ", prompts.map((text, at) => [at > 0 && " · ", el("button.link", { type: "button", onclick: () => take(text) }, text)]));
}

let typing;
prompt.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => describe().catch(() => {}), 300);
});
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) measure();
});
find("#form").addEventListener("submit", (event) => {
  event.preventDefault();
  measure();
});

// --- measuring: one request at a time, always the latest

let wanted = null;
let busy = false;

async function measure() {
  wanted = asked();
  if (busy) return;
  busy = true;
  while (wanted) {
    const now = wanted;
    wanted = null;
    await measureOnce(now);
  }
  busy = false;
}

async function measureOnce(body) {
  find("#found").setAttribute("aria-busy", "true");
  fill(find("#problem"));
  let found;
  try {
    await stream("/api/look/measure", body, (line) => {
      if (line.doing) doing.textContent = line.doing;
      if (line.result) found = line.result;
    });
    if (!wanted && found) show(found, body);
  } catch (error) {
    fill(find("#problem"), el("p.notice.bad", {}, withCode(error.message)));
  }
  doing.textContent = "";
  find("#found").removeAttribute("aria-busy");
}

function show(found, body) {
  find("#found").hidden = false;
  if (!prompt.value.trim() && document.activeElement !== prompt) {
    prompt.value = found.text;
    asChat.checked = false; // the built-in text is not a message
  }
  state.read = body.chat ? { prompt: body.prompt, text: found.text } : null;
  views.show(found);
  describe().catch(() => {}); // the command is that of this checkpoint and text
  const point = state.points[state.at];
  const query = new URLSearchParams({ model: body.model, ...(body.against ? { against: body.against } : {}), ...(body.prompt ? { prompt: body.prompt } : {}), ...(!find("#chat-line").hidden && !body.chat ? { raw: "1" } : {}), ...(point && state.at !== state.own ? { step: point.number } : {}) });
  history.replaceState(null, "", `/look?${query}${location.hash}`);
}

// --- the checkpoints of the run

const slider = find("#step");

function showSlider() {
  find("#steps").hidden = state.points.length < 2;
  if (state.points.length < 2) return;
  slider.max = String(state.points.length - 1);
  slider.value = String(state.at ?? state.points.length - 1);
  nameStep();
}

function nameStep() {
  const point = state.points[slider.value];
  const words = point ? point.label : "";
  find("#step-name").textContent = words;
  slider.setAttribute("aria-valuetext", words);
  find("#before").disabled = Number(slider.value) === 0;
  find("#after").disabled = Number(slider.value) === state.points.length - 1;
}

let sliding;
function slide() {
  state.at = Number(slider.value);
  nameStep();
  clearTimeout(sliding);
  sliding = setTimeout(measure, 120);
}
slider.addEventListener("input", slide);
for (const [id, step] of [["#before", -1], ["#after", 1]]) {
  find(id).addEventListener("click", () => {
    slider.value = String(Number(slider.value) + step);
    slide();
  });
}

// --- the standalone report

find("#report").addEventListener("click", async () => {
  const button = find("#report");
  const log = find("#report-log");
  button.disabled = true;
  log.hidden = false;
  log.open = true;
  try {
    const { launch } = await api("/api/look/report", { body: { ...inTerminal(), steps: state.points.length > 1 } });
    for (;;) {
      const { log: text, exit_code: code } = await api(`/api/experiments/launch/${launch}`);
      find("pre", log).textContent = text || "Starting …";
      if (code !== null) break;
      await new Promise((done) => setTimeout(done, 700));
    }
  } catch (error) {
    showError(error);
  }
  button.disabled = false;
});

// --- start

models.show(state.model);
others.show(state.against);
find("#no-against").hidden = !state.against;
if (state.model) {
  choose(state.model, data.step).then(() => {
    if (data.model) measure();
  });
}
