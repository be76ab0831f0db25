// The views of what was measured inside a model. Each is built once for a model and a text, and redrawn with the
// numbers of another checkpoint.
import { color, el, fill, find, number, showError } from "./lab.js";
import { curves, heatmap, text as fixed } from "./look_charts.js";
import { attentionSet, colorsOf, explorer, lensReader, nameOf, percent, similaritySet } from "./maps.js";
import { sortableTable } from "./study_parts.js";

const isDark = () => getComputedStyle(document.documentElement).colorScheme === "dark" ||
  (getComputedStyle(document.documentElement).colorScheme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
const signed = (value) => (value > 0 ? "+" : "") + fixed(value, 3);
const headName = (layer, head) => `L${layer}H${head}`;
const layerNames = (count) => ["input", ...Array.from({ length: count - 1 }, (_, at) => String(at))];
const note = (said) => el("div.empty", {}, el("p", {}, said));

/** ramps: the color scales. ask: {attribution(position), ablation(layer, head)}, promises of measurements on demand. */
export function createViews({ ramps, ask }) {
  let answer;
  let shape = "";
  let colors;
  let pictures = [];
  let draws = [];
  let goToHead = () => {};

  const readColors = () => (colors = colorsOf(ramps, isDark(), color));
  const table = (name) => answer.heads.reduce((rows, row) => {
    (rows[row.layer] ??= [])[row.head] = row[name];
    return rows;
  }, []);
  const view = (name) => find(`#${name}-view`);
  const keep = (picture, values, places) => {
    pictures.push(picture);
    draws.push(() => {
      const found = values();
      if (found) picture.draw(found, places?.());
    });
    return picture.element;
  };
  const byHead = (title, about, values, more = {}) => {
    const { layers, heads } = answer.model;
    const rows = Array.from({ length: layers }, (_, at) => String(at));
    const columns = Array.from({ length: heads }, (_, at) => String(at));
    return keep(heatmap({ title, about, rows, columns, x: "head", y: "layer", colors: () => colors, names: headName, pick: (layer, head) => goToHead(layer, head), ...more }), values);
  };
  const squareOfLayers = (title, about, values, x, y) => {
    const names = layerNames(answer.model.layers + 1);
    return keep(heatmap({ title, about, rows: names, columns: names, x, y, colors: () => colors, low: 0, high: 1 }), values);
  };

  function scale(kind, ends) {
    const bar = el("i");
    const paint = () => {
      const stops = colors[kind].filter((_, at) => at % 4 === 0).map((one) => `rgb(${one.join(",")})`);
      bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    };
    pictures.push({ repaint: paint });
    paint();
    return el("span.look-scale", {}, ends[0], bar, ends[1]);
  }

  // --- attention

  function attention() {
    const { maps, missing, difference, model } = answer;
    if (!maps.attention) return fill(view("attention"), note(missing.attention ?? missing.scores ?? "There are no attention weights."));
    const state = { mode: "0", hideFirst: false };
    let chosen = maps.attention.first;
    const hide = el("input", { type: "checkbox", id: "hide-first" });
    const share = scale("share", ["0 %", "100 %"]);
    const change = scale("signed", ["−100 %", "+100 %"]);
    change.hidden = true;
    const modes = difference ? ["0", "1", "difference"] : [];
    const names = difference ? [model.name, difference.name, "difference"] : [];
    const buttons = modes.map((mode, at) => el("button", { type: "button", "aria-pressed": String(at === 0), onclick: () => {
      state.mode = mode;
      buttons.forEach((one, other) => one.setAttribute("aria-pressed", String(other === at)));
      share.hidden = mode === "difference";
      change.hidden = mode !== "difference";
      repaint();
    } }, names[at]));
    const ablate = el("button", { type: "button" }, "Ablate this head");
    const effect = el("p.small.effect", { role: "status" });
    const figure = el("figure.look", { id: "look-heads" },
      el("div.look-bar", {}, el("label", {}, hide, " Hide the first token"), buttons.length ? el("div.segmented", { role: "group", "aria-label": "Which model" }, buttons) : null, share, change, ablate),
      effect,
      el("figcaption", {}, `Each small picture is one head: rows are layers, columns are heads. In a picture, each row is a token that attends, each column one that it attends to. Colors grow with the square root of the weight. On average, ${percent(answer.sink ?? 0)} of the attention goes to the first token: heads that find nothing to read attend there (the attention sink).`));
    fill(view("attention"), figure);
    figure.addEventListener("choose", ({ detail }) => {
      if (detail !== chosen) effect.textContent = "";
      chosen = detail;
    });
    const repaint = explorer(figure, {
      tokens: maps.tokens,
      set: attentionSet(maps.tokens, () => answer.maps.attention, () => state),
      colors: () => colors,
      names: { grid: "Heads by layer; arrow keys move", large: "Attention of the chosen head; arrow keys move the row" },
    });
    pictures.push({ repaint });
    draws.push(repaint);
    hide.addEventListener("change", () => {
      state.hideFirst = hide.checked;
      repaint();
    });
    goToHead = (layer, head) => {
      find("#attention").click();
      const small = figure.querySelectorAll(".look-small")[layer * model.heads + head];
      small?.click();
      small?.focus();
    };
    ablate.addEventListener("click", async () => {
      const [layer, head] = [Math.floor(chosen / model.heads), chosen % model.heads];
      effect.textContent = `Measuring without ${headName(layer, head)} …`;
      try {
        effect.textContent = ablationWords(await ask.ablation(layer, head));
      } catch (error) {
        effect.textContent = error.message;
      }
    });
  }

  const ablationWords = ({ layer, head, repeated, text, losses }) =>
    `With the output of ${headName(layer, head)} set to zero, the loss changes by ${signed(repeated)} nats on repeated random tokens (${fixed(losses[0], 3)} with the head) and by ${signed(text)} on the text (${fixed(losses[1], 3)}).`;

  // --- heads

  function heads() {
    if (!answer.heads.length) return fill(view("heads"), note(answer.missing.scores ?? answer.missing.attention ?? "There are no heads."));
    const sort = { at: 1, up: false };
    const list = el("div");
    fill(view("heads"),
      el("p.soft", {}, "The scores are measured on random tokens that are repeated once, so that nothing but the repetition can be predicted. A click on a cell opens the head. In the table, same token is the attention to a token's own first occurrence, and attribution what the head adds to the logit of the prediction."),
      el("div.charts", {},
        byHead("Induction", "Attention from a token in the second copy to the one that followed it in the first.", () => table("induction"), { low: 0, high: 1 }),
        byHead("Previous token", "Attention to the token just before. Induction heads need such a head in a layer below.", () => table("previous"), { low: 0, high: 1 }),
        byHead("First token", "Attention to the first token of the text: the sink.", () => table("first_token"), { low: 0, high: 1 }),
        byHead("Entropy", "In bits, on the text: 0 is a single token, each further bit doubles the number of tokens.", () => table("entropy_bits"), { unit: " bits" })),
      el("h2", {}, "All heads"), el("div.tall", {}, list));
    const cell = (row, name) => el("span", { "data-value": row[name] ?? "" }, fixed(row[name]));
    draws.push(() => fill(list, sortableTable(
      ["head", "induction", "previous token", "same token", "first token", "entropy, bits", "attribution", "without it"],
      answer.heads.map((row) => [
        el("button.quiet.link", { type: "button", onclick: () => goToHead(row.layer, row.head) }, headName(row.layer, row.head)),
        ...["induction", "previous", "duplicate", "first_token", "entropy_bits", "attribution"].map((name) => cell(row, name)),
        ablateButton(row)]),
      "Heads", sort)));
  }

  function ablateButton({ layer, head }) {
    const button = el("button.quiet.small", { type: "button", "aria-label": `Ablate ${headName(layer, head)}` }, "ablate");
    button.addEventListener("click", async () => {
      button.disabled = true;
      button.textContent = "…";
      try {
        const found = await ask.ablation(layer, head);
        button.replaceWith(el("span.small", { title: ablationWords(found), "data-value": String(found.repeated) }, `${signed(found.repeated)} nats`));
      } catch (error) {
        showError(error);
        button.disabled = false;
        button.textContent = "ablate";
      }
    });
    return button;
  }

  // --- the residual stream

  function layers() {
    const column = (name) => () => answer.layers.map((row) => row[name] ?? null);
    const inner = (name) => () => answer.layers.slice(1).map((row) => row[name] ?? null);
    const has = (name) => answer.layers.some((row) => row[name] !== undefined);
    const layered = () => answer.layers.slice(1).map((row) => row.after_layer);
    fill(view("layers"), el("div.charts", {},
      keep(curves({ title: "Norm of the residual stream", about: "Mean over the tokens, without the first: 0 is the embedding.", names: ["norm"], x: "layers passed" }), () => [column("residual_norm")()]),
      has("attention_norm")
        ? keep(curves({ title: "What each layer adds", about: "The mean norm of what attention and the feed-forward network add.", names: ["attention", "feed-forward"] }), () => [inner("attention_norm")(), inner("mlp_norm")()], layered)
        : note(answer.missing.parts ?? ""),
      has("lens_loss")
        ? keep(curves({ title: "Loss of the logit lens on the text", about: "The layers where the curve falls improve the prediction most. In nats per token.", names: ["loss"], x: "layers passed" }), () => [column("lens_loss")()])
        : null));
    const checks = el("div");
    view("layers").append(el("h2", {}, "Checks"), el("p.soft", {}, "Each check compares two measured values that must be equal; it fails if the error is larger than rounding can explain."), checks);
    draws.push(() => fill(checks, sortableTable(["check", "error", "limit", "result"],
      answer.checks.map((one) => [one.name, one.error.toExponential(1), one.limit.toExponential(0), one.holds ? "holds" : "fails"]), "Checks")));
  }

  // --- the logit lens

  function lens() {
    const { maps, missing } = answer;
    if (!maps.lens) return fill(view("lens"), note(missing.lens ?? "There is no logit lens."));
    const { tokens } = maps;
    const spoken = el("p.look-row", { id: "look-lens-cell", "aria-live": "polite" });
    const count = maps.lens.length;
    const cells = [];
    const rows = Array.from({ length: count }, (_, at) => count - 1 - at).map((layer) => {
      cells[layer] = tokens.map(() => el("td", { tabIndex: -1 }));
      return el("tr", {}, el("th", { scope: "row" }, layer === 0 ? "input" : String(layer - 1)), cells[layer]);
    });
    const grid = el("table", { id: "look-lens" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "layer"), tokens.map((token) => el("th", { scope: "col" }, token)))),
      el("tbody", {}, rows));
    fill(view("lens"), el("figure.look", {}, spoken, el("div.look-lens-box", {}, grid),
      el("figcaption", {}, "The top prediction for the next token, after each token of the text (columns) and each layer (rows). The stronger the color, the higher its probability; bold where it is already the model's final prediction. The first row is the model's own prediction.")));
    draws.push(() => {
      const now = answer.maps;
      now.lens.forEach((row, layer) => row.forEach((best, at) => {
        const [token, probability] = best[0];
        const cell = cells[layer][at];
        cell.textContent = now.words[token];
        cell.style.setProperty("--p", `${(100 * probability).toFixed(0)}%`);
        cell.classList.toggle("same", token === now.lens[count - 1][at][0][0]);
      }));
      if (spoken.textContent) find("td[tabindex='0']", grid)?.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
      else lensReader(grid, spoken, tokens, () => answer.maps);
    });
  }

  // --- attribution

  function parts() {
    if (!answer.attribution) return fill(view("parts"), note(answer.missing.lens ?? "There is no attribution."));
    const { tokens } = answer.maps;
    let shown = answer.attribution;
    const pick = el("select", { id: "position" }, tokens.map((_, at) => el("option", { value: at }, nameOf(tokens, at))));
    const words = el("p.lead");
    const list = el("details.numbers", {}, el("summary", {}, "All parts as a table"), el("div"));
    const mine = [];
    const own = (element) => {
      mine.push(draws.pop());
      return element;
    };
    const charts = [
      shown.attention && own(keep(curves({ title: "By layer", about: "What attention and the feed-forward network of each layer write directly.", names: ["attention", "feed-forward"] }), () => shown.attention && [shown.attention, shown.feed_forward])),
      shown.heads && own(byHead("By head", "Which heads raise the logit of the prediction directly, and which lower it.", () => shown.heads, { signed: true })),
    ].filter(Boolean);
    fill(view("parts"),
      el("div.field.narrow", {}, el("label", { for: "position" }, "The prediction after"), pick),
      words, charts.length ? el("div.charts", {}, charts) : note(answer.missing["heads of attribution"] ?? shown.why ?? ""), list);
    const show = () => {
      pick.value = String(shown.position);
      words.textContent = `After “${shown.after}”, the model's top prediction is “${shown.token}”. Its logit of ${fixed(shown.logit)} is ${fixed(shown.above_mean)} above the mean of the vocabulary. This difference is the sum of what each part below added to the residual stream. Only direct effects count.`;
      mine.forEach((draw) => draw());
      fill(find("div", list), sortableTable(["part", "above the mean", "logit"], shown.rows.map(([name, logit, above]) =>
        [name, el("span", { "data-value": above }, signed(above)), el("span", { "data-value": logit }, signed(logit))]), "Parts"));
    };
    const measure = async (position) => {
      try {
        shown = await ask.attribution(position);
        show();
      } catch (error) {
        showError(error);
      }
    };
    pick.addEventListener("change", () => measure(Number(pick.value)));
    draws.push(() => {
      const position = Number(pick.value || shown.position);
      const isLast = shown.position === answer.attribution.position || position === answer.attribution.position;
      if (isLast || !pick.value) {
        shown = answer.attribution;
        show();
      } else measure(position);
    });
  }

  // --- similarity

  function similarity() {
    const { tokens } = answer.maps;
    const figure = el("figure.look", { id: "look-positions" }, el("div.look-bar", {}, scale("signed", ["−1", "1"])),
      el("figcaption", {}, "The cosine similarity of the states of all pairs of tokens, after each layer. Blocks are groups of tokens that the model has made alike; one uniform color means that all states share a large common direction."));
    const charts = el("div.charts", {},
      keep(curves({ title: "Mean cosine of different tokens", about: "Without the first token. A fall at the end means that the last layers separate the tokens again.", names: ["cosine"], x: "layers passed" }), () => [answer.layers.map((row) => row.mean_cosine)]),
      answer.cka ? squareOfLayers("CKA of layers", "CKA (centered kernel alignment): how similarly two layers arrange the tokens. 1: the same, 0: nothing in common.", () => answer.cka, "after layer", "after layer") : note(answer.missing.cka ?? ""));
    fill(view("similarity"), figure, charts);
    const repaint = explorer(figure, {
      tokens,
      set: similaritySet(tokens, () => answer.maps.similarity),
      colors: () => colors,
      names: { grid: "Layers; arrow keys move", large: "Cosine similarity of the tokens; arrow keys move the row" },
      flow: true,
    });
    pictures.push({ repaint });
    draws.push(repaint);
  }

  // --- another model

  function difference() {
    find("#difference").hidden = !answer.difference;
    if (!answer.difference) {
      if (find("#difference").getAttribute("aria-selected") === "true") find("#attention").click();
      return fill(view("difference"));
    }
    const now = () => answer.difference;
    const { name } = now();
    const words = el("p.lead");
    const list = el("div");
    fill(view("difference"), words, el("div.charts", {},
      now().attention && byHead("Attention that moved, in %", "The mean share of each head's attention that goes to different tokens in the other model.", () => now().attention.map((row) => row.map((value) => value === null ? null : 100 * value)), { low: 0, digits: 0 }),
      now().induction && byHead("Change of the induction score", "Which heads became stronger or weaker induction heads.", () => now().induction, { signed: true, high: 0.1 }),
      keep(curves({ title: "Change of the residual stream's norm, in %", names: ["change"], x: "layers passed" }), () => [now().norms.map((value) => 100 * value)]),
      now().cka && squareOfLayers("CKA of the two models", "A diagonal of 1 that fades with depth is typical of fine-tuning.", () => now().cka, "the second, after layer", "the first, after layer")),
      el("h2", {}, "Where the predictions differ"), el("div.tall", {}, list));
    draws.push(() => {
      words.textContent = `Both models read the same tokens. The loss on the text is ${fixed(answer.loss, 3)} for ${answer.model.name} and ${fixed(now().loss, 3)} for ${name}. Differences are the second minus the first: orange is more, blue less.`;
      const rows = now().divergence.map((bits, at) => [nameOf(answer.maps.tokens, at), ...(now().predictions[at] ?? ["–", "–"]), el("span", { "data-value": bits }, fixed(bits, 3))]);
      fill(list, sortableTable(["after token", `${answer.model.name} predicts`, `${name} predicts`, "KL, bits"], rows, "Predictions", differenceSort));
    });
  }
  const differenceSort = { at: 3, up: false };

  function build() {
    [pictures, draws] = [[], []];
    readColors();
    for (const make of [attention, heads, layers, lens, parts, similarity, difference]) make();
  }

  document.addEventListener("theme", repaintAll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaintAll);
  function repaintAll() {
    if (!answer) return;
    readColors();
    pictures.forEach((one) => one.repaint());
  }

  return {
    /** Show an answer; if the tokens and the shape are unchanged, only the numbers are redrawn. */
    show(found) {
      answer = found;
      const { model, maps, difference: other } = found;
      const now = JSON.stringify([maps.tokens, model.layers, model.heads, other?.name, Boolean(maps.lens), found.attribution?.attention !== null, found.layers.length]);
      if (now !== shape) build();
      shape = now;
      draws.forEach((draw) => draw());
      fill(find("#facts"), [["architecture", model.architecture], ["parameters", number(model.parameters)], ["layers", model.layers],
        ["heads in each", model.heads || "–"], ["tokens", maps.tokens.length], ["loss on the text", fixed(found.loss, 3)]]
        .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))));
      fill(find("#summary"), found.summary.map((line) => el("li", {}, line)));
      fill(find("#remarks"), [...found.remarks, ...Object.values(found.missing)].map((line) => el("p.notice", {}, line)));
    },
  };
}
