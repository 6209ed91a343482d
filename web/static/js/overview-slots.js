// @ts-check
// The slots: for each a bar of its memory with a block per resident, and a row per resident below.

import { $, h, replace, setText } from "./dom.js";
import { ago, bytes, duration, percent } from "./format.js";
import { icon } from "./icons.js";
import { updateKeyedList } from "./keyed-list.js";
import { perform, pin, unload } from "./overview-actions.js";
import { degraded, doing, paletteOf, mayChange, now, residents } from "./snapshot.js";

const GONE = 1400; // milliseconds for which a leaving block stays visible
const NOTE = 12000; // milliseconds for which the reason of an eviction stays below the bar

/** Shows the slots of a snapshot in `place`. @param {Element} place @param {any} state */
export function showSlots(place, state) {
  updateKeyedList(place, state.slots, {
    key: (slot) => slot.device, make: makeSlot, update: (card, slot) => updateSlot(card, slot, state),
  });
}

/** Shows below the slot's bar why a model left it. @param {Element} place @param {any} entry of the journal */
export function showLeaving(place, entry) {
  const card = [...place.children].find((one) => /** @type {HTMLElement} */ (one).dataset.slot === entry.device);
  if (!card) return;
  const note = h("p", { class: "slot-note" }, entry.text);
  const notes = $(".slot-notes", card);
  notes.prepend(note);
  while (notes.children.length > 3) notes.lastElementChild.remove();
  setTimeout(() => note.remove(), NOTE);
}

/** Updates ages and countdowns. @param {Element} place */
export function tick(place) {
  for (const row of place.querySelectorAll(".resident")) tell(/** @type {any} */ (row));
}

function makeSlot(slot) {
  const id = `slot-${slot.device.replace(/\W/g, "-")}`;
  return h("section", { class: "card slot", "aria-labelledby": id, dataset: { slot: slot.device } },
    h("div", { class: "slot-head" }, h("h3", { id }, slot.device), h("p", { class: "slot-sum" })),
    h("div", { class: "track", role: "img" }),
    h("div", { class: "scale", "aria-hidden": "true" }, [0, 1, 2, 3, 4].map(() => h("span"))),
    h("div", { class: "slot-notes" }),
    h("ul", { class: "residents" }),
    h("p", { class: "slot-empty hint", hidden: true }, "Nothing is loaded here. The first request for a model loads it."));
}

function updateSlot(card, slot, state) {
  const found = residents(state, slot.device);
  const whole = Math.max(slot.budget_bytes, slot.used_bytes, 1);
  const sum = $(".slot-sum", card);
  replace(sum, h("strong", null, bytes(slot.used_bytes)), ` of ${bytes(slot.budget_bytes)}`, h("span", { class: "faint" }, ` · ${bytes(Math.max(0, slot.free_bytes))} free`));
  sum.classList.toggle("over", slot.used_bytes > slot.budget_bytes);
  const track = $(".track", card);
  const seen = found.reduce((total, one) => total + one.bytes, 0);
  const others = slot.used_bytes - seen > whole / 500 ? [{ name: " others", bytes: slot.used_bytes - seen, others: true }] : [];
  track.setAttribute("aria-label", inWords(slot, found));
  updateKeyedList(track, [...found, ...others], {
    key: (one) => one.name, make: makeBlock, update: (block, one) => updateBlock(block, one, whole, state), leave: leaveTrack,
  });
  $(".scale", card).childNodes.forEach((/** @type {any} */ mark, /** @type {number} */ at) => setText(mark, at ? bytes((whole * at) / 4) : "0"));
  updateKeyedList($(".residents", card), found, {
    key: (one) => one.name, make: (one) => makeRow(one, state), update: (row, one) => updateRow(row, one, state),
  });
  $(".slot-empty", card).hidden = found.length > 0;
}

function inWords(slot, found) {
  const models = found.map((one) => `${one.name} ${bytes(one.bytes)}, ${doing(one)[0]}`);
  return `${slot.device}: ${bytes(slot.used_bytes)} of ${bytes(slot.budget_bytes)} used. ${models.length ? models.join("; ") : "No model is loaded"}.`;
}

// -- blocks -----------------------------------------------------------------------------------------------------------

function makeBlock(one) {
  const block = h("div", { class: "block", style: { width: "0%" } },
    h("span", { class: "block-cache" }), h("span", { class: "block-progress" }),
    h("span", { class: "block-text" }, h("span", { class: "block-name" }), h("span", { class: "block-size" })));
  block.dataset.name = one.name;
  return block;
}

function updateBlock(block, one, whole, state) {
  const width = `${((one.bytes / whole) * 100).toFixed(2)}%`;
  if (block.isConnected) block.style.width = width;
  else requestAnimationFrame(() => requestAnimationFrame(() => (block.style.width = width)));
  if (one.others) {
    block.className = "block palette-none others";
    setText($(".block-name", block), "others");
    setText($(".block-size", block), bytes(one.bytes));
    return;
  }
  block.className = `block ${paletteOf(state, one.model.name)} ${doing(one)[0]}`;
  const cache = one.state === "loading" ? 0 : Math.min(1, one.cache_bytes / Math.max(1, one.bytes));
  $(".block-cache", block).style.width = `${(cache * 100).toFixed(1)}%`;
  const share = one.progress?.fraction;
  const progress = $(".block-progress", block);
  progress.classList.toggle("unknown", one.state === "loading" && share == null);
  progress.style.width = one.state === "loading" ? `${((share ?? 1) * 100).toFixed(1)}%` : "0%";
  setText($(".block-name", block), one.name);
  setText($(".block-size", block), bytes(one.bytes));
}

/** A leaving block fades and sinks, then its space closes. With reduced motion it is struck out for that time. */
function leaveTrack(block) {
  if (document.hidden || !block.isConnected) {
    block.remove();
    return;
  }
  block.classList.add("gone");
  setText($(".block-size", block), "leaves");
  setTimeout(() => (block.style.width = "0%"), GONE / 2);
  setTimeout(() => block.remove(), GONE);
}

// -- rows -------------------------------------------------------------------------------------------------------------

function makeRow(one, state) {
  const row = h("li", { class: "resident", dataset: { model: one.model.name, replica: one.name } },
    h("div", { class: "resident-name" },
      h("span", { class: "swatch", "aria-hidden": "true" }),
      h("div", null, h("p", { class: "resident-title" }, h("strong", { class: "truncate" }, one.name), h("span", { class: "badge" })),
        h("p", { class: "hint truncate resident-label" }))),
    h("dl", { class: "resident-facts" },
      fact("Memory", "memory"), fact("Activity", "activity"), fact("Stays", "stays")),
    h("div", { class: "resident-tools" }),
    h("p", { class: "resident-note hint", hidden: true }));
  if (mayChange(state)) {
    const model = () => row.one.model;
    $(".resident-tools", row).append(
      h("button", { class: "button quiet small icon-only pin", type: "button", dataset: { act: "pin" },
        onclick: (/** @type {any} */ event) => perform(event.currentTarget, () => pin(model())) }, icon("pin")),
      h("button", { class: "button quiet small icon-only", type: "button", dataset: { act: "unload" }, "aria-label": `Unload ${one.model.name}`, title: "Unload",
        onclick: (/** @type {any} */ event) => perform(event.currentTarget, () => unload(model())) }, icon("eject")));
  }
  return row;
}

function fact(name, part) {
  return h("div", { class: `fact ${part}` }, h("dt", null, name), h("dd", null, h("span", { class: "first" }), h("span", { class: "hint second" })));
}

function updateRow(row, one, state) {
  row.one = one;
  const [word, colour] = doing(one);
  row.className = `resident ${paletteOf(state, one.model.name)} ${word}`;
  const badge = $(".badge", row);
  badge.className = `badge ${colour}`;
  setText(badge, word);
  setText($(".resident-label", row), one.model.label === one.name ? one.model.family : one.model.label);
  const button = $("[data-act=pin]", row);
  if (button) {
    button.setAttribute("aria-pressed", String(one.pinned));
    button.setAttribute("aria-label", `Pin ${one.model.name}`);
    button.title = one.pinned ? "Unpin: it may make room for others" : "Pin: it stays loaded";
  }
  say(row, "memory", bytes(one.bytes), memory(one));
  const notes = [one.note, degraded(one.model)].filter(Boolean);
  const note = $(".resident-note", row);
  note.hidden = !notes.length;
  setText(note, notes.join(" "));
  tell(row);
}

function memory(one) {
  if (one.state === "loading") return "predicted";
  const off = Math.abs(one.predicted_bytes - one.bytes) > one.bytes / 100;
  const alone = one.from_zygote ? " without a zygote" : "";
  const parts = [off ? `predicted ${bytes(one.predicted_bytes)}${alone}` : one.measured_at_load_bytes ? "measured, as predicted" : "predicted"];
  if (one.cache_bytes) parts.push(`${percent(one.cache_bytes / Math.max(1, one.bytes))} in reserve`);
  return parts.join(" · ").replaceAll(/(\d) (?=\S)/g, "$1\u00a0");
}

/** Updates the facts that change with time. */
function tell(row) {
  const one = row.one;
  if (one.state === "loading") {
    const share = one.progress?.fraction;
    say(row, "activity", one.progress?.phase ?? "starting", share == null ? "" : percent(share));
    say(row, "stays", one.model.waiting ? `${one.model.waiting} waiting` : "–", "");
    return;
  }
  const work = [one.leases ? `${one.leases} running` : "", one.waiting ? `${one.waiting} waiting` : ""].filter(Boolean);
  say(row, "activity", work.length ? work.join(", ") : "idle", work.length ? "" : one.last_used ? `used ${ago(one.last_used)}` : "not used yet");
  const left = one.expires_at === null ? null : one.expires_at - now();
  const forever = one.model.keep_alive < 0;
  if (one.pinned) say(row, "stays", "pinned", "until it is let go");
  else if (one.leases || one.waiting) say(row, "stays", "in use", "");
  else if (left === null || forever) say(row, "stays", "for good", "keep-alive has no end");
  else say(row, "stays", duration(Math.max(0, Math.ceil(left))), "until it is unloaded");
  const share = left === null || forever || one.pinned ? 0 : Math.min(1, Math.max(0, left / Math.max(1, one.model.keep_alive)));
  $(".fact.stays", row).style.setProperty("--left", share.toFixed(3));
}

function say(row, part, first, second) {
  setText($(`.fact.${part} .first`, row), first);
  setText($(`.fact.${part} .second`, row), second);
}
