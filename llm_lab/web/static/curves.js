// Curves of one run or of several: a chart per metric, one x axis for all of them, zoom, smoothing, live points.
import { api, color, data as handed, el, fill, findAll, onTheme, showError, watch } from "./lab.js";
import { AXIS_NAMES, Chart, NAMES } from "./chart.js";
import { write } from "./numbers.js";

const POINTS = 2000; // of a curve; longer ones are thinned by the server
let early = handed.early; // the first curves, which the browser requests while it loads the scripts
const DASHES = [[], [7, 4], [2, 3], [12, 4, 2, 4]];

/** The color and dash of the index-th run: after six, the colors repeat with dashes. */
export const lookOf = (index) => ({ color: NAMES[index % 6], dash: DASHES[Math.floor(index / 6) % DASHES.length] });

export class Curves {
  /**
   * root: where the charts go. sources: [{name, label, color, dash}]; For one: the panels of the report, training and
   * validation together. For several: a chart per metric, with a curve per run.
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

  /** Show these runs; those already shown keep their points. */
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
    const topic = `metrics:${this.axis}:${POINTS}:${source.name}`;
    const take = (data, problems) => problems || this.take(source, data);
    if (early?.topic !== topic) {
      source.end = watch(topic, take);
      return;
    }
    let wanted = true;
    source.end = () => (wanted = false);
    api(early.address)
      .catch(() => null) // the next request reports the error
      .then((first) => {
        if (!wanted) return;
        source.end = watch(topic, take, first?.cursor);
        if (first) take(first.data);
      });
    early = null;
  }

  take(source, data) {
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
      if (this.range?.[0] > this.whole()[1]) this.range = null; // the run started again before the zoomed part
      if (this.range) this.refine();
    }
    source.rows = data.rows;
    this.onRows?.(source, data);
    this.show();
  }

  // --- the tools above the charts

  buildTools() {
    this.axisButtons = el("div.segmented", { role: "group", "aria-label": "Horizontal axis" });
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
      for (const { x } of this.hidden.has(source.name) ? [] : Object.values(source.points)) {
        if (!x.length) continue;
        low = Math.min(low, x[0]);
        high = Math.max(high, x.at(-1));
      }
    }
    if (low === Infinity) return [0, 1];
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

  /** Request the points in the visible part, if the curves were thinned. */
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
    const first = this.charts.size ? plan : plan.slice(0, 1); // painted before the others are built
    if (first.length < plan.length) requestAnimationFrame(() => setTimeout(() => this.show()));
    for (const [at, panel] of first.entries()) {
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
