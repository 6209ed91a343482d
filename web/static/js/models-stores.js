// @ts-check
// Where models are stored: the disk, and each slot with the sets of models that fit into it at the same time.

import { h } from "./dom.js";
import { bytes, percent } from "./format.js";

const SETS = 6; // shown at most

/** The card of the disk. @param {any} disk */
export function disk(disk) {
  const used = disk.total - disk.free;
  const other = Math.max(0, used - disk.models_bytes - disk.quantized_bytes);
  const pieces = [
    ["weights", "Weights", disk.models_bytes], ["quantized", "Quantized, kept", disk.quantized_bytes], ["other", "Everything else", other],
  ];
  return h("section", { class: "card store", "aria-labelledby": "disk" },
    h("div", { class: "store-head" }, h("h2", { id: "disk" }, "Disk"),
      h("p", { class: "store-figure" }, h("strong", null, bytes(disk.free)), ` free of ${bytes(disk.total)}`)),
    h("div", { class: "pile", "aria-hidden": "true" }, pieces.map(([kind, , size]) => size > 0 && h("div", { class: kind, style: { width: `${(size / disk.total) * 100}%` } }))),
    h("ul", { class: "legend" }, pieces.map(([kind, words, size]) => h("li", null, h("span", { class: `swatch ${kind}`, "aria-hidden": "true" }), words, h("span", { class: "legend-size" }, bytes(size)))),
      h("li", null, h("span", { class: "swatch room", "aria-hidden": "true" }), "Free", h("span", { class: "legend-size" }, percent(disk.free / disk.total)))),
    disk.free < disk.total * 0.05 && h("p", { class: "notice caution" }, "The disk is nearly full: a download keeps half a gigabyte free."),
    h("p", { class: "hint truncate", title: disk.path }, "Weights are in ", h("code", null, disk.path)));
}

/** The card of the slots. @param {any} known the answer of /admin/weights @param {Map<string, string>} colours by model */
export function slots(known, colours) {
  const sizes = new Map(known.models.map((model) => [model.name, model.fit.bytes]));
  return h("section", { class: "card store", "aria-labelledby": "together" },
    h("h2", { id: "together" }, "Fit at the same time"),
    known.slots.map((slot) => one(slot, sizes, colours, known)));
}

function one(slot, sizes, colours, known) {
  const there = known.models.filter((model) => model.fit.slot === slot.device && model.fit.bytes > 0);
  const all = slot.sets.length === 1 && slot.sets[0].length === there.length;
  const shown = slot.sets.slice(0, SETS);
  const rest = slot.more || slot.sets.length > SETS;
  return h("div", { class: "slot-sets" },
    h("p", { class: "model-line" }, h("strong", null, slot.device), h("span", { class: "model-size" }, `${bytes(slot.budget_bytes)} for models`)),
    all && there.length > 1 && h("p", { class: "hint" }, `All ${there.length} that are here fit at once.`),
    !shown.length && h("p", { class: "hint" }, there.length ? "None of those that are here fits." : "Known when there are weights."),
    h("ul", { class: "sets", "aria-label": `Sets of models that fit on ${slot.device} at once` }, shown.map((names) => {
      const total = names.reduce((sum, name) => sum + (sizes.get(name) ?? 0), 0);
      return h("li", null,
        h("p", { class: "set-names" }, names.map((name) => h("span", { class: "set-name", style: { "--own": colours.get(name) } }, h("span", { class: "dot", "aria-hidden": "true" }), name))),
        h("div", { class: "pile thin", "aria-hidden": "true" }, names.map((name) => h("div", { style: { width: `${((sizes.get(name) ?? 0) / slot.budget_bytes) * 100}%`, background: colours.get(name) ?? "" } }))),
        h("p", { class: "hint" }, `${bytes(total)}, leaving ${bytes(slot.budget_bytes - total)}`));
    })),
    rest && h("p", { class: "hint" }, "And other sets."));
}
