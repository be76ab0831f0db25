// The data as tokens: which ones the loss counts, which ones are only context, and how long the examples are.
import { el, fill, find, number, stream } from "./lab.js";
import { draft, settled } from "./draft.js";

export function makeXray() {
  const button = el("button", { type: "button" }, "Show the data as tokens (X-ray)");
  const cancel = el("button.quiet", { type: "button", hidden: true }, "Cancel");
  const state = el("span.soft", { role: "status" });
  const result = el("div.stack", {});
  let control = null;
  button.addEventListener("click", async () => {
    await settled();
    control = new AbortController();
    button.disabled = true;
    cancel.hidden = false;
    const started = Date.now();
    let step = "";
    const clock = setInterval(() => (state.textContent = `${step} ... ${Math.round((Date.now() - started) / 1000)} s`), 500);
    try {
      await stream("/api/data/xray", { recipe: draft.raw }, (piece) => {
        if (piece.step) step = piece.step;
        if (piece.result) fill(result, piece.result.map(showStage));
      }, { signal: control.signal });
    } catch (error) {
      fill(result, error.name === "AbortError" ? [] : el("p.error", { role: "alert" }, error.message));
    } finally {
      clearInterval(clock);
      state.textContent = "";
      button.disabled = false;
      cancel.hidden = true;
    }
  });
  cancel.addEventListener("click", () => control?.abort());
  return el("div.stack", {}, el("div.actions", {}, button, cancel, state), result);
}

function showStage(stage) {
  return el("div.stack", {}, el("p.soft", {}, `${stage.template}; sequences of at most ${number(stage.max_length)} tokens.`), stage.sets.map(showSet));
}

function showSet(set) {
  const facts = [
    set.split,
    set.trained_share === null ? null : `The loss is on ${Math.round(100 * set.trained_share)} % of the tokens.`,
    set.total !== null && set.measured < set.total ? `Measured on the first ${number(set.measured)} of ${number(set.total)}.` : null,
  ];
  return el(
    "section.entry",
    { "aria-label": set.key },
    el("p", {}, el("b", {}, set.description)),
    facts.filter(Boolean).map((text) => el("p.soft", {}, text)),
    set.warnings.map((text) => el("p.warn", {}, `Warning: ${text}.`)),
    set.checks.map((text) => el("p.good", {}, `Checked: ${text}.`)),
    Object.entries(set.lengths).map(([name, lengths]) => showLengths(name, lengths)),
    el("p.legend", {}, el("span.token.trained", {}, "trained"), el("span.token", {}, "only read"), el("span.token.special", {}, "special token")),
    set.examples.map(showExample),
    set.rendered && el("details", {}, el("summary", {}, "The first example in its chat template"), el("pre", { tabIndex: 0 }, set.rendered.slice(0, 3000))),
  );
}

function showLengths(name, lengths) {
  if (!lengths.count) return null;
  const { min, median, p90, max, bars } = lengths;
  const words = `${name}: ${number(min)} to ${number(max)} tokens, median ${number(median)}, 90th percentile ${number(p90)}`;
  const tallest = Math.max(...bars);
  const columns = bars.map((bar) => {
    const column = el("span", {});
    column.style.height = `${Math.max(bar ? 4 : 0, (100 * bar) / tallest)}%`;
    return column;
  });
  return el("figure.lengths", {}, el("figcaption.soft", {}, words), el("div.bars", { "aria-hidden": "true" }, columns));
}

function showExample(example) {
  const trained = example.spans.some((span) => span.trained) ? `, ${number(example.trained_tokens)} trained` : "";
  const cut = example.cut ? `, ${number(example.cut)} more cut off` : "";
  const spans = example.spans.map((span) => {
    const shown = el("span.token", {}, span.text);
    shown.classList.toggle("trained", span.trained);
    shown.classList.toggle("special", span.special);
    return shown;
  });
  return el("div", {}, el("p.small.soft", {}, `${example.label}: ${number(example.tokens)} tokens${trained}${cut}`), el("div.tokens", {}, spans), example.reference && el("p.small.soft", {}, `Reference answer: ${example.reference}`));
}
