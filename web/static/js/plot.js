// @ts-check
// One plot over time, in SVG: lines, areas, dots or bars over the last seconds, with axes, and a cursor that all plots
// of a page share. It is an image with a name for screen readers; the figures are in a table beside the plots.

import { h, replace, setText, svg } from "./dom.js";
import { clock } from "./format.js";

const HEIGHT = 132;
const LEFT = 44;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 22;
const GAP = 3.5; // seconds without a sample after which a line breaks

/** The cursor that all plots share: a time, or null. */
const cursor = {
  /** @type {number | null} */
  time: null,
  /** @type {Set<() => void>} */
  plots: new Set(),
  /** @param {number | null} time */
  move(time) {
    if (time === this.time) return;
    this.time = time;
    for (const draw of this.plots) draw();
  },
};

/**
 * @typedef {{name: string, column: string, colour: string, kind: "area" | "line" | "step" | "dots" | "bars",
 *   scale?: (value: number) => number, say?: (value: number | null) => string}} Series
 */

export class Plot {
  /**
   * @param {{title: string, series: Series[], format: (value: number) => string, top?: number, fixed?: boolean, hint?: string}} what
   *   `top` is the least that the axis reaches, for good if it is `fixed`.
   */
  constructor({ title, series, format, top = 1, fixed = false, hint = "" }) {
    this.title = title;
    this.series = series;
    this.format = format;
    this.top = top;
    this.fixed = fixed;
    /** @type {any} The samples, once there are some. */
    this.samples = null;
    this.span = 0;
    this.values = series.map((one) => h("b"));
    this.at = h("span", { class: "plot-at" });
    this.svg = svg("svg", { role: "img", tabindex: "0", class: "plot-image", height: HEIGHT, "aria-label": title });
    this.element = h("figure", { class: "plot card" },
      h("figcaption", null, h("span", { class: "plot-title" }, title, hint ? h("span", { class: "hint" }, ` ${hint}`) : null), this.at),
      h("p", { class: "plot-values" }, series.map((one, at) => h("span", { class: "plot-value", style: { "--c": `var(${one.colour})` } },
        h("i", { "aria-hidden": "true" }), this.values[at], series.length > 1 ? h("span", { class: "hint" }, one.name) : null))),
      this.svg);
    this.width = 0;
    new ResizeObserver(([entry]) => {
      this.width = Math.floor(entry.contentRect.width);
      this.draw();
    }).observe(this.svg);
    this.svg.addEventListener("pointermove", (/** @type {any} */ event) => this._point(event.clientX));
    this.svg.addEventListener("pointerleave", () => cursor.move(null));
    this.svg.addEventListener("blur", () => cursor.move(null));
    this.svg.addEventListener("keydown", (/** @type {any} */ event) => this._key(event));
    cursor.plots.add(() => this.draw());
  }

  /** Shows the last `span` seconds of the samples. @param {any} samples @param {number} span */
  show(samples, span) {
    [this.samples, this.span] = [samples, span];
    this.draw();
  }

  draw() {
    if (!this.samples || this.width < 60) return;
    this._measure();
    this._say();
    const inner = this.series.map((one) => this._drawn(one));
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    replace(this.svg, this._axes(), inner, this._cursor());
  }

  // -- scales ---------------------------------------------------------------------------------------------------------

  _measure() {
    this.bin = Math.max(1, this.span / 60);
    this.points = this.series.map((one) => (one.kind === "bars" ? this._bins(one) : this._points(one)));
    const highest = Math.max(this.top, ...this.points.flat().map(([, value]) => value ?? 0));
    this.most = this.fixed ? this.top : nice(highest);
  }

  _points(one) {
    const from = this.samples.end - this.span - 2;
    const column = this.samples.columns[one.column] ?? [];
    const scale = one.scale ?? ((/** @type {number} */ value) => value);
    return this.samples.times.flatMap((/** @type {number} */ time, /** @type {number} */ at) =>
      time < from ? [] : [[time, column[at] === null || column[at] === undefined ? null : scale(column[at])]]);
  }

  /** Sums over intervals that begin at multiples of their length: a bar keeps its value while it moves. */
  _bins(one) {
    const sums = new Map();
    for (const [time, value] of this._points(one)) {
      const begin = Math.floor(time / this.bin) * this.bin;
      sums.set(begin, (sums.get(begin) ?? 0) + (value ?? 0));
    }
    return [...sums];
  }

  _x(time) {
    const wide = this.width - LEFT - RIGHT;
    return LEFT + wide * (1 - (this.samples.end - time) / this.span);
  }

  _y(value) {
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / this.most);
  }

  // -- drawing --------------------------------------------------------------------------------------------------------

  _axes() {
    const rows = [0, 0.5, 1].map((share) => {
      const y = this._y(share * this.most);
      return [svg("line", { class: share ? "plot-grid" : "plot-ground", x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y }),
        svg("text", { class: "plot-tick", x: LEFT - 6, y: y + 3.5, "text-anchor": "end" }, this.format(share * this.most))];
    });
    const steps = this.span > 60 ? [this.span, (this.span * 4) / 5, (this.span * 3) / 5, (this.span * 2) / 5, this.span / 5, 0] : [60, 45, 30, 15, 0];
    const columns = steps.map((back, at) => {
      const x = this._x(this.samples.end - back);
      const anchor = at === steps.length - 1 ? "end" : "middle";
      const said = back === 0 ? "now" : back < 60 ? `−${back} s` : `−${back / 60} min`;
      return [svg("line", { class: "plot-ground", x1: x, x2: x, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4 }),
        svg("text", { class: "plot-tick", x, y: HEIGHT - 6, "text-anchor": anchor }, said)];
    });
    return svg("g", { "aria-hidden": "true" }, rows, columns);
  }

  _drawn(one) {
    const points = this.points[this.series.indexOf(one)];
    const group = svg("g", { class: `plot-${one.kind}`, style: { "--c": `var(${one.colour})` } });
    const ground = this._y(0);
    if (one.kind === "bars") {
      for (const [begin, value] of points) {
        if (!value) continue;
        const [left, right] = [Math.max(LEFT, this._x(begin) + 0.5), Math.min(this.width - RIGHT, this._x(begin + this.bin) - 0.5)];
        if (right > left) group.append(svg("rect", { x: left, width: Math.max(1.5, right - left), y: this._y(value), height: ground - this._y(value) }));
      }
    } else if (one.kind === "dots") {
      for (const [time, value] of points) {
        if (value === null || this._x(time) < LEFT) continue;
        group.append(svg("line", { x1: this._x(time), x2: this._x(time), y1: ground, y2: this._y(value) }), svg("circle", { cx: this._x(time), cy: this._y(value), r: 2.5 }));
      }
    } else {
      for (const run of runs(points)) {
        const line = run.map(([time, value], at) => {
          const [x, y] = [Math.max(LEFT, this._x(time)).toFixed(1), this._y(value).toFixed(1)];
          return at && one.kind === "step" ? `H${x}V${y}` : `${at ? "L" : "M"}${x} ${y}`;
        }).join("");
        const [first, last] = [run[0][0], run.at(-1)[0]];
        if (one.kind !== "line") group.append(svg("path", { class: "plot-under", d: `${line}V${ground}H${Math.max(LEFT, this._x(first)).toFixed(1)}Z` }));
        group.append(svg("path", { class: "plot-over", d: line }));
        if (last === this.samples.end) group.append(svg("circle", { cx: this._x(last), cy: this._y(run.at(-1)[1]), r: 2.5 }));
      }
    }
    return group;
  }

  _cursor() {
    const time = cursor.time;
    if (time === null || time < this.samples.end - this.span) return null;
    const x = this._x(time);
    const dots = this.series.map((one, at) => {
      const value = this._at(at);
      return value === null || one.kind === "bars" ? null : svg("circle", { cx: x, cy: this._y(value), r: 4, class: "plot-mark", style: { "--c": `var(${one.colour})` } });
    });
    return svg("g", { "aria-hidden": "true" }, svg("line", { class: "plot-cursor", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }), dots);
  }

  // -- reading out ----------------------------------------------------------------------------------------------------

  /** The value at the cursor. Without a cursor the latest value; for bars the sum of all bars shown. */
  _at(at) {
    const points = this.points[at];
    const time = cursor.time;
    if (this.series[at].kind === "bars") {
      if (time === null) return this.samples.over(this.series[at].column, "sum", this.samples.end - this.span, this.samples.end);
      const begin = Math.floor(time / this.bin) * this.bin;
      return points.find(([start]) => start === begin)?.[1] ?? 0;
    }
    if (time === null) return this.series[at].kind === "dots" ? this._lastDot()?.[1] ?? null : points.at(-1)?.[1] ?? null;
    return points.find(([one]) => one === time)?.[1] ?? null;
  }

  /** The latest visible dot, with its time. */
  _lastDot() {
    return this.points[0].findLast(([time, value]) => value !== null && time >= this.samples.end - this.span);
  }

  /** The time of the figures: the cursor's, the whole span, the last dot's, or "" for now. */
  _when() {
    const { kind } = this.series[0];
    if (cursor.time !== null) return `${clock(cursor.time)}${kind === "bars" && this.bin > 1 ? `, ${Math.round(this.bin)} s` : ""}`;
    if (kind === "bars") return `in ${this.span / 60} min`;
    const dot = kind === "dots" ? this._lastDot() : null;
    return dot ? `last at ${clock(dot[0])}` : "";
  }

  _say() {
    const said = this.series.map((one, at) => {
      const value = this._at(at);
      return one.say ? one.say(value) : value === null ? "–" : this.format(value);
    });
    said.forEach((text, at) => setText(this.values[at], text));
    const when = this._when();
    setText(this.at, when);
    const now = this.series.map((one, at) => (this.series.length > 1 ? `${one.name} ${said[at]}` : said[at])).join(", ");
    this.svg.setAttribute("aria-label", `${this.title}, the last ${this.span / 60} minutes: ${cursor.time !== null ? `at ${when}` : when || "now"} ${now}; the axis ends at ${this.format(this.most)}`);
  }

  _point(clientX) {
    if (!this.samples) return;
    const x = clientX - this.svg.getBoundingClientRect().left;
    const wanted = this.samples.end - this.span * (1 - (x - LEFT) / (this.width - LEFT - RIGHT));
    cursor.move(nearest(this.samples.times, wanted));
  }

  _key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (event.key === "Escape") cursor.move(null);
    if (!step || !this.samples?.times.length) return;
    event.preventDefault();
    const times = this.samples.times;
    const at = cursor.time === null ? times.length - 1 : times.indexOf(cursor.time);
    cursor.move(times[Math.min(times.length - 1, Math.max(0, at + step))]);
  }
}

/** Splits points at gaps. */
function runs(points) {
  const found = [];
  let before = -Infinity;
  for (const [time, value] of points) {
    if (value !== null) {
      if (time - before > GAP || !found.length) found.push([]);
      found.at(-1).push([time, value]);
      before = time;
    }
  }
  return found.filter((run) => run.length);
}

function nearest(times, wanted) {
  let best = null;
  for (const time of times) if (best === null || Math.abs(time - wanted) < Math.abs(best - wanted)) best = time;
  return best;
}

/** The next round number whose half is easy to read too; a whole number for small counts. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const steps = power === 1 ? [1, 2, 4, 6, 8, 10] : [1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10];
  return steps.map((one) => one * power).find((one) => one >= value * 0.999) ?? value;
}
