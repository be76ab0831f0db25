// Always in view: what the run needs, its recipe, its command, and the buttons that start and save it.
import { api, codeBlock, data, duration, el, fill, find, LabError, number, showError, toast } from "./lab.js";
import { addToLook, answer, draft, forget, isMissing, onLook, problems, refuse, settled } from "./draft.js";
import { bytes } from "./datasets.js";
import { inLabels } from "./fields.js";
import { followLaunch } from "./launch.js";

const PRICE = "price per hour";
const SIZES_MS = 700; // after the last answer
let looking = null;

/** Make the panel. name: the field of the run's name. goTo: shows the field of a problem. */
export function makePlan(name, goTo) {
  const start = el("button.primary.large", { type: "button" }, "Start");
  const save = el("button", { type: "button" }, "Save as recipe");
  const state = el("div", { role: "status" });
  const faults = el("div", { id: "faults", tabIndex: -1 });
  const numbers = el("div", {});
  const more = el("div.stack", {});
  const price = el("input.short", { type: "text", inputMode: "decimal", id: "price", placeholder: "0.00", autocomplete: "off" });
  try {
    price.value = localStorage.getItem(PRICE) ?? "";
  } catch {
    // Without storage, the question is asked again.
  }
  price.addEventListener("input", () => {
    try {
      localStorage.setItem(PRICE, price.value);
    } catch {
      // Without storage, the question is asked again.
    }
    showNumbers();
  });
  const wide = matchMedia("(min-width: 1001px)");
  const summary = el("span", {}, "Plan, recipe, command");
  let starting = false;
  const details = el("details.plan-body", {}, el("summary", {}, summary), faults, numbers, more);
  const fold = () => (details.open = wide.matches);
  wide.addEventListener("change", fold);
  fold();

  function showNumbers() {
    const { seen } = draft;
    const { plan } = seen;
    if (!plan) {
      fill(numbers, el("p.soft", {}, "The plan appears once the model is chosen."));
      return;
    }
    summary.textContent = [plan.fits ? "" : "Does not fit:", plan.memory ? `${bytes(plan.memory)} of memory` : "", plan.seconds ? `· about ${duration(plan.seconds)}` : ""].filter(Boolean).join(" ") || "Plan, recipe, command";
    const perHour = Number(price.value.replace(",", "."));
    const cost = plan.seconds && perHour > 0 ? number((plan.seconds / 3600) * perHour, 3) : null;
    const facts = [
      ["Parameters", plan.parameters ? short(plan.parameters) : null],
      ["Time", plan.seconds ? `about ${duration(plan.seconds)}` : null],
      ["Tokens", plan.tokens ? short(plan.tokens) : null],
      ["Disk", plan.disk ? el("span", {}, bytes(plan.disk), el("span.note", {}, diskParts(plan))) : null],
      ["Cost", cost],
    ].filter(([, value]) => value !== null);
    fill(
      numbers,
      plan.warnings.map((one) => el("p.notice.warn", {}, inLabels(one.text), " ", linkTo(one.key, "Change it", goTo))),
      plan.memory ? memoryBar(plan) : null,
      el("dl.facts", {}, facts.flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)])),
      el("div.inline.price", {}, el("label.soft", { for: "price" }, "Your price per hour"), price),
      el("details", {}, el("summary", {}, "The whole plan"), el("dl.facts.small", {}, plan.lines.flatMap(([term, text, style]) => [el("dt", {}, term), el("dd", { class: style }, text)]))),
    );
  }

  onLook(() => {
    const { seen } = draft;
    const found = problems();
    fill(
      faults,
      seen.banner && el("p.notice", {}, seen.banner),
      seen.cannot_start && el("div.notice.bad", {}, el("p", {}, seen.cannot_start), cudaIsMissing() && useAuto()),
      found.length ? problemList(found, goTo) : null,
    );
    showNumbers();
    fill(
      more,
      el("div", {}, el("h3", {}, "Command"), codeBlock(seen.command)),
      el("div", {}, el("h3", {}, "Recipe"), codeBlock(seen.recipe ?? ""), el("p.help", {}, `Written to ${seen.file} when you start. Keys that are left out are derived again.`)),
    );
    start.disabled = Boolean(seen.cannot_start) || starting;
    if (!starting && !find(".ended", state)) fill(state);
    if (!seen.sized) askForSizes();
  });

  start.addEventListener("click", async () => {
    starting = start.disabled = true;
    try {
      fill(state, el("p.soft", {}, "Checking the recipe and the data ..."));
      await settled();
      const open = problems();
      if (open.length) {
        const [first] = open;
        const what = isMissing(first) ? `${missingWord(first)} is still needed` : inLabels(first.text).replace(/\.$/, "");
        const rest = open.length > 1 ? ` (and ${open.length - 1} more)` : "";
        fill(state, el("p.error", { role: "alert" }, `Not started: ${what}${rest}. `, first.key && linkTo(first.key, "Show it", goTo)));
        details.open = true;
        find("#faults").focus();
        return;
      }
      const { launch, command } = await api("/api/new/start", { body: { recipe: draft.raw } });
      await followLaunch(launch, command, state, forget);
    } catch (error) {
      fill(state);
      details.open = true;
      if (error instanceof LabError) {
        refuse(error.problems);
        find("#faults").focus();
      } else showError(error);
    } finally {
      starting = start.disabled = false;
    }
  });
  save.addEventListener("click", () => saveRecipe(save));
  const taken = el("p.derived", { role: "status" });
  onLook(() => {
    taken.hidden = !draft.seen.taken;
    taken.textContent = taken.hidden ? "" : `There is a run named ${draft.raw.name} already. This one becomes ${draft.seen.taken}.`;
  });
  name.element.append(taken);
  return el("div.card.plan", {}, name.element, el("div.actions.starts", {}, start, save), state, details);
}

function diskParts({ disk_parts: parts }) {
  const sizes = Object.entries(parts).map(([name, size]) => `${name} ${bytes(size)}`);
  return sizes.length ? `${sizes.join(", ")}. A checkpoint also holds the optimizer's state.` : "";
}

const short = (value) =>
  value >= 1e12 ? `${number(value / 1e12, 3)} T` : value >= 1e9 ? `${number(value / 1e9, 3)} B` : value >= 1e6 ? `${number(value / 1e6, 3)} M` : value >= 1e3 ? `${number(value / 1e3, 3)} k` : number(value);

function memoryBar(plan) {
  const whole = Math.max(plan.memory_available, plan.memory);
  const parts = Object.entries(plan.memory_parts).filter(([, size]) => size > 0).sort((one, other) => other[1] - one[1]);
  const bars = parts.map(([name, size], index) => {
    const bar = el("span", { title: `${name}: ${bytes(size)}` });
    bar.style.width = `${(100 * size) / whole}%`;
    bar.style.background = `var(--c${index % 6})`;
    return bar;
  });
  const legend = parts.slice(0, 6).map(([name, size], index) => {
    const dot = el("i", {});
    dot.style.background = `var(--c${index % 6})`;
    return el("li", {}, dot, `${name} ${bytes(size)}`);
  });
  const text = `${plan.fits ? "" : "Does not fit: "}${bytes(plan.memory)} of ${bytes(plan.memory_available)}${plan.assumed ? " (assumed)" : ""}${plan.memory_measured ? " (measured here; the parts are estimated)" : ""}`;
  return el("div.memory", {}, el("div.label-row", {}, el("b", {}, "Memory"), el("span", { class: plan.fits ? "numeric" : "numeric bad" }, text)), el("div.bar", { class: plan.fits ? "bar" : "bar over", role: "img", "aria-label": `Memory: ${text}` }, bars), el("ul.legend", {}, legend));
}

const cudaIsMissing = () => draft.raw.device !== "auto" && draft.seen.cannot_start?.startsWith("device");

function useAuto() {
  const button = el("button", { type: "button" }, "Use what this machine has");
  button.addEventListener("click", () => answer({ path: "device", text: "auto" }));
  return button;
}

function linkTo(key, text, goTo) {
  const link = el("a", { href: `#${key}` }, text);
  link.addEventListener("click", (event) => {
    event.preventDefault();
    goTo(key);
  });
  return link;
}

const missingWord = ({ key }) => (key === "data" ? "a dataset" : "a model");

function problemList(found, goTo) {
  const missing = found.filter(isMissing);
  const wrong = found.filter((one) => !missing.includes(one));
  const link = (one, text) => {
    if (!one.key) return el("li", {}, inLabels(text));
    return el("li", {}, linkTo(one.key, inLabels(text), goTo));
  };
  return [
    missing.length ? el("div.notice", {}, el("b", {}, "Still needed: "), el("ul.faults", {}, missing.map((one) => link(one, missingWord(one))))) : null,
    wrong.length ? el("div.notice.bad", { role: "alert" }, el("b", {}, wrong.length === 1 ? "One problem" : `${wrong.length} problems`), el("ul.faults", {}, wrong.map((one) => link(one, one.text)))) : null,
  ];
}

/** Request what changes after a look at the data and the models: the number of examples decides steps and time. */
function askForSizes() {
  looking?.abort();
  if (!draft.raw.model && !data.form.from_scratch) return;
  if (!draft.seen.problems.every(isMissing) || !draft.seen.plan) return;
  const control = (looking = new AbortController());
  setTimeout(async () => {
    if (control.signal.aborted) return;
    try {
      const { found } = await api("/api/new/plan", { body: { recipe: draft.raw }, signal: control.signal });
      if (!control.signal.aborted) addToLook({ ...found, sized: true });
    } catch {
      // The check at the start reports what is wrong with the data.
    }
  }, SIZES_MS);
}

async function saveRecipe(opener) {
  await settled();
  const input = el("input", { type: "text", id: "save-name", value: draft.raw.name ?? "" });
  const note = el("p.error", { role: "alert", hidden: true });
  const yes = el("button.primary", { type: "submit" }, "Save");
  const close = el("button", { type: "button" }, "Cancel");
  const form = el("form", {}, el("h2", {}, "Save as recipe"), el("div.field", {}, el("label", { for: "save-name" }, "Name"), input, el("p.help", {}, "Written to configs/NAME.yaml, where the command line and the wizard find it.")), note, el("div.actions", {}, yes, close));
  const dialog = el("dialog", { "aria-label": "Save as recipe" }, form);
  let replace = false;
  input.addEventListener("input", () => {
    replace = false;
    note.hidden = true;
    yes.textContent = "Save";
  });
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    dialog.remove();
    opener.focus();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const { file } = await api("/api/new/save", { body: { recipe: draft.raw, name: input.value.trim(), replace } });
      toast(`Saved: ${file}`);
      dialog.close();
    } catch (error) {
      note.hidden = false;
      note.textContent = error.message;
      if (error.status === 409) {
        replace = true;
        yes.textContent = "Replace it";
      }
    }
  });
  document.body.append(dialog);
  dialog.showModal();
}
