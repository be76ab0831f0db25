// The samples of a run: what its model wrote at each evaluation.
import { el, fill, find } from "./lab.js";
import { empty } from "./run_parts.js";

let prompts = null;

/** Show the samples of a run, newest first. running: whether more will come. */
export function showSamples(panel, steps, running) {
  if (!steps.length) {
    fill(panel, empty(running ? "No samples yet. They come with each evaluation." : "This run wrote no samples."));
    return;
  }
  prompts ??= el("select", { "aria-label": "Prompt", onchange: () => drawSamples() });
  const known = [...new Set(steps.flatMap((step) => step.samples.map((one) => one.prompt)))];
  const chosen = prompts.value;
  fill(prompts, el("option", { value: "" }, "All prompts"), known.map((text) => el("option", { value: text }, text || "(no prompt)")));
  if (known.includes(chosen)) prompts.value = chosen;
  drawSamples.steps = steps;
  if (!panel.contains(prompts)) fill(panel, el("div.samples-tools", {}, known.length > 1 && prompts), el("div.stack", { id: "sample-list" }));
  drawSamples();
}

function drawSamples() {
  const chosen = prompts.value;
  fill(
    find("#sample-list"),
    [...drawSamples.steps].reverse().map((step) => {
      const pairs = step.samples.filter((one) => !chosen || one.prompt === chosen);
      return el(
        "article.card.sample", {},
        el("h3.numeric", {}, `Step ${step.step.toLocaleString("en-US")}`),
        pairs.map((one) => el("div", {}, !chosen && el("p.soft", {}, one.prompt || "(no prompt)"), el("blockquote", {}, el("span.prompt", {}, one.text.startsWith(one.prompt) ? one.prompt : ""), one.text.startsWith(one.prompt) ? one.text.slice(one.prompt.length) : one.text))),
      );
    }),
  );
}
