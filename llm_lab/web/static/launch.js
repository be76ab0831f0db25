// A command that was started: follow it until its run exists, and show its output if it failed.
import { api, el, fill } from "./lab.js";

const EVERY_MS = 600;

/** Why a command ended, in words; the rest of its output is collapsed. */
export const whyItEnded = (error, log, title = "The run could not start") =>
  el(
    "div.notice.bad.ended", { role: "alert" },
    el("b", {}, title),
    el("p", {}, error ?? "The command ended before its run began."),
    log && el("details", {}, el("summary", {}, "All that it printed"), el("pre.printed", { tabIndex: 0 }, log)),
  );

/** Go to the page of the run as soon as there is one; box: where to show what happens until then. */
export async function followLaunch(number, command, box, then = () => {}) {
  fill(box, el("p", {}, "Started: ", el("code", {}, command)), el("p.soft", {}, "Loading the libraries and the data ..."));
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    const { exit_code: code, error, run, log } = await api(`/api/launches/${number}`);
    if (run) {
      then();
      location.assign(`/runs/${run.split("/").map(encodeURIComponent).join("/")}`);
      return;
    }
    if (code !== null) {
      fill(box, whyItEnded(error, log));
      return;
    }
  }
}
