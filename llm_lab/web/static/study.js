// A study, a sweep or a duel: its progress, its runs, its report as it grows.
import { api, askNow, codeBlock, data, duration, el, fill, find, number, showError, watch } from "./lab.js";
import { encodePath, inline, sortableTable, status } from "./study_parts.js";

const OVER = ["done", "failed", "stopped", "interrupted"];
const sorts = new Map(); // how each table is sorted, kept while the page is built again
let study = data.study;
let blobs = [];

function actions() {
  const found = [];
  if (study.status === "running") found.push(el("button.danger", { type: "button", onclick: () => act("stop") }, "Stop"));
  if (study.resumable) found.push(el("button.primary", { type: "button", onclick: () => act("resume") }, "Resume"));
  if (study.form && study.status !== "running") found.push(el("a.button", { href: study.form }, "Change and start again"));
  fill(find("#actions"), status(study.status), ...found);
}

async function act(what) {
  for (const button of find("#actions").querySelectorAll("button")) button.disabled = true;
  try {
    await api(`/api/experiments/${what}`, { body: { name: data.name } });
    followLog();
  } catch (error) {
    showError(error);
    actions();
  }
  askNow();
}

function progress() {
  const { runs } = study;
  find("#progress").hidden = !runs.length;
  if (!runs.length) return;
  const share = (run) => (run.status === "done" ? 1 : run.max_steps ? Math.min(1, run.step / run.max_steps) : 0);
  const done = runs.filter((run) => run.status === "done").length;
  const all = runs.reduce((sum, run) => sum + share(run), 0) / runs.length;
  const head = ["run", "status", "progress", "loss", ...(study.measure ? [study.measure] : ["result"]), "time"];
  const rows = runs.map((run) => {
    const link = ["waiting"].includes(run.status) ? run.label : el("a", { href: `/runs/${encodePath(run.name)}` }, run.label);
    const bar = el("progress", { max: 1, value: share(run), "aria-label": `Progress of ${run.label}` });
    const steps = run.max_steps ? `${run.step.toLocaleString("en-US")} / ${run.max_steps.toLocaleString("en-US")}` : "";
    const state = run.error ? el("span", { title: run.error }, status(run.status)) : status(run.status);
    return [cell(link, run.label), cell(state, run.status), cell(el("span.bar", {}, bar, el("small", {}, steps)), share(run)),
      cell(number(run.loss), run.loss ?? ""), cell(study.measure ? number(run.value) : run.results.join(", "), run.value ?? ""),
      cell(duration(run.seconds), run.seconds ?? "")];
  });
  sorts.set("runs", sorts.get("runs") ?? {});
  const places = () => [...find("#progress").querySelectorAll("a, button, summary, [tabindex]")];
  const focused = places().indexOf(document.activeElement);
  const open = find("#progress details")?.open;
  fill(find("#progress"),
    el("div.progress-head", {}, el("h2", {}, "Runs"), el("span.soft", {}, `${done} of ${runs.length} done`)),
    el("progress.whole", { max: 1, value: all, "aria-label": "Progress of all runs" }),
    runs.length > 12 && OVER.includes(study.status)
      ? el("details", {}, el("summary", {}, `All ${runs.length} runs`), sortableTable(head, rows, "Runs", sorts.get("runs")))
      : sortableTable(head, rows, "Runs", sorts.get("runs")));
  // Redrawn each second while it works: the keyboard focus stays where it is.
  if (open) find("#progress details").open = true;
  if (focused >= 0) places()[focused]?.focus({ preventScroll: true });
}

const cell = (content, value) => el("span", { "data-value": String(value) }, content);

function picture(block) {
  let src = `/runs-files/${encodePath(data.name)}/${encodePath(block.file)}?${block.changed ?? ""}`;
  if (block.svg) {
    src = URL.createObjectURL(new Blob([block.svg], { type: "image/svg+xml" }));
    blobs.push(src);
  }
  return el("figure.picture", {}, el("div.scroll", { tabIndex: 0, role: "region", "aria-label": block.text || block.file }, el("img", { src, alt: block.text || block.file })),
    block.text ? el("figcaption", {}, inline(block.text)) : null);
}

function part(block, at) {
  const key = `${at} ${block.text}`;
  switch (block.kind) {
    case "heading": return el("h2", {}, block.text);
    case "picture": return picture(block);
    case "items": return el("ul", {}, block.rows.map(([text]) => el("li", {}, inline(text))));
    case "code": return codeBlock(block.text);
    case "table":
      sorts.set(key, sorts.get(key) ?? {});
      return el("figure.table", {}, block.text ? el("figcaption", {}, inline(block.text)) : null,
        sortableTable(block.head ?? [], block.rows ?? [], block.text, sorts.get(key)));
    default: return el("p", {}, inline(block.text));
  }
}

let reported = "";
function report() {
  const now = JSON.stringify(study.blocks);
  if (now === reported) return; // avoids flicker while the user reads
  reported = now;
  const old = blobs;
  blobs = [];
  fill(find("#report"), study.blocks.map(part));
  old.forEach((url) => URL.revokeObjectURL(url));
}

function show() {
  if (!study) {
    fill(find("#actions"), status("running"));
    fill(find("#summary"), "Starting …");
    return;
  }
  find("#title").textContent = study.title;
  document.title = `${study.title} · LLM Lab`;
  if (study.experiment) {
    fill(find("#crumbs"), el("a", { href: "/experiments" }, "Experiments"), " / ",
      el("a", { href: `/experiments/${encodeURIComponent(study.experiment)}` }, study.experiment), " / ", data.name);
  }
  actions();
  fill(find("#summary"), inline(study.about[0] ?? ""));
  fill(find("#problem"), study.error ? el("p.notice.bad", { role: "alert" }, study.error) : null);
  find("#results").hidden = !study.results.length;
  fill(find("#results"), study.results.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  progress();
  report();
  fill(find("#again"),
    study.command ? [el("h2", {}, "The command"), el("p.soft.small", {}, "Run it again to continue with what is not done."), codeBlock(study.command)] : null,
    study.about.length > 1 ? el("details.about", {}, el("summary", {}, "What this study does"), study.about.slice(1).map((text) => el("p", {}, inline(text)))) : null);
}

// The output of the command, if this server started it.
let following;
async function followLog() {
  clearTimeout(following);
  try {
    const { log, exit_code: code, error } = await api(`/api/experiments/log/${encodePath(data.name)}`);
    const box = find("#log");
    box.hidden = !log;
    const pre = find("pre", box);
    const atEnd = pre.scrollTop + pre.clientHeight >= pre.scrollHeight - 8;
    pre.textContent = log;
    if (atEnd) pre.scrollTop = pre.scrollHeight;
    if (!study && code !== null) {
      fill(find("#actions"), status("failed"));
      fill(find("#summary"), error ?? "It ended before there was a run.");
      return;
    }
    if (study && code) box.open = true;
    if (code === null && log !== "") following = setTimeout(followLog, 1500);
    else if (!study) following = setTimeout(followLog, 500);
    else if (study.status === "running" && code === null && !log) following = setTimeout(followLog, 3000);
  } catch (error) {
    showError(error);
  }
}

show();
followLog();
watch(`study:${data.name}`, (found, problems) => {
  if (problems) showError({ message: problems.map((problem) => problem.text).join("\n") });
  if (!found) return;
  const first = !study;
  study = found;
  show();
  if (first) followLog();
}, data.stamp);
