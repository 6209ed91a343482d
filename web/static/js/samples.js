// @ts-check
// The samples of the last ten minutes in columns: a history, and the samples since.

const KEPT = 605;
const SET_BACK = 3; // seconds; a sample that is older by more means that the server's clock was set back
const SAME = 0.4; // seconds; samples closer than this are one sample sent twice

export class Samples {
  constructor() {
    /** @type {number[]} In seconds since 1970. */
    this.times = [];
    /** @type {Record<string, (number | null)[]>} By the series' name; a slot's series is named "slot " and its device. */
    this.columns = {};
    /** @type {Record<string, number>} By slot. */
    this.budgets = {};
    this.hostBytes = 0;
  }

  /** Starts again from a `history`. @param {any} history */
  begin(history) {
    this.times = [...history.times];
    this.columns = Object.fromEntries(Object.entries(history.series).map(([name, column]) => [name, [...column]]));
    for (const [name, slot] of Object.entries(history.slots)) {
      this.columns[`slot ${name}`] = [...slot.used_bytes];
      this.budgets[name] = slot.budget_bytes;
    }
    this.hostBytes = history.host_total_bytes;
  }

  /** Adds a `sample`. @param {any} sample */
  add(sample) {
    if (sample.time < this.end - SET_BACK) { // the samples kept are in its future
      this.times = [];
      this.columns = {};
    }
    if (this.times.length && sample.time - this.end < SAME) return;
    this.times.push(sample.time);
    const values = { ...sample.series };
    for (const [name, slot] of Object.entries(sample.slots)) values[`slot ${name}`] = slot.used_bytes;
    for (const name of new Set([...Object.keys(this.columns), ...Object.keys(values)])) {
      (this.columns[name] ??= Array(this.times.length - 1).fill(null)).push(values[name] ?? null);
    }
    const surplus = this.times.length - KEPT;
    if (surplus > 0) for (const column of [this.times, ...Object.values(this.columns)]) column.splice(0, surplus);
  }

  /** The time of the latest sample; 0 before the first. */
  get end() {
    return this.times.at(-1) ?? 0;
  }

  /** The latest value of a series. @param {string} name */
  latest(name) {
    return this.columns[name]?.at(-1) ?? null;
  }

  /** The sum, mean (of known values) or maximum of a series between two times. @param {string} name @param {"sum" | "mean" | "max"} how @param {number} from @param {number} to */
  over(name, how, from, to) {
    const found = (this.columns[name] ?? []).filter((value, at) => value !== null && this.times[at] > from && this.times[at] <= to);
    if (!found.length) return how === "sum" ? 0 : null;
    if (how === "max") return Math.max(...found);
    const sum = found.reduce((total, value) => total + value, 0);
    return how === "sum" ? sum : sum / found.length;
  }
}
