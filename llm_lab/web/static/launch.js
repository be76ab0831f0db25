// A command that was started: follow it until its run is there, and show what it printed where it failed.
import { api, el, fill } from "./lab.js";

const EVERY_MS = 600;

/** Go to the page of the run as soon as there is one; box: where to say what happens until then. */
export async function followLaunch(number, command, box, then = () => {}) {
  fill(box, el("p", {}, "Started: ", el("code", {}, command)), el("p.soft", {}, "Loading the libraries and the data ..."));
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    const { exit_code: code, run, log, error } = await api(`/api/launches/${number}`);
    if (run) {
      then();
      location.assign(`/runs/${run.split("/").map(encodeURIComponent).join("/")}`);
      return;
    }
    if (code !== null) {
      const printed = el("details", {}, el("summary", {}, "All that it printed"), el("pre.printed", { tabIndex: 0 }, log));
      const end = error || `The command ended with exit code ${code} before its run began.`;
      fill(box, el("div.notice.bad.ended", { role: "alert" }, el("b", {}, "The run could not start"), el("p", {}, end), log ? printed : null));
      return;
    }
  }
}
