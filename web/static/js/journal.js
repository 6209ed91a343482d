// @ts-check
// Shows journal entries: the icon and colour of each kind, and an entry as an element.

import { h } from "./dom.js";
import { bytes, clock, duration } from "./format.js";
import { icon } from "./icons.js";

/** Kinds: the word, the icon, the colour. @type {Record<string, [string, string, string]>} */
const KINDS = {
  start: ["started", "play", "accent"], stop: ["stopping", "stop", "care"], load: ["loading", "play", ""], loaded: ["loaded", "check", "go"],
  load_failed: ["load failed", "warning", "halt"], evicted: ["evicted", "eject", "care"], expired: ["expired", "eject", ""],
  unloaded: ["unloaded", "eject", ""], cleanup: ["cleaned up", "trash", ""], moved: ["moved", "refresh", ""],
  out_of_memory: ["out of memory", "warning", "halt"], degraded: ["degraded", "warning", "care"], crash: ["crashed", "warning", "halt"],
  restart: ["restarted", "refresh", "care"], pinned: ["pinned", "pin", "accent"], unpinned: ["unpinned", "pin", ""], download: ["download", "download", "accent"], deleted: ["deleted", "trash", ""],
};

/** Groups of kinds for the filter. @type {[string, string[]][]} */
export const GROUPS = [
  ["Loads", ["load", "loaded", "load_failed", "restart"]],
  ["Unloads", ["evicted", "expired", "unloaded", "cleanup", "moved"]],
  ["Trouble", ["load_failed", "out_of_memory", "degraded", "crash", "restart"]],
  ["By hand", ["unloaded", "cleanup", "pinned", "unpinned", "download", "deleted"]],
  ["Server", ["start", "stop"]],
];

/** The word for a kind. @param {string} kind */
export const wordOf = (kind) => KINDS[kind]?.[0] ?? kind.replaceAll("_", " ");

/**
 * Makes an element of an entry. `palette` is the CSS class of its model's colour; `more` shows the facts too.
 * @param {any} entry @param {string} palette @param {boolean} [more]
 */
export function entryElement(entry, palette, more = false) {
  const [word, sign, colour] = KINDS[entry.kind] ?? [wordOf(entry.kind), "info", ""];
  const facts = more ? factsOf(entry) : [];
  return h("li", { class: `entry ${colour} ${palette}`, dataset: { kind: entry.kind, id: entry.id } },
    h("span", { class: "entry-sign", "aria-hidden": "true" }, icon(sign)),
    h("div", { class: "entry-body" },
      h("p", { class: "entry-text" }, entry.text.replaceAll(/(\d) (s|k?B|[MGT]B)\b/g, "$1\u00a0$2")),
      h("p", { class: "entry-meta hint" }, h("time", { datetime: new Date(entry.time * 1000).toISOString() }, clock(entry.time)),
        h("span", { class: `badge ${colour}` }, word),
        more && entry.model ? h("span", { class: "entry-model" }, h("span", { class: "swatch", "aria-hidden": "true" }), entry.model) : null,
        facts.map(([name, value]) => h("span", null, h("span", { class: "faint" }, `${name} `), value)))));
}

/** @returns {[string, string][]} */
function factsOf({ kind, detail, device }) {
  /** @type {[string, string][]} */
  const found = [];
  if (device) found.push(["slot", device]);
  const inRam = detail.offloaded_bytes ? ` and ${bytes(detail.offloaded_bytes)} of RAM` : "";
  if (detail.bytes !== undefined) found.push([kind === "loaded" ? "takes" : "frees", `${bytes(detail.bytes)}${inRam}`]);
  if (detail.predicted_bytes !== undefined) found.push([detail.from_zygote ? "predicted without a zygote" : "predicted", bytes(detail.predicted_bytes)]);
  for (const [phase, seconds] of Object.entries(detail.phases ?? {})) if (seconds >= 0.05) found.push([phase, duration(seconds)]);
  return found;
}
