// The page of one run.
import { Curves } from "./curves.js";
import { api, askNow, codeBlock, data, el, fill, find, showError, toast, watch } from "./lab.js";
import { whyItEnded } from "./launch.js";
import { reportElements } from "./report.js";
import { bars, empty, encodeRun, facts, node, recipeCode, showGpus, stage, table } from "./run_parts.js";
import { showSamples } from "./run_samples.js";

const { name, kind } = data;
const encoded = name.split("/").map(encodeURIComponent).join("/");
const path = `/api/runs/${encoded}`;
let head = data.head;

// --- above the tabs

if (data.outer) {
  const href = data.outer_is_run ? `/runs/${encodeRun(data.outer)}` : `/experiments/run/${encodeRun(data.outer)}`;
  fill(find("#outer"), el("a", { href }, data.outer));
}

function showHead() {
  const status = el(`span.status.${head.status}`, { title: head.note }, head.status);
  const facts = head.about.map(([label, text]) => el("span", { title: label }, text));
  fill(find("#about"), status, head.stage && el("span", {}, head.stage), facts);
  showActions();
  showNotices();
  const progress = find("#progress");
  progress.hidden = !head.progress;
  if (head.progress) {
    const bar = progress.querySelector("progress") ?? progress.appendChild(el("progress", { max: 1, "aria-label": "Progress" }));
    const text = progress.querySelector("span") ?? progress.appendChild(el("span.soft.numeric", {}));
    bar.value = head.progress.share;
    text.textContent = kind === "run" ? `${head.progress.text} (${Math.floor(100 * head.progress.share)} %)` : head.progress.text;
  }
  const stats = find("#stats");
  stats.hidden = !head.stats.length;
  fill(
    stats,
    head.stats.map((one) => el("div", { title: one.title }, el("dt", {}, one.name), el("dd", {}, one.value, one.note && el("small", {}, one.note)))),
  );
  const tab = find("#log");
  tab.textContent = head.warnings.length ? `Warnings and log (${head.warnings.length})` : "Warnings and log";
}

function action(label, what, attributes) {
  if (!what) return null;
  if (what !== true) return el("button", { type: "button", disabled: true, title: what }, label);
  return el("button", { type: "button", ...attributes }, label);
}

/** A link, or in the same place why there is nothing to open yet. */
function link(to, label, title) {
  if (!to) return null;
  return to.startsWith("/") ? el("a.button", { href: to, title }, label) : el("button", { type: "button", disabled: true, title: to }, label);
}

let shownActions = "";

function showActions() {
  const { actions } = head;
  const signature = JSON.stringify([actions, busy]);
  if (signature === shownActions) return; // a focused button keeps the focus
  shownActions = signature;
  fill(
    find("#control"),
    action(busy === "stop" ? "Stopping …" : "Stop", actions.stop, { class: "danger", id: "stop", disabled: busy === "stop", onclick: askToStop }),
    action(busy === "resume" ? "Resuming …" : "Resume", actions.resume, { class: "primary", id: "resume", disabled: busy === "resume", onclick: resume }),
  );
  fill(
    find("#actions"),
    link(actions.chat, "Chat"),
    link(actions.test, "Test it", "Next to the base model: outputs for prompts, loss on texts, speed"),
    link(actions.look, "Look inside"),
    link(actions.tune, "Fine-tune this model"),
    kind === "run" && el("a.button", { href: `/compare?run=${encodeURIComponent(name)}` }, "Compare"),
    kind === "study" && el("a.button.primary", { href: `/experiments/run/${encoded}` }, "Report of the study"),
    actions.new && el("a.button", { href: actions.new, title: "A new run with this recipe, which you can change first" }, "Run again with changes"),
  );
}

let failed = null;

function showNotices() {
  const notices = [];
  if (head.status === "interrupted" || head.status === "broken") notices.push(el("div.notice.warn", {}, el("b", {}, head.status === "interrupted" ? "Interrupted. " : "Broken. "), head.note));
  if (head.error) notices.push(el("div.notice.bad", {}, el("b", {}, "An error ended this run. "), head.error));
  if (failed) {
    notices.push(whyItEnded(failed.error, `${failed.command}\n\n${failed.log}`, "It could not be resumed"));
  }
  const signature = JSON.stringify([head.status, head.error, failed]);
  const box = find("#notices");
  if (box.dataset.signature === signature) return;
  box.dataset.signature = signature;
  fill(box, notices);
}

// --- stop and resume

let busy = null;

function askToStop() {
  find("#stop-dialog").showModal();
}

find("#stop-dialog").addEventListener("close", async (event) => {
  const chosen = event.target.returnValue;
  event.target.returnValue = "";
  if (chosen !== "stop") return;
  busy = "stop";
  showActions();
  try {
    await api(`${path}/stop`, { method: "POST" });
    toast("The run saves a checkpoint and stops.");
  } catch (error) {
    busy = null;
    showError(error);
  }
  showActions();
  askNow();
});

async function resume() {
  busy = "resume";
  failed = null;
  showActions();
  showNotices();
  try {
    let launch = await api(`${path}/resume`, { method: "POST" });
    while (launch.exit_code === null && head.status !== "running") {
      await new Promise((done) => setTimeout(done, 500));
      launch = await api(`/api/launches/${launch.number}`);
    }
    if (launch.exit_code) failed = launch;
  } catch (error) {
    showError(error);
  }
  busy = null;
  showActions();
  showNotices();
  askNow();
}

// --- tabs: each is filled when it is first shown, and again when its data has changed

const panel = (id) => find(`#${id}-panel`);
const shown = new Set();
function once(id, start) {
  if (shown.has(id)) return;
  shown.add(id);
  start();
}

/** Fill a tab only if its data has changed, so that the scroll position and the focus stay. */
const signatures = new Map();
function refill(id, value, build) {
  const signature = JSON.stringify(value);
  if (signatures.get(id) === signature) return;
  signatures.set(id, signature);
  fill(panel(id), build());
}

/** What replaces the curves while there are none. */
function showEmpty(box) {
  const running = head.evaluates_first
    ? "First evaluation: the model is measured before it is trained. The steps follow."
    : "No numbers yet. The curves start with the first step that is logged.";
  fill(box, el("p", {}, head.status === "running" ? running : "This run has logged no numbers."));
}

const TABS = {
  curves() {
    once("curves", () => {
      const curves = new Curves(panel("curves"), [{ name, label: name }], {
        onRows: (source, update) => {
          curves.empty.hidden = Boolean(update.rows);
          showEmpty(curves.empty);
          if (!update.complete) askNow();
        },
      });
    });
  },
  stages() {
    const many = head.stages.filter((one) => one.begun).map((one) => `run=${encodeURIComponent(one.run)}`);
    refill("stages", head.stages, () => [
      many.length > 1 && el("p.actions", {}, el("a.button", { href: `/compare?${many.join("&")}` }, "All curves in one picture")),
      el("ol.stages", {}, head.stages.map(stage)),
    ]);
  },
  samples() {
    once("samples", () => {
      fill(panel("samples"), empty("No samples yet."));
      watch(`samples:${name}`, (update) => update && showSamples(panel("samples"), update.samples, head.status === "running"));
    });
  },
  scores() {
    refill("scores", [head.scores, head.results, head.evaluations, head.proof, head.pictures], () => {
      const { scores, results, evaluations, proof } = head;
      const [first, ...rest] = scores;
      return [
        scores.length > 0 && [el("h2", {}, "Scores of the stages"), picture("scores.svg", "Scores of the stages"), table(first, rest, first.map((_, at) => at).slice(1))],
        el("h2", {}, kind === "pipeline" ? "Results of the last stage" : "Results"),
        results.length ? table(["result", "value", "unit", "what it is"], results.map((one) => [one.name, one.value, one.unit, one.meaning]), [1]) : empty("No results yet."),
        evaluations.length > 0 && [
          el("h2", {}, "Evaluations"),
          el("div.stack", {}, evaluations.map((one) => el("div.card", {}, el("h3", {}, [one.when, one.checkpoint].filter(Boolean).join(" · ")), one.data && el("p.soft.small", {}, `on ${one.data}`), facts(one.results)))),
        ],
        proof.length > 0 && [el("h2", {}, "Verification"), el("ul", {}, proof.map((text) => el("li", {}, text)))],
      ].flat(2);
    });
  },
  plan() {
    refill("plan", head.plan, () => {
      const { rows, word, basis, parts, known, data: sources } = head.plan;
      return [
        rows.length ? el("h2", {}, word === "actual" ? "Predicted and actual" : "Predicted, and so far") : null,
        rows.length ? el("div.stack", {}, rows.map((row) => bars(row, word))) : empty("Nothing was predicted for this run."),
        basis && el("p.soft.small.bar-basis", {}, basis),
        parts.length > 0 && [el("h2", {}, "Predicted time by part"), facts(parts)],
        sources.length > 0 && [el("h2", {}, "Data"), table(["data", "fingerprint", "used"], sources)],
        el("h2", {}, "What it ran with"),
        facts(known),
      ].flat();
    });
  },
  recipe() {
    once("recipe", () => {
      const { recipe } = data;
      if (!recipe) return fill(panel("recipe"), empty("This run has no recipe.yaml."));
      return fill(
        panel("recipe"),
        el("h2", {}, "The command"),
        el("div.stack", {}, codeBlock(recipe.command), kind === "run" && codeBlock(recipe.replay)),
        kind === "run" && el("p.soft.small.bar-basis", {}, "The first runs this recipe again, the second its whole lineage."),
        recipe.derived.length > 0 && [
          el("h2", {}, "Derived values, and why"),
          table(["key", "value", "reason"], recipe.derived.map(([key, value, why]) => [el("code", {}, key), el("code", {}, value), why])),
        ],
        el("h2", {}, "Full recipe"),
        recipeCode(recipe.text),
        head.actions.new && el("p.actions.below", {}, el("a.button", { href: head.actions.new }, "New run from this recipe")),
      );
    });
  },
  log() {
    refill("log", head.warnings, () => [
      el("h2", {}, "Warnings"),
      head.warnings.length ? el("div", {}, head.warnings.map((text) => el("div.notice.warn", {}, text))) : el("p.soft", {}, "None."),
      el("h2", {}, "Log"),
      el("div", { id: "log-text" }, el("p.soft", {}, "Loading …")),
    ]);
    showLog();
  },
  lineage() {
    once("lineage", async () => {
      fill(panel("lineage"), el("p.soft", {}, "Loading …"));
      try {
        const { tree, users } = await api(`${path}/lineage`);
        fill(
          panel("lineage"),
          el("ul.tree", {}, node(tree, "", true)),
          users.length > 0 && [el("h2", {}, "Made from this run"), el("ul.links", {}, users.map((one) => el("li", {}, el("a", { href: one.href }, one.name))))],
        );
      } catch (error) {
        fill(panel("lineage"), empty(error.message));
        shown.delete("lineage");
      }
    });
  },
  async report() {
    if (!head.has_report) return fill(panel("report"), empty("The report is written at the end of a run."));
    if (shown.has(`report ${head.status}`)) return undefined;
    shown.add(`report ${head.status}`);
    try {
      const { text, pictures } = await api(`${path}/report`);
      const known = Object.fromEntries(pictures.map((file) => [file, `/runs-files/${encoded}/${file}`]));
      fill(panel("report"), el("article.report", {}, reportElements(text, known, reportLink)));
    } catch (error) {
      fill(panel("report"), empty(error.message));
    }
    return undefined;
  },
};

const reportLink = (address) => {
  const stageReport = /^([\w%.=-]+)\/report\.md$/.exec(address);
  if (stageReport) return `/runs/${encoded}/${stageReport[1]}#report`;
  return address === "samples.md" ? "#samples" : null;
};

function picture(file, alt) {
  return head.pictures.includes(file) ? el("img.report-picture", { src: `/runs-files/${encoded}/${file}`, alt }) : null;
}

async function showLog() {
  try {
    const { log } = await api(`${path}/log`);
    const box = find("#log-text");
    if (log === null) fill(box, el("p.soft", {}, "This run was started in a terminal. What it printed is there."));
    else if (box.firstChild?.textContent !== log) {
      const text = el("pre", { tabIndex: 0 }, log || "Nothing yet.");
      fill(box, text);
      text.scrollTop = text.scrollHeight;
    }
  } catch (error) {
    showError(error);
  }
}

// --- a run that ended before anything was trained: its folder was removed

let ended = null; // the command that was to create the run
let isGone = false;

function showGone(text) {
  isGone = true;
  find("#progress").hidden = find("#stats").hidden = true;
  fill(find("#control"));
  fill(find("#actions"));
  const status = find("#about .status");
  status.className = "status failed";
  status.textContent = "failed";
  fill(find("#notices"), el("div.notice.bad", { role: "alert" }, el("b", {}, "This run ended before anything was trained. "), ended?.error ?? text));
}

watch("launches", (rows) => {
  ended = rows?.find((one) => one.run === name && one.error) ?? ended;
  if (ended && isGone) showGone(ended.error);
});

// --- start

let current = null;
const tabs = find("[role=tablist]");
tabs.addEventListener("choose", (event) => {
  current = event.detail;
  TABS[current]();
});
showHead();
current = find("[role=tab][aria-selected=true]").id;
TABS[current]();
watch(
  `run:${name}`,
  (update, problems) => {
    if (problems) return showGone(problems[0].text);
    const before = head.status;
    head = update;
    if (busy === "stop" && head.status !== "running") busy = null;
    if (busy === "resume" && head.status === "running" && before !== "running") busy = null;
    if (before !== head.status && before === "running") toast(`This run is ${head.status}.`);
    showHead();
    const noCurves = find("#curves-panel .empty");
    if (noCurves && !noCurves.hidden) showEmpty(noCurves);
    if (["stages", "scores", "plan", "log", "report"].includes(current)) TABS[current]();
    return undefined;
  },
  data.cursor,
);
if (kind === "run" && head.status === "running") watch("gpu", (update) => update && showGpus(find("#gpus"), head.status === "running" ? update.gpus : []));
