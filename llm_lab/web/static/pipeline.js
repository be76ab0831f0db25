// A recipe of several stages: what each does, and a button that starts it.
import { api, codeBlock, data, el, fill, find, LabError, showError } from "./lab.js";
import { followLaunch } from "./launch.js";

const state = el("div", { role: "status" });
const button = find("#start");

fill(
  find("#stages"),
  data.stages.map((stage) =>
    el(
      "section.card",
      {},
      el("h2", {}, stage.name === stage.title ? stage.title : `${stage.name}: ${stage.title}`),
      stage.why_not && el("p.error", {}, stage.why_not),
      el("dl.facts.small", {}, stage.plan.lines.flatMap(([term, text, style]) => [el("dt", {}, term), el("dd", { class: style }, text)])),
    ),
  ),
);
fill(find("#recipe"), state, el("div", {}, el("h3", {}, "Command"), codeBlock(data.command)), el("div", {}, el("h3", {}, "Recipe"), codeBlock(data.text)));
fill(find("#problems"), data.problems.map((text) => el("p.notice.bad", {}, text)));
button.disabled = Boolean(data.problems.length || data.stages.some((stage) => stage.why_not));
button.addEventListener("click", async () => {
  button.disabled = true;
  try {
    const { launch, command } = await api("/api/new/start-recipe", { body: { recipe: data.recipe } });
    await followLaunch(launch, command, state);
  } catch (error) {
    if (error instanceof LabError) fill(state, el("p.notice.bad", { role: "alert" }, error.message));
    else showError(error);
  } finally {
    button.disabled = false;
  }
});
