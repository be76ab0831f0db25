// One chart: a metric over an axis, drawn by uPlot, with its legend and its points as a table.
import { el, fill } from "./lab.js";
import { write } from "./numbers.js";

export const AXIS_NAMES = { step: "Steps", train_tokens: "Tokens", wall_seconds: "Time" };
export const NAMES = ["c0", "c1", "c2", "c3", "c4", "c5"];
const ROWS = 400; // in the table under a chart

/** TensorBoard's exponential moving average, debiased at the start. Gaps stay gaps. */
function smooth(values, weight) {
  let last = 0;
  let count = 0;
  return values.map((value) => {
    if (value === null) return null;
    last = weight * last + (1 - weight) * value;
    count += 1;
    return last / (1 - weight ** count);
  });
}

/** Merge curves onto one x axis: undefined where a curve has no point, null where it has a gap. */
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

/** curves: the Curves that it belongs to, which holds the axis, the zoom and the colors. */
export class Chart {
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
        x: { time: false, range: () => curves.range ?? curves.whole() },
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

/** Marks of a logarithmic axis: 1, 2 and 5 of each power of ten; even steps if the axis is shorter than that. */
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
