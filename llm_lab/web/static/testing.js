// A tuned model and its base on the same prompts and texts.
import { data, el, fill, find, stream } from "./lab.js";

const KEPT = `test:${location.search}`;
const names = ["first", "second", "prompts", "text", "scored", "tokens", "temperature"];
const value = (name) => find(`#${name}`).value.trim();
let control = null;

/** Fill in the base of the tuned model: the model that its run started from. */
function suggestBase() {
  const { base, is_adapter: isAdapter } = data.bases[value("second")] ?? {};
  const first = find("#first");
  if (isAdapter) first.value = "";
  else if (base && (!first.value || Object.values(data.bases).some((one) => one.base === first.value))) first.value = base;
  first.placeholder = isAdapter ? "its base, with the adapter off" : "";
  find("#first-help").textContent = isAdapter ? "Left empty: the same model with the adapter off." : "What B started from, or any other model.";
}

function keep() {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(Object.fromEntries(names.map((name) => [name, find(`#${name}`).value]))));
  } catch {
    // Without storage the answers last as long as the page.
  }
}

function ask() {
  const [first, second] = [value("first"), value("second")];
  const isAdapter = Boolean(data.bases[second]?.is_adapter);
  return {
    names: first ? [first, second] : [second],
    adapter_off: isAdapter && !first,
    prompts: value("prompts").split("\n"),
    data: value("text") ? [value("text")] : [],
    prompt_set: value("scored") || null,
    max_new_tokens: Number(value("tokens")),
    temperature: Number(value("temperature").replace(",", ".")),
  };
}

find("#form").addEventListener("submit", async (event) => {
  event.preventDefault();
  control?.abort();
  control = new AbortController();
  const [button, cancel, state, result] = ["run", "cancel", "state", "result"].map((id) => find(`#${id}`));
  button.disabled = true;
  cancel.hidden = false;
  state.textContent = "Loading the libraries ...";
  fill(result);
  try {
    await stream("/api/test/compare", ask(), (piece) => {
      if (piece.label) state.textContent = piece.total ? `${piece.label}: ${piece.done} of ${piece.total}` : piece.label;
      if (piece.notice) result.append(el("p.notice", {}, piece.notice));
      if (piece.result) result.append(...show(piece.result));
    }, { signal: control.signal });
    state.textContent = "";
  } catch (error) {
    state.textContent = "";
    if (error.name !== "AbortError") result.append(el("p.notice.bad", { role: "alert" }, error.message));
  } finally {
    button.disabled = false;
    cancel.hidden = true;
  }
});
find("#cancel").addEventListener("click", () => control?.abort());

function show({ models, measures, prompts, answers, drawn, remarks }) {
  const heads = models.map((model) => el("th", { scope: "col", class: "numeric" }, model.letter));
  const rows = measures.map(({ name, values, best }) =>
    el("tr", {}, el("th", { scope: "row" }, name), values.map((text, index) => el("td.numeric", {}, best.includes(index) ? el("b.good", {}, text, el("span.visually-hidden", {}, " (best)")) : text))),
  );
  return [
    el("p.soft.models", {}, models.map((model) => `${model.letter}: ${model.name} (${model.mode})`).join("; ")),
    el("h2", {}, "Measures"),
    rows.length ? el("div.wide", { tabIndex: 0, role: "region", "aria-label": "Measures" }, el("table", {}, el("thead", {}, el("tr", {}, el("td", {}), heads)), el("tbody", {}, rows))) : null,
    el("h2", {}, "Outputs"),
    el("p.soft.small", {}, `Outputs: ${drawn}. What differs from A is marked.`),
    prompts.map((prompt, number) =>
      el(
        "section.card",
        {},
        el("p", {}, el("b", {}, prompt || "(no prompt)")),
        el("div.pair", {}, answers[number].map((one, index) => el("div", {}, el("p.small.soft", {}, `${models[index].letter}${one.about ? `: ${one.about}` : ""}`), one.problem ? el("p.error", {}, one.problem) : el("div.output", {}, one.parts.filter(([kind]) => kind !== "gone").map(([kind, text]) => (kind === "new" ? el("mark", {}, text) : text)))))),
      ),
    ),
    remarks.map((text) => el("p.soft.small", {}, text)),
  ].flat().filter(Boolean);
}

try {
  const kept = JSON.parse(sessionStorage.getItem(KEPT));
  for (const name of kept ? names : []) find(`#${name}`).value = kept[name] ?? "";
} catch {
  // Nothing was kept.
}
if (!find("#second").value) find("#second").value = data.model;
suggestBase();
find("#second").addEventListener("change", suggestBase);
find("#form").addEventListener("input", keep);
