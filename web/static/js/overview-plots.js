// @ts-check
// The overview's plots, their time span, and the same figures as a table.

import { $, $$, h, replace } from "./dom.js";
import { bytes, clock, duration, number, percent } from "./format.js";
import { Plot } from "./plot.js";

const SPANS = [60, 300, 600];
const ROWS = 10;
const short = (/** @type {number} */ value) => (value >= 10000 ? `${number(value / 1000)}k` : number(value, value < 10 && value % 1 ? 1 : 0));
const seconds = (/** @type {number} */ value) => (value === 0 ? "0" : value < 1 ? `${Math.round(value * 1000)} ms` : `${number(value, value < 10 && value % 1 ? 1 : 0)} s`);

export class Plots {
  /** @param {Element} place @param {any} samples */
  constructor(place, samples) {
    this.samples = samples;
    this.span = 300;
    this.place = place;
    /** @type {Plot[]} */
    this.plots = [];
    this._spans($("#spans"));
    this.table = $("#traffic-table");
    this.table.addEventListener("toggle", () => this._fill());
  }

  /** Draws the current samples. */
  show() {
    if (!this.plots.length && this.samples.times.length) this._make();
    for (const plot of this.plots) plot.show(this.samples, this.span);
    if (this.table.open) this._fill();
  }

  _spans(place) {
    for (const span of SPANS) {
      place.append(h("button", { class: "button small", type: "button", "aria-pressed": String(span === this.span), onclick: (/** @type {any} */ event) => {
        this.span = span;
        for (const button of $$("button", place)) button.setAttribute("aria-pressed", String(button === event.currentTarget));
        this.show();
      } }, duration(span)));
    }
  }

  _make() {
    const host = this.samples.hostBytes;
    const slots = Object.keys(this.samples.budgets);
    const share = (/** @type {number} */ whole) => (/** @type {number} */ value) => (100 * value) / Math.max(1, whole);
    const filled = (/** @type {number} */ whole) => (/** @type {number | null} */ value) => (value === null ? "–" : `${percent(value / 100)} (${bytes((value * whole) / 100)})`);
    this.plots = [
      new Plot({ title: "Tokens per second", format: short, top: 10, series: [{ name: "tokens", column: "tokens_per_second", colour: "--accent", kind: "area" }] }),
      new Plot({ title: "Time to the first token", format: seconds, top: 0.2, series: [{ name: "first token", column: "first_token_seconds", colour: "--palette-6", kind: "dots" }] }),
      new Plot({ title: "Requests under way", format: short, top: 2, series: [
        { name: "waiting", column: "waiting", colour: "--care", kind: "step" }, { name: "running", column: "running", colour: "--go", kind: "step" }] }),
      new Plot({ title: "Requests answered", format: short, top: 2, series: [
        { name: "ended", column: "requests", colour: "--palette-1", kind: "bars" }, { name: "failed", column: "errors", colour: "--halt", kind: "bars" }] }),
      new Plot({ title: "Loads", format: short, top: 2, series: [
        { name: "loads", column: "loads", colour: "--palette-8", kind: "bars" }, { name: "of them swaps", column: "swaps", colour: "--palette-4", kind: "bars" }] }),
      new Plot({ title: "Memory in use", format: (value) => percent(value / 100), top: 100, fixed: true, series: [
        ...slots.map((slot, at) => ({ name: slot, column: `slot ${slot}`, colour: `--palette-${(at % 8) + 1}`, kind: /** @type {"line"} */ ("line"), scale: share(this.samples.budgets[slot]), say: filled(this.samples.budgets[slot]) })),
        { name: "machine", column: "host_used_bytes", colour: "--ink-3", kind: "line", scale: share(host), say: filled(host) }] }),
    ];
    replace(this.place, this.plots.map((plot) => plot.element));
  }

  _fill() {
    if (!this.table.open || !this.samples.times.length) return;
    const step = this.span / ROWS;
    const slots = Object.keys(this.samples.budgets);
    const rows = Array.from({ length: ROWS }, (_, at) => {
      const [from, to] = [this.samples.end - (at + 1) * step, this.samples.end - at * step];
      const over = (/** @type {string} */ name, /** @type {any} */ how) => this.samples.over(name, how, from, to);
      const first = over("first_token_seconds", "mean");
      return [clock(to), number(over("tokens_per_second", "mean"), 1), first === null ? "–" : seconds(first), number(over("running", "max")), number(over("waiting", "max")),
        number(over("requests", "sum")), number(over("errors", "sum")), number(over("loads", "sum")), number(over("swaps", "sum")),
        ...slots.map((slot) => bytes(over(`slot ${slot}`, "max"))), bytes(over("host_used_bytes", "max"))];
    });
    const heads = ["Until", "Tokens/s", "First token", "Running", "Waiting", "Ended", "Failed", "Loads", "Swaps", ...slots.map((slot) => `Slot ${slot}`), "Machine"];
    replace($("table", this.table),
      h("caption", { class: "hint" }, `Each row is ${duration(step)}: means of tokens and first tokens, the most that ran and waited, sums of the others.`),
      h("thead", null, h("tr", null, heads.map((head, at) => h("th", { scope: "col", class: at ? "number" : "" }, head)))),
      h("tbody", null, rows.map((row) => h("tr", null, row.map((cell, at) => (at ? h("td", { class: "number" }, cell) : h("th", { scope: "row" }, cell)))))));
  }
}
