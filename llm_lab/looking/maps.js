// Maps of attention and of similarity over the tokens of a text, drawn on canvases: for the report and for the web page.
// This makes no requests, and parses no text as HTML.

export const make = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};

/**
 * The colors for a background: the scales as [r, g, b] lists, and the colors of text and lines.
 * ramps: {share: [light, dark], signed: [light, dark]}. named: returns the current color of a CSS variable.
 */
export const colorsOf = (ramps, dark, named) => {
  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const at = dark ? 1 : 0;
  const scales = { share: ramps.share[at].map(rgb), signed: ramps.signed[at].map(rgb) };
  return { ...scales, ink: named("ink"), soft: named("soft"), accent: named("c1") };
};

/** The color of a value. Weights are colored by their square root, so that small ones are visible too. */
export const colorAt = (colors, value, signed, linear) => {
  const size = Math.min(Math.abs(value), 1);
  const far = linear ? size : Math.sqrt(size);
  const ramp = signed ? colors.signed : colors.share;
  const last = ramp.length - 1;
  return ramp[Math.round(signed ? (last / 2) * (1 + Math.sign(value) * far) : last * far)];
};

/** Black or white, whichever has the higher contrast (WCAG 2) on a color; it is at least 4.5 on every color. */
export const inkOn = (rgb) => {
  const linear = rgb.map((part) => (part <= 10 ? part / 3294 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000000" : "#ffffff";
};

export const percent = (value, signed) => {
  const number = (value * 100).toFixed(Math.abs(value) < 0.1 ? 1 : 0);
  return (signed && value > 0 ? "+" : "") + number.replace("-", "−") + "\u202f%";
};

export const nameOf = (tokens, position) => "“" + tokens[position] + "” (" + position + ")";

const decoded = new Map();
const bytesOf = (text) => {
  if (!decoded.has(text)) {
    if (decoded.size > 400) decoded.clear(); // matrices of checkpoints that were shown before
    decoded.set(text, Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0)));
  }
  return decoded.get(text);
};
const place = (row, column) => (row * (row + 1)) / 2 + column;

/**
 * The set of all attention heads. read: returns the current data, {count, bytes, models: [{layers}], scores}.
 * view: the current view, {mode: a model's number or "difference", hideFirst}.
 */
export const attentionSet = (tokens, read, view) => {
  const { count, models, first } = read();
  const triangle = (tokens.length * (tokens.length + 1)) / 2;
  const weight = (model, index, i, j) => {
    const layer = read().models[model].layers[Math.floor(index / count)];
    if (layer === null) return 0;
    const at = (index % count) * triangle + place(i, j);
    const bytes = bytesOf(layer);
    return read().bytes === 2 ? (bytes[2 * at] * 256 + bytes[2 * at + 1]) / 65535 : bytes[at] / 255;
  };
  const isDifference = () => view().mode === "difference";
  const labels = models[0].layers.flatMap((_, layer) =>
    Array.from({ length: count }, (__, head) => "Layer " + layer + ", head " + head));
  return {
    first,
    labels,
    columns: count,
    symmetric: false,
    side: (index) => String(Math.floor(index / count)),
    has: (index) => models[0].layers[Math.floor(index / count)] !== null,
    value: (index, i, j) => {
      if (view().hideFirst && j === 0) return 0;
      return isDifference() ? weight(1, index, i, j) - weight(0, index, i, j) : weight(Number(view().mode), index, i, j);
    },
    signed: isDifference,
    say: percent,
    title: (index) => labels[index],
    facts: (index) =>
      read().scores.map(([what, values, unit]) => {
        const found = values[Math.floor(index / count)][index % count];
        return what + " " + (found === null ? "–" : found.toFixed(2) + unit);
      }).join(" · "),
    verb: (position) =>
      isDifference()
        ? "Change of the attention from " + nameOf(tokens, position) + " to:"
        : nameOf(tokens, position) + " attends to:",
  };
};

/** The set of the similarities of positions by layer. read: returns the current data, one matrix for each layer. */
export const similaritySet = (tokens, read) => {
  const labels = read().map((_, index) => (index === 0 ? "Before the first layer" : "After layer " + (index - 1)));
  return {
    first: Math.floor(labels.length / 2),
    labels,
    columns: 0,
    symmetric: true,
    side: (index) => (index === 0 ? "input" : String(index - 1)),
    has: () => true,
    value: (index, i, j) => bytesOf(read()[index])[place(Math.max(i, j), Math.min(i, j))] / 127 - 1,
    signed: () => true,
    say: (value) => value.toFixed(2).replace("-", "−"),
    title: (index) => labels[index],
    facts: () => "",
    verb: (position) => "Cosine of " + nameOf(tokens, position) + " with:",
  };
};

/** Build the elements that an explorer fills: small pictures, a large one, the text, a table. Returns the container. */
const explorerBody = (names, flow) => {
  const body = make("div", "look-body");
  const box = make("div", "look-grid-box");
  const grid = make("div", flow ? "look-grid look-flow" : "look-grid");
  grid.setAttribute("role", "group");
  grid.setAttribute("aria-label", names.grid);
  box.append(grid);
  const side = make("div");
  const text = make("div", "look-text");
  text.setAttribute("role", "listbox");
  text.setAttribute("aria-label", "The tokens of the text: choose one to see its row");
  const spoken = make("p", "look-row");
  spoken.setAttribute("aria-live", "polite");
  const largeBox = make("div", "look-large-box");
  const canvas = make("canvas", "look-large");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", names.large);
  largeBox.append(canvas);
  const rest = make("p", "look-rest");
  const details = make("details", "look-table");
  const wide = make("div", "wide");
  const table = make("table");
  const head = make("tr");
  for (const name of ["from", "first", "second", "third"]) {
    const cell = make("th", "", name);
    cell.scope = "col";
    head.append(cell);
  }
  const top = make("thead");
  top.append(head);
  table.append(top, make("tbody"));
  wide.append(table);
  details.append(make("summary", "", "This picture as a table: the three strongest of every row"), wide);
  side.append(make("p", "look-title"), make("p", "look-facts"), text, spoken, rest, largeBox, details);
  body.append(box, side);
  return body;
};

/**
 * A set of matrices over the tokens: small pictures to choose from, a large one, and the text colored by a row.
 * root: a figure; the set is inserted before its figcaption, if any. colors: the current scales. names: those of the
 * grid and of the large picture. Returns a function that draws all of it again.
 */
export const explorer = (root, { tokens, set, colors, names, flow }) => {
  const size = tokens.length;
  const body = explorerBody(names, flow);
  root.insertBefore(body, root.querySelector("figcaption"));
  let chosen = set.first;
  let row = size - 1;
  const grid = body.querySelector(".look-grid");
  const title = body.querySelector(".look-title");
  const facts = body.querySelector(".look-facts");
  const canvas = body.querySelector(".look-large");
  const text = body.querySelector(".look-text");
  const spoken = body.querySelector(".look-row");
  const rest = body.querySelector(".look-rest");
  const table = body.querySelector(".look-table");
  const buttons = [];
  const words = [];
  const last = (position) => (set.symmetric ? size - 1 : position);
  const color = (value, signed) => colorAt(colors(), value, signed, set.symmetric);
  const value = (index, i, j) => set.value(index, i, j);

  function paintSmall(index) {
    const small = buttons[index].firstChild;
    small.width = small.height = size;
    const context = small.getContext("2d");
    const image = context.createImageData(size, size);
    const signed = set.signed();
    for (let i = 0; i < size; i += 1) {
      for (let j = 0; j <= last(i); j += 1) {
        image.data.set(color(value(index, i, j), signed), 4 * (i * size + j));
        image.data[4 * (i * size + j) + 3] = 255;
      }
    }
    context.putImageData(image, 0, 0);
  }

  let geometry;
  function paintLarge() {
    if (!canvas.parentElement.clientWidth) return; // on a hidden tab
    const { ink, soft, accent } = colors();
    const context = canvas.getContext("2d");
    const family = getComputedStyle(document.body).fontFamily;
    const font = (bold) => (bold ? "600 " : "") + "11px " + family;
    context.font = font(true);
    const label = Math.min(110, Math.max(...tokens.map((token) => context.measureText(token).width)) + 10);
    const room = canvas.parentElement.clientWidth - label - 4;
    const cell = Math.max(12, Math.min(26, Math.floor(room / size)));
    const width = label + cell * size + 4;
    // Browsers refuse canvases that are too large, so those of a long text have a lower resolution.
    const scale = Math.max(1, Math.min(window.devicePixelRatio || 1, 4096 / width));
    canvas.width = width * scale;
    canvas.height = width * scale;
    canvas.style.width = canvas.style.height = width + "px";
    context.scale(scale, scale);
    geometry = { label, cell };
    const box = canvas.parentElement;
    const shown = Math.floor((Math.min(box.clientWidth, box.clientHeight) - label) / cell);
    rest.hidden = shown >= size;
    rest.textContent = "The picture has " + size + " tokens and shows " + shown + " of them: scroll in it to see the rest.";
    const signed = set.signed();
    for (let i = 0; i < size; i += 1) {
      for (let j = 0; j <= last(i); j += 1) {
        context.fillStyle = "rgb(" + color(value(chosen, i, j), signed).join(",") + ")";
        context.fillRect(label + j * cell, label + i * cell, cell - 1, cell - 1);
      }
    }
    context.textBaseline = "middle";
    const clipped = (token) => {
      let shown = token;
      while (shown.length > 1 && context.measureText(shown).width > label - 8) shown = shown.slice(0, -1);
      return shown === token ? token : shown.slice(0, -1) + "…";
    };
    for (let i = 0; i < size; i += 1) {
      context.fillStyle = i === row ? ink : soft;
      context.font = font(i === row);
      context.textAlign = "right";
      context.fillText(clipped(tokens[i]), label - 5, label + (i + 0.5) * cell);
      context.save();
      context.translate(label + (i + 0.5) * cell, label - 5);
      context.rotate(-Math.PI / 2);
      context.textAlign = "left";
      context.fillText(clipped(tokens[i]), 0, 0);
      context.restore();
    }
    context.strokeStyle = accent;
    context.lineWidth = 1.5;
    context.strokeRect(label - 1, label + row * cell - 1, cell * (last(row) + 1) + 1, cell + 1);
  }

  function strongest(position, count) {
    const found = [];
    for (let j = 0; j <= last(position); j += 1) found.push([j, value(chosen, position, j)]);
    const others = found.filter(([j, share]) => (set.symmetric ? j !== position : share !== 0));
    return others.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, count);
  }

  function paintRow() {
    const signed = set.signed();
    words.forEach((word, j) => {
      const seen = j <= last(row);
      const shade = seen ? color(value(chosen, row, j), signed) : null;
      word.style.backgroundColor = shade ? "rgb(" + shade.join(",") + ")" : "transparent";
      word.style.color = shade ? inkOn(shade) : "";
      word.style.opacity = seen ? "" : "0.55";
      word.classList.toggle("chosen", j === row);
      word.setAttribute("aria-selected", j === row ? "true" : "false");
      word.tabIndex = j === row ? 0 : -1;
    });
    const parts = strongest(row, 5).map(([j, share]) => nameOf(tokens, j) + " " + set.say(share, signed));
    spoken.textContent = set.verb(row) + " " + parts.join(", ");
  }

  function fillTable() {
    if (!table.open) return;
    const rows = make("tbody");
    for (let i = 0; i < size; i += 1) {
      const line = make("tr");
      const head = make("th", "", nameOf(tokens, i));
      head.scope = "row";
      line.append(head);
      const found = strongest(i, 3);
      for (let at = 0; at < 3; at += 1) {
        const said = at < found.length ? nameOf(tokens, found[at][0]) + " " + set.say(found[at][1], set.signed()) : "";
        line.append(make("td", "", said));
      }
      rows.append(line);
    }
    table.querySelector("tbody").replaceWith(rows);
  }

  function choose(index, focus) {
    buttons[chosen].setAttribute("aria-pressed", "false");
    buttons[chosen].tabIndex = -1;
    chosen = index;
    buttons[chosen].setAttribute("aria-pressed", "true");
    buttons[chosen].tabIndex = 0;
    if (focus) buttons[chosen].focus();
    title.textContent = set.title(chosen);
    facts.textContent = set.facts(chosen);
    root.dispatchEvent(new CustomEvent("choose", { detail: chosen }));
    paintLarge();
    paintRow();
    fillTable();
  }
  function chooseRow(position) {
    if (position < 0 || position >= size) return;
    row = position;
    paintLarge();
    const box = canvas.parentElement;
    const top = geometry ? geometry.label + row * geometry.cell : 0;
    if (geometry && (top + geometry.cell <= box.scrollTop || top >= box.scrollTop + box.clientHeight)) {
      box.scrollTop = top - box.clientHeight / 2;
    }
    paintRow();
  }

  if (set.columns) {
    grid.style.gridTemplateColumns = "auto repeat(" + set.columns + ", 40px)";
    grid.append(make("span", "look-side look-corner", ""));
    for (let column = 0; column < set.columns; column += 1) grid.append(make("span", "look-top", String(column)));
  }
  set.labels.forEach((label, index) => {
    if (set.columns && index % set.columns === 0) grid.append(make("span", "look-side", set.side(index)));
    const button = make("button", "look-small");
    button.type = "button";
    button.setAttribute("aria-label", label);
    button.setAttribute("aria-pressed", "false");
    button.title = label;
    button.tabIndex = -1;
    button.append(document.createElement("canvas"));
    if (!set.columns) button.append(make("span", "", set.side(index)));
    button.disabled = !set.has(index);
    button.addEventListener("click", () => choose(index, false));
    grid.append(button);
    buttons.push(button);
  });
  grid.addEventListener("keydown", (event) => {
    const across = set.columns || 1;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
    if (!step) return;
    event.preventDefault();
    let index = chosen + step;
    while (index >= 0 && index < buttons.length && buttons[index].disabled) index += step;
    if (index >= 0 && index < buttons.length) choose(index, true);
  });
  tokens.forEach((token, position) => {
    const word = make("span", "", token);
    word.setAttribute("role", "option");
    word.addEventListener("mouseenter", () => chooseRow(position));
    word.addEventListener("focus", () => chooseRow(position));
    word.addEventListener("click", () => word.focus());
    text.append(word);
    words.push(word);
  });
  const move = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const target = event.key === "Home" ? 0 : event.key === "End" ? size - 1 : row + step;
    if (!(target >= 0 && target < size)) return;
    event.preventDefault();
    chooseRow(target);
    if (event.currentTarget === text) words[target].focus();
  };
  text.addEventListener("keydown", move);
  canvas.addEventListener("keydown", move);
  const rowAt = (event) => {
    const box = canvas.getBoundingClientRect();
    chooseRow(Math.floor((event.clientY - box.top - geometry.label) / geometry.cell));
  };
  canvas.addEventListener("mousemove", rowAt);
  canvas.addEventListener("click", rowAt);
  table.addEventListener("toggle", fillTable);
  new ResizeObserver(paintLarge).observe(canvas.parentElement);
  return () => {
    buttons.forEach((button, index) => { if (!button.disabled) paintSmall(index); });
    choose(chosen, false);
    const box = grid.parentElement;
    const from = box.getBoundingClientRect();
    const at = buttons[chosen].getBoundingClientRect();
    if (at.bottom > from.bottom) box.scrollTop += at.top - from.top - box.clientHeight / 2;
  };
};

/**
 * The table of the logit lens: the details of the pointed or focused cell are shown; arrow keys move.
 * read: returns the data, {lens: the top tokens with probabilities by layer and position, words}; the last layer is
 * the first row of the table. columns: positions.
 */
export const lensReader = (table, spoken, tokens, read, columns = tokens.length) => {
  const cells = table.querySelectorAll("td");
  const say = (cell) => {
    const at = [...cells].indexOf(cell);
    const { lens, words } = read();
    const layer = lens.length - 1 - Math.floor(at / columns);
    const where = layer === 0 ? "before the first layer" : "after layer " + (layer - 1);
    const parts = lens[layer][at % columns].map(([token, share]) => "“" + words[token] + "” " + percent(share, false));
    spoken.textContent = "After " + nameOf(tokens, at % columns) + ", " + where + ": " + parts.join(", ");
  };
  let current = cells[columns - 1];
  const go = (cell, focus) => {
    current.tabIndex = -1;
    current = cell;
    current.tabIndex = 0;
    if (focus) current.focus();
    say(current);
  };
  go(current, false);
  for (const kind of ["mouseover", "focusin", "click"]) {
    table.addEventListener(kind, (event) => {
      const cell = event.target.closest("td");
      if (cell) go(cell, kind === "click");
    });
  }
  table.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    const target = [...cells].indexOf(current) + step;
    if (!(target >= 0 && target < cells.length)) return;
    event.preventDefault();
    go(cells[target], true);
  });
};
