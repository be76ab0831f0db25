"use strict";
(() => {
  const data = JSON.parse(document.getElementById("look-data").textContent);
  const tokens = data.tokens;
  const size = tokens.length;
  const triangle = (size * (size + 1)) / 2;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  let ramps;
  const readRamps = () => {
    const at = dark.matches ? 1 : 0;
    ramps = { share: data.ramps.share[at].map(rgb), signed: data.ramps.signed[at].map(rgb) };
  };
  readRamps();
  // The colors of weights grow with the square root, so small ones are seen too.
  const color = (value, signed, linear) => {
    const size = Math.min(Math.abs(value), 1);
    const far = linear ? size : Math.sqrt(size);
    const ramp = signed ? ramps.signed : ramps.share;
    const last = ramp.length - 1;
    return ramp[Math.round(signed ? (last / 2) * (1 + Math.sign(value) * far) : last * far)];
  };
  const cache = new Map();
  const bytes = (text) => {
    if (!cache.has(text)) cache.set(text, Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0)));
    return cache.get(text);
  };
  const place = (row, column) => (row * (row + 1)) / 2 + column;
  const percent = (value, signed) => {
    const number = (value * 100).toFixed(Math.abs(value) < 0.1 ? 1 : 0);
    return (signed && value > 0 ? "+" : "") + number.replace("-", "−") + "\u202f%";
  };
  const name = (position) => "“" + tokens[position] + "” (" + position + ")";

  // A set of matrices over the tokens: small pictures to choose from, one of them large, the text colored by a row.
  function explorer(root, set) {
    let chosen = set.first;
    let row = size - 1;
    const grid = root.querySelector(".look-grid");
    const title = root.querySelector(".look-title");
    const facts = root.querySelector(".look-facts");
    const canvas = root.querySelector(".look-large");
    const text = root.querySelector(".look-text");
    const spoken = root.querySelector(".look-row");
    const table = root.querySelector(".look-table");
    const buttons = [];
    const words = [];
    const last = (position) => (set.symmetric ? size - 1 : position);
    const value = (index, i, j) => set.value(index, i, j);

    function paintSmall(index) {
      const small = buttons[index].firstChild;
      small.width = small.height = size;
      const context = small.getContext("2d");
      const image = context.createImageData(size, size);
      const signed = set.signed();
      for (let i = 0; i < size; i += 1) {
        for (let j = 0; j <= last(i); j += 1) {
          image.data.set(color(value(index, i, j), signed, set.symmetric), 4 * (i * size + j));
          image.data[4 * (i * size + j) + 3] = 255;
        }
      }
      context.putImageData(image, 0, 0);
    }

    let geometry;
    function paintLarge() {
      const style = getComputedStyle(document.documentElement);
      const ink = style.getPropertyValue("--ink");
      const soft = style.getPropertyValue("--soft");
      const accent = style.getPropertyValue("--c1");
      const context = canvas.getContext("2d");
      const family = getComputedStyle(document.body).fontFamily;
      const font = (bold) => (bold ? "600 " : "") + "11px " + family;
      context.font = font(true);
      const label = Math.min(110, Math.max(...tokens.map((token) => context.measureText(token).width)) + 10);
      const room = canvas.parentElement.clientWidth - label - 4;
      const cell = Math.max(12, Math.min(26, Math.floor(room / size)));
      const width = label + cell * size + 4;
      // Browsers refuse canvases that are too large: those of a long text are drawn less sharply.
      const scale = Math.max(1, Math.min(window.devicePixelRatio || 1, 4096 / width));
      canvas.width = width * scale;
      canvas.height = width * scale;
      canvas.style.width = canvas.style.height = width + "px";
      context.scale(scale, scale);
      geometry = { label, cell };
      const signed = set.signed();
      for (let i = 0; i < size; i += 1) {
        for (let j = 0; j <= last(i); j += 1) {
          context.fillStyle = "rgb(" + color(value(chosen, i, j), signed, set.symmetric).join(",") + ")";
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
        const shade = seen ? color(value(chosen, row, j), signed, set.symmetric) : null;
        word.style.backgroundColor = shade ? "rgb(" + shade.join(",") + ")" : "transparent";
        const light = shade && (0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2]) > 140;
        word.style.color = shade ? (light ? "#1b1f24" : "#ffffff") : "";
        word.style.opacity = seen ? "" : "0.55";
        word.classList.toggle("chosen", j === row);
        word.setAttribute("aria-selected", j === row ? "true" : "false");
        word.tabIndex = j === row ? 0 : -1;
      });
      const parts = strongest(row, 5).map(([j, share]) => name(j) + " " + set.say(share, signed));
      spoken.textContent = set.verb(row) + " " + parts.join(", ");
    }

    function fillTable() {
      if (!table.open) return;
      const body = make("tbody");
      for (let i = 0; i < size; i += 1) {
        const line = make("tr");
        const head = make("th", "", name(i));
        head.scope = "row";
        line.append(head);
        const found = strongest(i, 3);
        for (let at = 0; at < 3; at += 1) {
          line.append(make("td", "", at < found.length ? name(found[at][0]) + " " + set.say(found[at][1], set.signed()) : ""));
        }
        body.append(line);
      }
      table.querySelector("tbody").replaceWith(body);
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
      paintLarge();
      paintRow();
      fillTable();
    }
    function chooseRow(position) {
      if (position < 0 || position >= size) return;
      row = position;
      paintLarge();
      paintRow();
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
    const repaint = () => {
      buttons.forEach((button, index) => { if (!button.disabled) paintSmall(index); });
      choose(chosen, false);
      const box = grid.parentElement;
      const from = box.getBoundingClientRect();
      const at = buttons[chosen].getBoundingClientRect();
      if (at.bottom > from.bottom) box.scrollTop += at.top - from.top - box.clientHeight / 2;
    };
    addEventListener("resize", paintLarge);
    return repaint;
  }

  const repaints = [];
  const heads = document.getElementById("look-heads");
  if (heads && data.attention) {
    const { count, models, scores } = data.attention;
    let mode = "0";
    let hideFirst = false;
    const weight = (model, index, i, j) => {
      const layer = models[model].layers[Math.floor(index / count)];
      return layer === null ? 0 : bytes(layer)[(index % count) * triangle + place(i, j)] / 255;
    };
    const labels = [];
    for (let index = 0; index < models[0].layers.length * count; index += 1) {
      labels.push("Layer " + Math.floor(index / count) + ", head " + (index % count));
    }
    const grid = heads.querySelector(".look-grid");
    grid.style.gridTemplateColumns = "auto repeat(" + count + ", 40px)";
    grid.append(make("span", "look-side look-corner", ""));
    for (let head = 0; head < count; head += 1) grid.append(make("span", "look-top", String(head)));
    const repaint = explorer(heads, {
      first: data.attention.first,
      labels,
      columns: count,
      symmetric: false,
      side: (index) => String(Math.floor(index / count)),
      has: (index) => models[0].layers[Math.floor(index / count)] !== null,
      value: (index, i, j) => {
        if (hideFirst && j === 0) return 0;
        if (mode === "difference") return weight(1, index, i, j) - weight(0, index, i, j);
        return weight(Number(mode), index, i, j);
      },
      signed: () => mode === "difference",
      say: percent,
      title: (index) => labels[index],
      facts: (index) =>
        scores.map(([what, values, unit]) => {
          const found = values[Math.floor(index / count)][index % count];
          return what + " " + (found === null ? "–" : found.toFixed(2) + unit);
        }).join(" · "),
      verb: (position) =>
        mode === "difference" ? "Change of the attention from " + name(position) + " to:" : name(position) + " attends to:",
    });
    repaints.push(repaint);
    heads.querySelectorAll("input").forEach((input) => {
      input.addEventListener("change", () => {
        if (input.type === "checkbox") hideFirst = input.checked;
        else mode = input.value;
        heads.querySelectorAll(".look-scale").forEach((scale) => {
          scale.hidden = (scale.dataset.signed === "1") !== (mode === "difference");
        });
        repaint();
      });
    });
  }
  const positions = document.getElementById("look-positions");
  if (positions && data.similarity) {
    const layers = data.similarity;
    const side = (index) => (index === 0 ? "input" : String(index - 1));
    repaints.push(explorer(positions, {
      first: Math.floor(layers.length / 2),
      labels: layers.map((_, index) => (index === 0 ? "Before the first layer" : "After layer " + (index - 1))),
      columns: 0,
      symmetric: true,
      side,
      has: () => true,
      value: (index, i, j) => bytes(layers[index])[place(Math.max(i, j), Math.min(i, j))] / 127 - 1,
      signed: () => true,
      say: (value) => value.toFixed(2).replace("-", "−"),
      title: (index) => (index === 0 ? "Before the first layer" : "After layer " + (index - 1)),
      facts: () => "",
      verb: (position) => "Cosine of " + name(position) + " with:",
    }));
  }
  const paint = () => { readRamps(); repaints.forEach((repaint) => repaint()); };
  paint();
  dark.addEventListener("change", paint);

  // The table of the logit lens: a cell that is pointed at, or focused, is read out below it.
  const lens = document.getElementById("look-lens");
  if (lens && data.lens) {
    const spoken = document.getElementById("look-lens-cell");
    const cells = lens.querySelectorAll("td");
    const read = (cell) => {
      const at = [...cells].indexOf(cell);
      const layer = data.lens.length - 1 - Math.floor(at / size);
      const best = data.lens[layer][at % size];
      const where = layer === 0 ? "before the first layer" : "after layer " + (layer - 1);
      const parts = best.map(([token, share]) => "“" + data.words[token] + "” " + percent(share, false));
      spoken.textContent = "After " + name(at % size) + ", " + where + ": " + parts.join(", ");
    };
    let current = cells[size - 1];
    current.tabIndex = 0;
    read(current);
    const go = (cell, focus) => {
      current.tabIndex = -1;
      current = cell;
      current.tabIndex = 0;
      if (focus) current.focus();
      read(current);
    };
    lens.addEventListener("mouseover", (event) => { if (event.target.closest("td")) go(event.target.closest("td"), false); });
    lens.addEventListener("focusin", (event) => { if (event.target.closest("td")) go(event.target.closest("td"), false); });
    lens.addEventListener("click", (event) => { if (event.target.closest("td")) go(event.target.closest("td"), true); });
    lens.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: size, ArrowUp: -size }[event.key];
      const target = [...cells].indexOf(current) + step;
      if (!(target >= 0 && target < cells.length)) return;
      event.preventDefault();
      go(cells[target], true);
    });
  }
})();
