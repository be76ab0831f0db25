// All experiments, the sweep and the duel, and the results so far.
import { data, el, fill, find, watch } from "./lab.js";
import { launched, resultList } from "./study_parts.js";

const card = (href, title, text, foot, classes = "") =>
  el(`a.card.experiment${classes}`, { href }, el("h3", {}, title), el("p", {}, text), el("p.foot", {}, foot));

fill(find("#comparisons"),
  card("/experiments/sweep", "Sweep", data.about.sweep, "a question of your own"),
  card("/experiments/duel", "Duel", data.about.duel, "a question of your own"),
);
fill(find("#found"), data.experiments.map((one) =>
  card(`/experiments/${encodeURIComponent(one.name)}`, one.title, one.error ? `It can't run: ${one.error}` : one.summary, [
    one.takes || "", one.own ? el("span.tag", {}, "yours") : null, one.error ? el("span.status.failed", {}, "broken") : null,
  ].filter(Boolean), one.error ? ".broken" : ""),
));

let results = data.results;
let commands = [];
const show = () =>
  fill(find("#results"), resultList([...launched(commands), ...results], "No results yet. Start a study, a sweep or a duel, and it appears here."));
show();
watch("results", (rows) => rows && show((results = rows)));
watch("launches", (rows) => rows && show((commands = rows)));
