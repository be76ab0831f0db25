// What every page uses: requests, live updates, building elements without HTML, small parts of the interface.

/** The values that the server passed to this page. */
export const data = JSON.parse(document.getElementById("data").textContent);

export class LabError extends Error {
  constructor(problems, status) {
    super(problems.map((problem) => problem.text).join("\n"));
    this.problems = problems;
    this.status = status;
  }
}

async function send(path, { method, body, signal, headers } = {}) {
  const options = { method: method ?? (body === undefined ? "GET" : "POST"), signal, headers: { ...headers } };
  if (body instanceof Blob) {
    options.body = body;
    options.headers["Content-Type"] ??= body.type || "application/octet-stream";
  } else if (options.method !== "GET") {
    options.body = JSON.stringify(body ?? {});
    options.headers["Content-Type"] = "application/json";
  }
  const response = await fetch(path, options);
  if (response.ok) return response;
  const text = await response.text();
  let problems = [{ key: null, text: text.trim() || `The server answered ${response.status}.` }];
  try {
    problems = JSON.parse(text).problems ?? problems;
  } catch {
    // The guard refuses with plain text.
  }
  throw new LabError(problems, response.status);
}

/** Ask the server for JSON. With a body: POST. Throws LabError with the problems to show. */
export async function api(path, options) {
  return (await send(path, options)).json();
}

/** Send a request whose answer comes as lines of JSON; calls onLine for each. A line with problems is thrown. */
export async function stream(path, body, onLine, { signal } = {}) {
  const response = await send(path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line) continue;
      const piece = JSON.parse(line);
      if (piece?.problems) throw new LabError(piece.problems, 400);
      onLine(piece);
    }
  }
}

/**
 * Make an element. Strings become text nodes: nothing is parsed as HTML.
 * el("a.button", {href: "/", onclick: run, hidden: false}, "All ", el("b", {}, "runs"))
 */
export function el(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && typeof value !== "string") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(2).filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

/** Replace the contents of an element. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(2).filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

export const find = (selector, root = document) => root.querySelector(selector);
export const findAll = (selector, root = document) => [...root.querySelectorAll(selector)];

/** A text of the program; the parts between backticks become code. */
export const withCode = (text) => text.split(/`([^`\n]+)`/).map((part, at) => (at % 2 ? el("code", {}, part) : part));

/** Show a short message for some seconds; errors (kind "bad") stay until they are closed. */
export function toast(text, kind = "") {
  const close = el("button.quiet", { type: "button", "aria-label": "Close", onclick: () => box.remove() }, "×");
  const box = el("div.toast", { role: kind === "bad" ? "alert" : undefined }, el("span", {}, withCode(text)), close);
  if (kind) box.classList.add(kind);
  find("#toasts").append(box);
  if (kind !== "bad") setTimeout(() => box.remove(), 6000);
}

/** Show an error of a request or of this page. */
export function showError(error) {
  if (error.name !== "AbortError") toast(error.message, "bad");
}

/** A block of code with a button that copies it. */
export function codeBlock(text, label = "Copy") {
  const button = el("button.copy", { type: "button" }, label);
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = label), 1500);
  });
  return el("div.code", {}, el("pre", { tabIndex: 0 }, el("code", {}, text)), button);
}

/** The color of a CSS variable, such as color("c0"), as the canvas understands it. */
export function color(name) {
  const probe = el("span", { hidden: true });
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** Call a function now and whenever the page turns from light to dark or back. */
export function onTheme(listener) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", listener);
  document.addEventListener("theme", listener);
  listener();
}

export const number = (value, digits = 4) =>
  value === null || value === undefined || Number.isNaN(value)
    ? "–"
    : Number.isInteger(value) && Math.abs(value) < 1e15
      ? value.toLocaleString("en-US")
      : Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3)
        ? value.toExponential(2).replace("e+", "e")
        : Number(value.toPrecision(digits)).toLocaleString("en-US", { maximumFractionDigits: 8 });

export function duration(exact) {
  if (exact === null || exact === undefined) return "–";
  const seconds = Math.round(exact);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  if (seconds < 86400 * 2) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.round(seconds / 86400)} days`;
}

export function ago(time) {
  const seconds = Date.now() / 1000 - time;
  return seconds < 5 ? "now" : `${duration(seconds)} ago`;
}

/** Return a choice stored in this browser, or ""; with a value: store it. */
export function stored(name, value) {
  try {
    if (value === undefined) return localStorage.getItem(name) ?? "";
    localStorage.setItem(name, value);
  } catch {
    // Without storage the choice lasts until the next page.
  }
  return value ?? "";
}

// --- live updates

const topics = new Map(); // name: {cursor, listeners}
const EVERY_MS = 1000;
let timer;
let asking = false;
let lostSince = 0;

/**
 * Call a listener with the data of a topic whenever it changes, for as long as the page is visible.
 * A topic is "name" or "name:argument" of a TOPICS function of the server. Returns a function that unsubscribes.
 */
export function watch(name, listener, cursor = null) {
  const topic = topics.get(name) ?? { cursor, listeners: new Set() };
  topic.listeners.add(listener);
  topics.set(name, topic);
  schedule(0);
  return () => {
    topic.listeners.delete(listener);
    if (!topic.listeners.size) topics.delete(name);
  };
}

/** Ask now instead of a second later: after something was started or stopped. */
export const askNow = () => schedule(0);

function schedule(after) {
  clearTimeout(timer);
  timer = setTimeout(ask, after);
}

async function ask() {
  if (asking || document.hidden || !topics.size) return;
  asking = true;
  const asked = Object.fromEntries([...topics].map(([name, topic]) => [name, topic.cursor]));
  try {
    const { updates } = await api("/api/updates", { body: { topics: asked }, signal: AbortSignal.timeout(15000) });
    found();
    for (const [name, update] of Object.entries(updates)) {
      const topic = topics.get(name);
      if (!topic) continue;
      topic.cursor = update.cursor;
      for (const listener of topic.listeners) listener(update.data, update.problems);
    }
  } catch (error) {
    lost(error);
  } finally {
    asking = false;
    schedule(lostSince ? 2000 : EVERY_MS);
  }
}

function lost(error) {
  lostSince ||= Date.now();
  const banner = find("#lost");
  banner.textContent =
    error instanceof LabError
      ? error.message
      : "The server of this page does not answer. Runs continue without it. Start it again with: llm-lab web";
  banner.hidden = false;
}

function found() {
  lostSince = 0;
  find("#lost").hidden = true;
}

document.addEventListener("visibilitychange", () => !document.hidden && schedule(0));

// --- every page

find("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  stored("theme", root.dataset.theme);
  document.dispatchEvent(new Event("theme"));
});

for (const tabs of findAll("[role=tablist]")) {
  const buttons = findAll("[role=tab]", tabs);
  const choose = (chosen) => {
    for (const tab of buttons) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      find(`#${tab.getAttribute("aria-controls")}`).hidden = tab !== chosen;
    }
    tabs.dispatchEvent(new CustomEvent("choose", { detail: chosen.id }));
  };
  tabs.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (!tab) return;
    choose(tab);
    history.replaceState(null, "", `#${tab.id}`);
  });
  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length];
    next.focus();
    next.click();
  });
  choose(buttons.find((tab) => `#${tab.id}` === location.hash) ?? buttons[0]);
}
