// The list of runs.
import { data, el, fill, find, watch } from "./lab.js";

function show({ runs }) {
  const rows = runs.map((run) =>
    el("tr", {}, el("th", { scope: "row" }, el("a", { href: `/runs/${run.name}` }, run.name)), el("td", {}, el(`span.status.${run.status}`, {}, run.status))),
  );
  fill(find("#runs"), el("div.wide", {}, el("table", {}, el("tbody", {}, rows))));
}

show(data);
watch("runs", show);
