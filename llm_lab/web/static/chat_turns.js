// The display of the conversation: what the user wrote, and under it one answer, or two in columns.
import { printable, renderAnswer } from "./answer_text.js";
import { duration, el, fill, find, number, showError, withCode } from "./lab.js";
import { renderSources } from "./search.js";
import { answerOf, labelOf, modesDiffer, slots, state } from "./chat_state.js";

const STOPS = {
  end: "",
  length: "stopped at max_new_tokens",
  context: "stopped: the context is full",
  stopped: "stopped",
};
const elements = new WeakMap(); // turn: its element
const drawn = new Set(); // answers to draw before the next frame

export const icon = (name) => {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
};

const tool = (name, label, onclick) => el("button.quiet.icon", { type: "button", "aria-label": label, title: label, onclick }, icon(name));

/** Show all turns again. actions: {edit, regenerate, choose, speak}, called with the turn and the slot. */
export function showTurns(actions) {
  fill(find("#turns"), state.turns.map((turn) => makeTurn(turn, actions)));
}

/** Show one turn again, or a new one at the end. */
export function showTurn(turn, actions) {
  const before = elements.get(turn);
  const element = makeTurn(turn, actions);
  if (before?.isConnected) before.replaceWith(element);
  else find("#turns").append(element);
}

function makeTurn(turn, actions) {
  const words = turn.text.trim() ? printable(turn.text) : "(continue)";
  const bubble = el("div.bubble", {}, words);
  const copy = tool("copy", "Copy the message", () => copyText(turn.text));
  const edit = tool("edit", "Edit and send again", () => editIn(asked, bubble, turn, actions));
  const asked = el("div.asked", {}, bubble, el("div.tools", {}, copy, edit));
  const keys = slots().filter((key) => turn.answers[key] || key === "a" || turn.waits);
  const answers = el(`div.answers${keys.length > 1 ? ".two" : ""}`, {}, keys.map((key) => makeAnswer(turn, key, actions)));
  const element = el("article.turn", { "aria-label": `Message: ${words.slice(0, 60)}` }, asked, answers);
  elements.set(turn, element);
  for (const key of keys) draw(turn, key);
  return element;
}

function editIn(asked, bubble, turn, actions) {
  const box = el("textarea", { "aria-label": "Edit the message", rows: String(Math.min(8, turn.text.split("\n").length + 1)) });
  box.value = turn.text;
  const close = () => form.replaceWith(bubble);
  const form = el(
    "form.editing",
    {
      onsubmit: (event) => {
        event.preventDefault();
        close();
        actions.edit(turn, box.value);
      },
    },
    box,
    el("div.actions", {}, el("button.quiet", { type: "button", onclick: close }, "Cancel"), el("button.primary", { type: "submit" }, "Send again")),
  );
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  bubble.replaceWith(form);
  box.focus();
}

function makeAnswer(turn, key, actions) {
  const choose = (step) => actions.choose(turn, key, turn.answers[key].at + step);
  const given = () => answerOf(turn, key);
  return el(
    "section.answer",
    { "aria-label": `Reply of ${answerOf(turn, key)?.label ?? labelOf(state.slots[key])}`, "data-slot": key },
    el("header.who", {}),
    el("p.waiting", { hidden: true }),
    el("div.text", {}),
    el("p.notice.bad.problem", { role: "alert", hidden: true }),
    el("p.remark.small", { hidden: true }),
    el("div.found", { hidden: true }),
    el(
      "footer.tools",
      {},
      el("span.variants", { hidden: true }, tool("left", "Earlier reply", () => choose(-1)), el("span.numeric", {}), tool("right", "Later reply", () => choose(1))),
      tool("copy", "Copy the reply", () => copyText(given()?.text ?? "")),
      tool("again", "Reply again", () => actions.regenerate(turn, key)),
      tool("speak", "Read the reply aloud", (event) => actions.speak(given()?.text ?? "", event.currentTarget)),
      el("span.numbers.numeric", {}),
    ),
  );
}

/** Show an answer before the next frame. */
export function drawSoon(turn, key) {
  if (!drawn.size) requestAnimationFrame(drawAll);
  for (const one of drawn) if (one[0] === turn && one[1] === key) return;
  drawn.add([turn, key]);
}

function drawAll() {
  const all = [...drawn];
  drawn.clear();
  const follow = isAtEnd();
  for (const [turn, key] of all) draw(turn, key);
  if (follow) scrollToEnd();
}

function draw(turn, key) {
  const element = elements.get(turn)?.querySelector(`[data-slot="${key}"]`);
  if (!element) return;
  const given = answerOf(turn, key);
  const { variants = [], at = 0 } = turn.answers[key] ?? {};
  const writing = given?.state === "writing";
  const isLast = turn === state.turns.at(-1);
  const part = (selector) => find(selector, element);
  element.classList.toggle("writing", writing);
  element.setAttribute("aria-busy", String(writing));
  const two = slots().length > 1;
  fill(part(".who"), two && el("span.letter", {}, key.toUpperCase()), el("span", {}, given?.label ?? labelOf(state.slots[key])), given?.mode === "completion" && el("span.tag", {}, "continues the text"));
  part(".waiting").hidden = given ? !writing || Boolean(given.text) : !turn.waits;
  part(".waiting").textContent = given ? given.waiting || "Thinking …" : "Replies after A …";
  const plain = given?.mode === "completion";
  renderAnswer(part(".text"), given?.text ?? "", { plain, sources: given?.sources, before: plain ? turn.text.slice(-400) : "" });
  part(".text").hidden = !given?.text;
  part(".problem").hidden = !given?.error;
  fill(part(".problem"), withCode(given?.error ?? ""));
  const remarks = [given?.notice, key === "b" && modesDiffer() && !writing && state.turns.length > 1 && "This model gets only the last message: its mode differs from that of A."];
  part(".remark").textContent = remarks.filter(Boolean).join(" ");
  part(".remark").hidden = !part(".remark").textContent;
  renderSources(given?.sources ?? [], part(".found"));
  part("footer").hidden = writing || !given;
  part("[aria-label='Reply again']").hidden = !isLast;
  part(".variants").hidden = variants.length < 2 || !isLast;
  part(".variants .numeric").textContent = `${at + 1} / ${variants.length}`;
  part(".variants [aria-label='Earlier reply']").disabled = at === 0;
  part(".variants [aria-label='Later reply']").disabled = at === variants.length - 1;
  part(".numbers").textContent = given && !writing ? numbersOf(turn, key, given) : "";
}

function numbersOf(turn, key, given) {
  const { stats } = given;
  if (!stats) return given.state === "stopped" ? "stopped" : "";
  const parts = [`${number(stats.tokens)} token${stats.tokens === 1 ? "" : "s"}`];
  if (stats.tokens_per_second) parts.push(`${number(stats.tokens_per_second, 3)} tokens/s${compared(turn, key, stats)}`);
  if (stats.seconds_to_first_token > 1) parts.push(`first token after ${duration(stats.seconds_to_first_token)}`);
  if (STOPS[stats.stop]) parts.push(STOPS[stats.stop]);
  return parts.join(" · ");
}

/** The speed, compared with that of the other column. */
function compared(turn, key, stats) {
  const other = answerOf(turn, key === "b" ? "a" : "b")?.stats?.tokens_per_second;
  if (key !== "b" || !other || slots().length < 2) return "";
  const ratio = stats.tokens_per_second / other;
  return ratio > 0.95 && ratio < 1.05 ? " (as fast as A)" : ` (${number(ratio, 2)}× A)`;
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    announce("Copied");
  } catch (error) {
    showError(error);
  }
}

// --- scrolling: it follows the answer, unless the reader has scrolled up

const box = () => find("#conversation");
export const isAtEnd = () => box().scrollHeight - box().scrollTop - box().clientHeight < 48;

export function scrollToEnd() {
  box().scrollTop = box().scrollHeight;
}

box().addEventListener("scroll", () => (find("#latest").hidden = isAtEnd()), { passive: true });
find("#latest").addEventListener("click", scrollToEnd);

// --- for screen readers: whole sentences, not every piece

let spoken = 0;

export function announce(text) {
  find("#announcer").textContent = text;
}

/** Announce the sentences of a growing text that are complete; at its end, the rest. */
export function announceAnswer(text, done) {
  if (text.length < spoken) spoken = 0;
  const rest = text.slice(spoken);
  const end = done ? rest.length : Math.max(rest.lastIndexOf("\n"), rest.search(/[.!?…]\s[^.!?…]*$/) + 1);
  if (end < 1 || (!done && end < 60)) return;
  announce(printable(rest.slice(0, end)));
  spoken = done ? 0 : spoken + end;
}
