// @ts-check
// Numbers, sizes and times for people. An unknown value is a dash.

const NONE = "–";
const UNITS = ["B", "kB", "MB", "GB", "TB"];

const missing = (/** @type {unknown} */ value) => value === null || value === undefined || Number.isNaN(value);

/** A size in bytes, with three digits: 812 B, 1.24 MB, 18.6 GB (of 1000 each). @param {number | null | undefined} size */
export function bytes(size) {
  if (missing(size)) return NONE;
  let value = Math.abs(Number(size));
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) [value, unit] = [value / 1000, unit + 1];
  const digits = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return `${Number(size) < 0 ? "−" : ""}${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** Seconds: 45 ms, 3.2 s, 4 min 10 s, 2 h 5 min, 3 d 4 h. @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (missing(seconds)) return NONE;
  const value = Math.max(0, Number(seconds));
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (value < 9.95) return `${value.toFixed(1)} s`;
  const whole = Math.round(value);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return pair(whole, 60, "min", 1, "s");
  if (whole < 86400) return pair(whole, 3600, "h", 60, "min");
  return pair(whole, 86400, "d", 3600, "h");
}

function pair(whole, large, one, small, other) {
  const rest = Math.floor((whole % large) / small);
  return `${Math.floor(whole / large)} ${one}${rest ? ` ${rest} ${other}` : ""}`;
}

/** A number with thin spaces between thousands; `digits` after the point. @param {number | null | undefined} value @param {number} [digits] */
export function number(value, digits = 0) {
  if (missing(value)) return NONE;
  const [whole, rest] = Math.abs(Number(value)).toFixed(digits).split(".");
  const grouped = whole.length > 4 ? whole.replace(/\B(?=(\d{3})+$)/g, "\u202f") : whole;
  return `${Number(value) < 0 ? "−" : ""}${grouped}${rest ? `.${rest}` : ""}`;
}

/** How long ago a time (in seconds since 1970) was: just now, 40 s ago, 2 h ago. @param {number | null | undefined} time */
export function ago(time) {
  if (missing(time)) return "never";
  const seconds = Date.now() / 1000 - Number(time);
  if (seconds < 2) return "just now";
  return `${duration(Math.round(seconds)).split(" ").slice(0, 2).join(" ")} ago`;
}

/** A time of day of a time in seconds since 1970; with its date where that is not today's. @param {number | null | undefined} time */
export function clock(time) {
  if (missing(time)) return NONE;
  const at = new Date(Number(time) * 1000);
  const two = (/** @type {number} */ value) => String(value).padStart(2, "0");
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} `;
  const hour = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  return at.toDateString() === new Date().toDateString() ? hour : day + hour;
}

/** A share as a percentage: 0.256 is 26 %. @param {number | null | undefined} share */
export function percent(share) {
  return missing(share) ? NONE : `${Math.round(Number(share) * 100)} %`;
}
