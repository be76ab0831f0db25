// Curves of one run or of several: a chart per measure, one x axis for all of them, zoom, smoothing, live points.
import { api, color, el, fill, findAll, onTheme, showError, watch } from "./lab.js";
import { write } from "./numbers.js";

const POINTS = 2000; // of a curve; beyond them the server thins
const ROWS = 400; // of the table under a chart
const AXIS_NAMES = { step: "Steps", train_tokens: "Tokens", wall_seconds: "Time" };
const DASHES = [[], [7, 4], [2, 3], [12, 4, 2, 4]];
const NAMES = ["c0", "c1", "c2", "c3", "c4", "c5"];

/** The color and dash of the index-th run: after six colors they come again, dashed. */
export const lookOf = (index) => ({ color: NAMES[index % 6], dash: DASHES[Math.floor(index / 6) % DASHES.length] });

/** The exponential moving average of TensorBoard, without its bias at the start. Gaps stay gaps. */
export function smooth(values, weight) {
  let last = 0;
  let count = 0;
  return values.map((value) => {
    if (value === null) return null;
    last = weight * last + (1 - weight) * value;
    count += 1;
    return last / (1 - weight ** count);
  });
}

/** Put curves with different x values on one: what a curve lacks is undefined, what is a gap in it null. */
function align(curves) {
  const xs = [...new Set(curves.flatMap((curve) => curve.x))].sort((one, other) => one - other);
  const place = new Map(xs.map((x, at) => [x, at]));
  const columns = curves.map(({ x, y }) => {
    const column = new Array(xs.length).fill(undefined);
    x.forEach((value, at) => (column[place.get(value)] = y[at]));
    return column;
  });
  return [xs, ...columns];
}

export class Curves {
  /**
   * root: where the charts go. sources: [{name, label, color, dash}]; one: the panels of the report, training and
   * validation together. Several: a chart per measure, with a curve per run.
   */
  constructor(root, sources, { onRows } = {}) {
    const asked = new URLSearchParams(location.search);
    this.axis = asked.get("axis") in AXIS_NAMES ? asked.get("axis") : "step";
    this.smoothing = Math.min(0.99, Math.max(0, Number(asked.get("smooth")) || 0));
    this.log = asked.get("log") === "1";
    this.range = null;
    this.hidden = new Set();
    this.colors = {};
    this.charts = new Map();
    this.onRows = onRows;
    this.sources = [];
    this.many = sources.length !== 1;
    this.tools = el("div.curve-tools", { role: "group", "aria-label": "View of the curves" });
    this.body = el("div.charts");
    this.empty = el("div.empty", { hidden: true });
    fill(root, this.tools, this.empty, this.body);
    this.buildTools();
    onTheme(() => this.recolor());
    this.resizing = new ResizeObserver(() => {
      for (const chart of this.charts.values()) chart.fit();
    });
    this.resizing.observe(this.body);
    this.setSources(sources);
  }

  /** Show these runs; those that are shown already keep their points. */
  setSources(sources, many = sources.length !== 1) {
    this.many = many;
    const names = new Set(sources.map((source) => source.name));
    for (const old of this.sources) if (!names.has(old.name)) old.end();
    this.sources = sources.map((source) => {
      const known = this.sources.find((one) => one.name === source.name);
      if (known) return Object.assign(known, source);
      const fresh = { ...source, points: {}, glossary: {}, panels: [], axes: [], end: () => {} };
      this.follow(fresh);
      return fresh;
    });
    this.show();
  }

  follow(source) {
    source.end();
    source.points = {};
    source.detail = null;
    source.end = watch(`metrics:${this.axis}:${POINTS}:${source.name}`, (data, problems) => {
      if (problems) return;
      if (data.panels) Object.assign(source, { panels: data.panels, glossary: data.glossary, axes: data.axes });
      if (data.appended) {
        for (const [key, points] of Object.entries(data.points)) {
          const known = (source.points[key] ??= { x: [], y: [] });
          known.x.push(...points.x);
          known.y.push(...points.y);
          known.means?.x.push(...points.x);
          known.means?.y.push(...points.y);
        }
      } else {
        source.points = data.points;
        source.detail = null;
        if (this.range?.[0] > this.whole()[1]) this.range = null; // a run that starts again from before the zoom
        if (this.range) this.refine();
      }
      source.rows = data.rows;
      this.onRows?.(source, data);
      this.show();
    });
  }

  // --- the tools above the charts

  buildTools() {
    this.axisButtons = el("div.segmented", { role: "group", "aria-label": "Draw over" });
    const slider = el("input", {
      type: "range", min: "0", max: "0.99", step: "0.01", id: "smoothing", value: String(this.smoothing),
      oninput: () => {
        this.smoothing = Number(slider.value);
        shown.textContent = slider.value === "0" ? "off" : this.smoothing.toFixed(2);
        this.remember();
        this.show();
      },
    });
    const shown = el("output", { for: "smoothing" }, this.smoothing ? this.smoothing.toFixed(2) : "off");
    const log = el("input", {
      type: "checkbox", checked: this.log,
      onchange: () => {
        this.log = log.checked;
        this.remember();
        this.rebuild();
      },
    });
    const button = (label, text, act) => el("button", { type: "button", "aria-label": label, title: label, onclick: act }, text);
    this.reset = el("button", { type: "button", onclick: () => this.zoom(null) }, "Reset zoom");
    fill(
      this.tools,
      this.axisButtons,
      el("label.smoothing", { for: "smoothing" }, el("span", {}, "Smoothing"), slider, shown),
      el("label.check", {}, log, "Log axis"),
      el(
        "div.zooming", { role: "group", "aria-label": "Zoom" },
        button("Earlier", "‹", () => this.pan(-0.5)),
        button("Zoom out", "−", () => this.scale(2)),
        button("Zoom in", "+", () => this.scale(0.5)),
        button("Later", "›", () => this.pan(0.5)),
        this.reset,
      ),
    );
  }

  remember() {
    const address = new URL(location.href);
    const set = (name, value) => (value ? address.searchParams.set(name, value) : address.searchParams.delete(name));
    set("axis", this.axis === "step" ? "" : this.axis);
    set("smooth", this.smoothing ? String(this.smoothing) : "");
    set("log", this.log ? "1" : "");
    history.replaceState(null, "", address);
  }

  showTools() {
    const axes = Object.keys(AXIS_NAMES).filter((axis) => axis === "step" || this.sources.some((one) => one.axes.includes(axis)));
    if (this.axisButtons.children.length !== axes.length) {
      fill(
        this.axisButtons,
        axes.map((axis) => el("button", { type: "button", "data-axis": axis, onclick: () => this.setAxis(axis) }, AXIS_NAMES[axis])),
      );
    }
    for (const one of findAll("button", this.axisButtons)) one.setAttribute("aria-pressed", String(one.dataset.axis === this.axis));
    this.reset.disabled = !this.range;
  }

  setAxis(axis) {
    if (axis === this.axis) return;
    this.axis = axis;
    this.range = null;
    this.remember();
    for (const source of this.sources) this.follow(source);
    this.showTools();
  }

  // --- zoom: a part of the x axis that all charts share; null is the whole

  whole() {
    let [low, high] = [Infinity, -Infinity];
    for (const source of this.sources) {
      for (const { x } of Object.values(source.points)) {
        if (!x.length) continue;
        low = Math.min(low, x[0]);
        high = Math.max(high, x.at(-1));
      }
    }
    return low < high ? [low, high] : [low - 1, low + 1];
  }

  zoom(range) {
    const [low, high] = this.whole();
    if (range && range[0] <= low && range[1] >= high) range = null;
    this.range = range;
    for (const source of this.sources) source.detail = null;
    if (range) this.refine();
    this.show();
  }

  scale(factor) {
    const [low, high] = this.range ?? this.whole();
    const [middle, half] = [(low + high) / 2, ((high - low) / 2) * factor];
    if (half > 1e-9) this.zoom([middle - half, middle + half]);
  }

  pan(share) {
    const [low, high] = this.range ?? this.whole();
    const [first, last] = this.whole();
    let by = (high - low) * share;
    by = Math.max(first - low, Math.min(last - high, by));
    if (this.range) this.zoom([low + by, high + by]);
  }

  /** Ask for the points in the part that is shown, where the curves were thinned. */
  refine() {
    clearTimeout(this.refining);
    this.refining = setTimeout(async () => {
      const [low, high] = this.range ?? [];
      for (const source of this.sources) {
        if (!Object.values(source.points).some((points) => points.of)) continue;
        const name = source.name.split("/").map(encodeURIComponent).join("/");
        try {
          const { points } = await api(`/api/runs/${name}/curves?axis=${this.axis}&from=${low}&to=${high}`);
          if (this.range?.[0] === low && this.range[1] === high) source.detail = points;
        } catch (error) {
          showError(error);
        }
      }
      this.show();
    }, 150);
  }

  // --- charts

  points(source, key) {
    const known = source.points[key];
    const detail = source.detail?.[key];
    if (!detail || !known) return known;
    const last = detail.x.at(-1) ?? -Infinity;
    const from = known.x.findIndex((x) => x > last);
    if (from < 0 || known.of) return detail;
    return { x: [...detail.x, ...known.x.slice(from)], y: [...detail.y, ...known.y.slice(from)] };
  }

  /** What each chart shows: [{id, title, meaning, form, zero, series: [{id, label, color, dash, rare, points}]}] */
  plan() {
    if (!this.many) {
      const [source] = this.sources;
      return (source?.panels ?? []).map((panel) => {
        const first = source.glossary[panel.keys[0].key] ?? {};
        return {
          id: panel.keys[0].key, title: panel.title, zero: panel.zero, form: first.form,
          meaning: panel.keys.map(({ key }) => source.glossary[key]?.meaning).filter(Boolean).join("\n"),
          series: panel.keys
            .filter(({ key }) => source.points[key])
            .map(({ key, label, rare, color: at }) => ({
              id: key, label: label || panel.title, color: NAMES[at], dash: [], rare,
              form: source.glossary[key]?.form, points: this.points(source, key),
            })),
        };
      });
    }
    const panels = new Map();
    for (const source of this.sources) {
      for (const panel of source.panels) {
        for (const { key, rare } of panel.keys) {
          if (!source.points[key]) continue;
          const known = source.glossary[key];
          if (!panels.has(key)) {
            panels.set(key, { id: key, title: known.name, meaning: known.meaning, form: known.form, zero: panel.zero, rank: known.rank, series: [] });
          }
          if (this.hidden.has(source.name)) continue;
          panels.get(key).series.push({
            id: source.name, label: source.label, color: source.color, dash: source.dash, rare, form: known.form,
            points: this.points(source, key),
          });
        }
      }
    }
    return [...panels.values()].sort((one, other) => one.rank - other.rank);
  }

  show() {
    this.showTools();
    const plan = this.plan().filter((panel) => panel.series.length || this.charts.has(panel.id));
    const ids = new Set(plan.map((panel) => panel.id));
    for (const [id, chart] of this.charts) {
      if (ids.has(id)) continue;
      chart.remove();
      this.charts.delete(id);
    }
    for (const [at, panel] of plan.entries()) {
      let chart = this.charts.get(panel.id);
      if (!chart) this.charts.set(panel.id, (chart = new Chart(this, panel)));
      if (this.body.children[at] !== chart.box) this.body.insertBefore(chart.box, this.body.children[at] ?? null);
      chart.show(panel);
    }
    this.tools.hidden = !plan.length;
  }

  rebuild() {
    for (const chart of this.charts.values()) chart.remove();
    this.charts.clear();
    this.show();
  }

  recolor() {
    for (const name of [...NAMES, "ink", "soft", "grid", "axis", "paper", "raised"]) this.colors[name] = color(name);
    for (const chart of this.charts.values()) chart.plot?.redraw(false, true);
  }

  toggle(id) {
    if (!this.hidden.delete(id)) this.hidden.add(id);
    this.show();
  }

  writeX(x) {
    const form = { step: "{:,.0f}", train_tokens: "count", wall_seconds: "clock" }[this.axis];
    return write(form, x);
  }
}

class Chart {
  constructor(curves, panel) {
    this.curves = curves;
    this.legend = el("div.chart-legend");
    this.at = el("span.chart-at.numeric");
    this.area = el("div.chart-area", { role: "img" });
    this.table = el("div.wide");
    this.details = el("details.chart-table", { ontoggle: () => this.fillTable() }, el("summary", {}, "Points as a table"), this.table);
    this.box = el(
      "section.chart", { "aria-label": panel.title, "data-measure": panel.id },
      el("div.chart-head", {}, el("h3", { title: panel.meaning }, panel.title), this.at, this.legend),
      this.area, this.details,
    );
  }

  remove() {
    this.plot?.destroy();
    this.plot = null;
    this.box.remove();
  }

  show(panel) {
    const { curves } = this;
    const signature = JSON.stringify(panel.series.map(({ id, color: name, dash }) => [id, name, dash]));
    this.panel = panel;
    this.series = panel.series.map((one) => ({ ...one, ...this.drawn(one) }));
    const values = this.series.flatMap((one) => one.raw.y.filter((value) => value !== null));
    this.log = curves.log && values.length > 0 && values.every((value) => value > 0);
    if (signature !== this.signature || this.log !== this.wasLog || !this.plot) {
      this.signature = signature;
      this.wasLog = this.log;
      this.build();
    }
    this.data = align(this.series.flatMap((one) => [one.raw, one.smooth]));
    this.plot.setData(this.data);
    this.showLegend();
    if (this.details.open) this.fillTable();
  }

  drawn({ points, rare }) {
    const weight = rare ? 0 : this.curves.smoothing;
    const base = points.means ?? points;
    return {
      raw: { x: points.x, y: points.y },
      smooth: weight ? { x: base.x, y: smooth(base.y, weight) } : { x: [], y: [] },
      faint: weight > 0,
    };
  }

  build() {
    const { curves } = this;
    const tone = (name) => () => curves.colors[name];
    this.plot?.destroy();
    const font = '12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
    const axis = { stroke: tone("soft"), font, grid: { stroke: tone("grid"), width: 1 }, ticks: { show: false } };
    const series = this.series.flatMap((one, at) => {
      const dots = () => {
        const count = this.series[at]?.raw.x.length ?? 0;
        return count <= 1 || (one.rare && count <= 60);
      };
      const full = () => curves.colors[one.color];
      return [
        {
          label: one.label, dash: one.dash, width: one.rare ? 2 : 1.6, spanGaps: false, stroke: full,
          alpha: this.series[at].faint ? 0.28 : 1, points: { show: dots, size: 6, fill: full, width: 0 },
        },
        { label: `${one.label}, smoothed`, dash: one.dash, width: 2, spanGaps: false, stroke: full, points: { show: false } },
      ];
    });
    const wide = this.box.parentElement?.firstElementChild === this.box;
    const options = {
      ...this.size(wide),
      scales: {
        x: { time: false, range: (plot, low, high) => curves.range ?? (low < high ? [low, high] : [low - 1, low + 1]) },
        y: { distr: this.log ? 3 : 1, range: (plot, low, high) => this.heights(low, high) },
      },
      series: [{}, ...series],
      axes: [
        { ...axis, size: 28, space: 70, incrs: curves.axis === "step" ? whole() : undefined, values: (plot, marks) => marks.map((mark) => curves.writeX(mark)) },
        { ...axis, size: 58, space: 34, ...(this.log ? { splits: (plot, at, low, high) => logMarks(low, high), filter: (plot, marks) => marks } : {}), values: (plot, marks) => marks.map((mark) => (mark === null ? "" : this.mark(mark, marks))) },
      ],
      legend: { show: false },
      cursor: {
        drag: { x: true, y: false, setScale: false },
        points: { size: 7 },
        sync: { key: "curves", scales: ["x", null], filters: { pub: (kind) => kind === "mousemove" || kind === "mouseleave" } },
        bind: { dblclick: () => () => curves.zoom(null) },
        y: false,
      },
      hooks: {
        setSelect: [
          (plot) => {
            const { left, width } = plot.select;
            if (width < 4) return;
            plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
            curves.zoom([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
          },
        ],
        setCursor: [() => this.showLegend()],
      },
    };
    fill(this.area);
    this.plot = new uPlot(options, [[], ...series.map(() => [])], this.area);
  }

  size(wide) {
    const styles = getComputedStyle(this.box);
    const inner = this.box.clientWidth - parseFloat(styles.paddingLeft) - parseFloat(styles.paddingRight);
    return { width: Math.max(200, Math.floor(inner)), height: wide && !this.curves.many ? 300 : 190 };
  }

  fit() {
    const size = this.size(this.box.parentElement?.firstElementChild === this.box);
    if (this.plot && (size.width !== this.plot.width || size.height !== this.plot.height)) this.plot.setSize(size);
  }

  heights(low, high) {
    if (low === null || high === null) return [0, 1];
    if (this.log) {
      const factor = Math.max(1.02, (high / low) ** 0.08);
      return [low / factor, high * factor];
    }
    const room = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
    if (low < 0) return [low - room, high + room];
    return [this.panel.zero ? 0 : Math.max(0, low - room), high + (high === 0 && this.panel.form === "percent" ? 0.1 : room)];
  }

  mark(value, marks) {
    const form = this.panel.form ?? "decimal";
    if (["percent", "count", "size", "clock"].includes(form)) {
      return form === "percent" ? `${Number((100 * value).toFixed(2))} %` : write(form, value);
    }
    const known = marks.filter((mark) => mark !== null);
    const apart = known.length > 1 ? Math.abs(known[1] - known[0]) : Math.abs(value);
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
    let digits = 0;
    const step = this.log ? size : apart;
    while (digits < 6 && Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) > 1e-6 * step * 10 ** digits) digits += 1;
    if (size && digits > 4) return Number(value.toPrecision(3)).toExponential().replace("e+", "e");
    return write(`{:,.${digits}f}`, value);
  }

  /** The value of a curve where the pointer is, or its last one. */
  valueAt(at, index) {
    const column = this.data[1 + 2 * at];
    if (index === null || index === undefined) return column.findLast((value) => value !== undefined && value !== null);
    for (let before = index; before >= 0; before -= 1) if (column[before] !== undefined) return column[before];
    return undefined;
  }

  showLegend() {
    if (!this.data) return;
    const { curves } = this;
    const index = this.plot.cursor.idx;
    this.at.textContent = index === null || index === undefined ? "" : `${AXIS_NAMES[curves.axis].toLowerCase().replace(/s$/, "")} ${curves.writeX(this.data[0][index])}`;
    const values = this.series.map((one, at) => write(one.form, this.valueAt(at, index)));
    if (this.legend.children.length !== this.series.length || this.legend.dataset.signature !== this.signature) {
      this.legend.dataset.signature = this.signature;
      fill(
        this.legend,
        this.series.map((one) =>
          el("span.chart-key", { title: one.label }, (this.series.length > 1 || curves.many) && el(`i.swatch.${one.color}`, { "aria-hidden": "true" }), (this.series.length > 1 || curves.many) && el("span.chart-label", {}, one.label), el("b.numeric", {})),
        ),
      );
    }
    [...this.legend.children].forEach((key, at) => {
      const text = key.lastElementChild;
      if (text.textContent !== values[at]) text.textContent = values[at];
    });
    this.area.setAttribute(
      "aria-label",
      `${this.panel.title} over ${AXIS_NAMES[curves.axis].toLowerCase()}: ${this.series.map((one, at) => `${one.label} ${write(one.form, this.valueAt(at, null))}`).join(", ")}`,
    );
  }

  fillTable() {
    if (!this.details.open) return;
    const [xs, ...columns] = this.data;
    const raw = this.series.map((_, at) => columns[2 * at]);
    const rows = xs.map((_, at) => at).filter((at) => raw.some((column) => column[at] !== undefined));
    const kept = thin(rows, raw);
    const less = kept.length < rows.length ? ` ${kept.length} of ${rows.length} points that are drawn; the first, the last and the extremes are among them.` : "";
    fill(
      this.table,
      el(
        "table", {},
        el("caption.soft.small", {}, `${this.panel.title} over ${AXIS_NAMES[this.curves.axis].toLowerCase()}.${less}`),
        el("thead", {}, el("tr", {}, el("th.numeric", { scope: "col" }, AXIS_NAMES[this.curves.axis]), this.series.map((one) => el("th.numeric", { scope: "col" }, one.label)))),
        el(
          "tbody", {},
          kept.map((at) =>
            el("tr", {}, el("th.numeric", { scope: "row" }, this.curves.writeX(xs[at])), raw.map((column, series) => el("td.numeric", {}, column[at] === undefined ? "" : column[at] === null ? "not a number" : write(this.series[series].form, column[at])))),
          ),
        ),
      ),
    );
  }
}

/** At most ROWS of the rows, spread evenly, and the extremes of each column. */
function thin(rows, columns) {
  if (rows.length <= ROWS) return rows;
  const kept = new Set([rows[0], rows.at(-1)]);
  for (let at = 0; at < rows.length; at += Math.ceil(rows.length / ROWS)) kept.add(rows[at]);
  for (const column of columns) {
    let [least, largest] = [null, null];
    for (const at of rows) {
      const value = column[at];
      if (value === undefined || value === null) continue;
      if (least === null || value < column[least]) least = at;
      if (largest === null || value > column[largest]) largest = at;
    }
    for (const at of [least, largest]) if (at !== null) kept.add(at);
  }
  return [...kept].sort((one, other) => one - other);
}

/** Marks of a logarithmic axis: 1, 2 and 5 of each power of ten; even steps where the axis is shorter than that. */
function logMarks(low, high) {
  const decades = Math.log10(high / low);
  const found = [];
  if (decades < 0.8) {
    const rough = (high - low) / 5;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((one) => one * power >= rough) * power;
    for (let mark = Math.ceil(low / step); mark * step <= high; mark += 1) found.push(Number((mark * step).toPrecision(8)));
    return found;
  }
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const one of decades > 3 ? [1] : [1, 2, 5]) {
      const mark = Number((one * 10 ** power).toPrecision(8));
      if (mark >= low && mark <= high) found.push(mark);
    }
  }
  return found;
}

function whole() {
  const found = [];
  for (let power = 1; power <= 1e12; power *= 10) found.push(power, 2 * power, 5 * power);
  return found;
}
