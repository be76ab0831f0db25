// Pictures of numbers by layer and by head: heatmaps drawn on a canvas, curves drawn by uPlot; a table under each.
import { color, el, fill } from "./lab.js";
import { colorAt, inkOn } from "./maps.js";

/** A number with this number of decimals; a zero without a sign. */
export const text = (value, digits = 2) =>
  value === null || value === undefined ? "–" : value.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−");

function foldedTable(head, rows) {
  const box = el("details.numbers", {}, el("summary", {}, "As a table"));
  box.addEventListener("toggle", () => box.open && show());
  function show() {
    const lines = rows().map(([first, ...rest]) =>
      el("tr", {}, el("th", { scope: "row" }, first), rest.map((cell) => el("td.numeric", {}, cell))));
    const table = el("table", {}, el("thead", {}, el("tr", {}, head().map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, lines));
    fill(box, el("summary", {}, "As a table"), el("div.wide", { tabIndex: 0, role: "region", "aria-label": "Numbers" }, table));
  }
  return { box, again: () => box.open && show() };
}

/**
 * A value for each row and column, as colored cells. Arrow keys and the mouse show one; Enter or a click selects it.
 * low, high: the ends of the scale, or null for the range of the values; signed: the scale is symmetric around 0.
 * Returns {element, draw(values)}.
 */
export function heatmap({ title, about, rows, columns, x, y, colors, low = null, high = null, signed = false, digits = 2, unit = "", names, pick }) {
  const canvas = el("canvas", { tabIndex: 0, role: "img", "aria-label": `${title}; arrow keys read a cell${pick ? ", Enter chooses it" : ""}` });
  const said = el("p.said", { "aria-live": "polite" });
  const box = el("div.map", {}, canvas);
  const table = foldedTable(() => [y, ...columns], () => values.map((row, at) => [rows[at], ...row.map((value) => text(value, digits))]));
  const element = el("figure.chart.heatmap", {}, el("h3", {}, title), box, said, about ? el("figcaption", {}, about) : null, table.box);
  let values = [];
  let at = null;
  let shape = null;

  const ends = () => {
    const known = values.flat().filter((value) => value !== null);
    const far = Math.max(...known.map(Math.abs), 1e-9, signed && high !== null ? high : 0);
    return signed ? [-far, far] : [low ?? Math.min(...known, 0), high ?? Math.max(...known, 1e-9)];
  };

  function paint() {
    if (!box.clientWidth || !values.length) return;
    const [bottom, top] = ends();
    const left = 22 + Math.max(14, ...rows.map((name) => name.length * 7));
    const head = 34;
    const wide = Math.max(9, Math.min(44, Math.floor((box.clientWidth - left - 4) / columns.length)));
    const tall = Math.max(9, Math.min(wide, 24));
    const [width, height] = [left + wide * columns.length + 2, head + tall * rows.length + 2];
    const scale = window.devicePixelRatio || 1;
    shape = { left, head, wide, tall };
    canvas.width = width * scale;
    canvas.height = height * scale;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    context.textBaseline = "middle";
    const { soft, accent, ...ramps } = colors();
    context.fillStyle = soft;
    context.textAlign = "center";
    context.fillText(x, left + (wide * columns.length) / 2, 8);
    const every = Math.ceil(Math.max(...columns.map((name) => name.length * 7)) / wide);
    columns.forEach((name, column) => column % every === 0 && context.fillText(name, left + (column + 0.5) * wide, 24));
    context.textAlign = "right";
    const skip = Math.ceil(12 / tall);
    rows.forEach((name, row) => row % skip === 0 && context.fillText(name, left - 6, head + (row + 0.5) * tall));
    context.save();
    context.translate(7, head + (tall * rows.length) / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.fillText(y, 0, 0);
    context.restore();
    context.textAlign = "center";
    values.forEach((row, i) => row.forEach((value, j) => {
      if (value === null) return;
      const share = signed ? value / top : (value - bottom) / (top - bottom || 1);
      const shade = colorAt(ramps, share, signed, true);
      context.fillStyle = `rgb(${shade.join(",")})`;
      context.fillRect(left + j * wide, head + i * tall, wide - 1, tall - 1);
      const number = text(value, digits);
      if (wide >= number.length * 6.4 + 4 && tall >= 15) {
        context.fillStyle = inkOn(shade);
        context.fillText(number, left + (j + 0.5) * wide, head + (i + 0.5) * tall);
      }
    }));
    if (at) {
      context.strokeStyle = accent;
      context.lineWidth = 2;
      context.strokeRect(left + at[1] * wide - 1, head + at[0] * tall - 1, wide + 1, tall + 1);
    }
  }

  function read(row, column) {
    if (!(row >= 0 && row < rows.length && column >= 0 && column < columns.length)) return;
    at = [row, column];
    const where = names ? names(row, column) : `${y} ${rows[row]}, ${x} ${columns[column]}`;
    said.textContent = `${where}: ${text(values[row][column], digits + 1)}${unit}`;
    paint();
  }
  const cellAt = (event) => {
    const frame = canvas.getBoundingClientRect();
    return [Math.floor((event.clientY - frame.top - shape.head) / shape.tall), Math.floor((event.clientX - frame.left - shape.left) / shape.wide)];
  };
  canvas.addEventListener("mousemove", (event) => read(...cellAt(event)));
  canvas.addEventListener("click", (event) => {
    read(...cellAt(event));
    if (pick && at) pick(...at);
  });
  canvas.addEventListener("focus", () => at ?? read(0, 0));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (step) {
      event.preventDefault();
      const [row, column] = at ?? [0, 0];
      read(row + step[0], column + step[1]);
    } else if (event.key === "Enter" && pick && at) pick(...at);
  });
  new ResizeObserver(paint).observe(box);
  return {
    element,
    repaint: paint,
    draw(found) {
      values = found;
      if (at) read(...at);
      paint();
      table.again();
    },
  };
}

/** Curves over the layers. names: of the curves. Returns {element, draw(values)}, with a list of values for each curve. */
export function curves({ title, about, names, x = "layer", digits = 3 }) {
  const box = el("div.curves", { role: "img", "aria-label": `${title}; the numbers are in the table below` });
  let xs = [];
  let values = [];
  let plot = null;
  const table = foldedTable(() => [x, ...names], () => xs.map((at, row) => [String(at), ...values.map((one) => text(one[row], digits))]));
  const element = el("figure.chart", {}, el("h3", {}, title), box, about ? el("figcaption", {}, about) : null, table.box);

  function paint() {
    if (!box.clientWidth || !xs.length) return;
    plot?.destroy();
    const axis = { stroke: color("soft"), grid: { stroke: color("grid"), width: 1 }, ticks: { show: false }, font: `11px ${getComputedStyle(document.body).fontFamily}` };
    plot = new uPlot({
      width: box.clientWidth,
      height: 220,
      scales: { x: { time: false } },
      axes: [{ ...axis, size: 28, incrs: [1, 2, 5, 10, 20, 50, 100] }, { ...axis, size: 52 }],
      series: [{ label: x }, ...names.map((label, at) => ({ label, stroke: color(`c${at}`), width: 2, points: { show: xs.length < 40, size: 5 }, value: (_, value) => text(value, digits) }))],
      legend: { show: true },
      cursor: { drag: { x: false, y: false } },
    }, [xs, ...values], box);
  }
  new ResizeObserver(() => plot?.width !== box.clientWidth && paint()).observe(box);
  return {
    element,
    repaint: paint,
    draw(found, places = found[0].map((_, at) => at)) {
      [values, xs] = [found, places];
      paint();
      table.again();
    },
  };
}
