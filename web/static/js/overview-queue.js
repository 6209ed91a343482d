// @ts-check
// The waiting and running requests by model, with their ages and a button that cancels each.

import { $, h, setText } from "./dom.js";
import { duration, number } from "./format.js";
import { updateKeyedList } from "./keyed-list.js";
import { cancel, perform } from "./overview-actions.js";
import { paletteOf, mayChange, now } from "./snapshot.js";

/** Shows a snapshot's requests in a table. @param {any} table @param {Element} empty @param {any} state */
export function showQueue(table, empty, state) {
  const order = new Map(state.models.map((/** @type {any} */ model, /** @type {number} */ at) => [model.name, at]));
  const asked = state.requests.map((/** @type {any} */ one) => ({ ...one, began: state.time - one.age }));
  asked.sort((/** @type {any} */ a, /** @type {any} */ b) => order.get(a.model) - order.get(b.model)
    || Number(a.state === "waiting") - Number(b.state === "waiting") || a.began - b.began);
  const keyedBy = asked.some((/** @type {any} */ one) => one.key);
  table.classList.toggle("with-keys", keyedBy);
  let before = "";
  for (const one of asked) [one.head, before] = [one.model !== before, one.model];
  updateKeyedList($("tbody", table), asked, { key: (one) => one.id, make: (one) => makeRow(one, state), update: (row, one) => updateRow(row, one, state) });
  const running = asked.filter((/** @type {any} */ one) => one.state === "running").length;
  setText($("#queue-sum"), asked.length ? `${number(running)} running, ${number(state.requests_in_all - running)} waiting` : "");
  const more = state.requests_in_all - state.requests.length;
  setText($("#queue-more"), more > 0 ? `and ${number(more)} more` : "");
  $("#queue-more").hidden = more <= 0;
  table.parentElement.hidden = !asked.length;
  /** @type {any} */ (empty).hidden = asked.length > 0;
}

/** Updates the ages. @param {Element} table */
export function tick(table) {
  for (const row of /** @type {any} */ ($("tbody", table).children)) setText($(".age", row), age(row.one));
}

function age(one) {
  const seconds = Math.floor(now() - one.began);
  return seconds < 1 ? "0 s" : duration(seconds);
}

function makeRow(one, state) {
  const row = h("tr", { dataset: { request: one.id } },
    h("td", { class: "queue-model" }, h("span", { class: "swatch", "aria-hidden": "true" }), h("span", { class: "model" })),
    h("td", null, h("span", { class: "badge" })),
    h("td", { class: "number age" }), h("td", { class: "number tokens" }),
    h("td", { class: "queue-key" }), h("td", { class: "queue-id" }, h("code", { class: "truncate", title: one.id }, one.id)),
    h("td", { class: "queue-tools" }));
  // A user is shown only their own requests, so every request shown may be cancelled.
  $(".queue-tools", row).append(h("button", { class: "button quiet small danger", type: "button", dataset: { act: "cancel" },
    "aria-label": `Cancel the request ${one.id} to ${one.model}`,
    onclick: (/** @type {any} */ event) => perform(event.currentTarget, () => cancel(row.one)) }, "Cancel"));
  if (!mayChange(state)) row.dataset.own = "";
  return row;
}

function updateRow(row, one, state) {
  row.one = one;
  row.className = `${paletteOf(state, one.model)}${one.head ? " head" : ""}`;
  setText($(".model", row), one.model);
  const badge = $(".badge", row);
  badge.className = `badge ${one.state === "running" ? "go" : "care"}`;
  setText(badge, one.by_hand ? `load by hand, ${one.state}` : one.priority === "batch" ? `${one.state}, batch` : one.state);
  setText($(".age", row), age(one));
  setText($(".tokens", row), one.state === "running" ? number(one.tokens) : "–");
  setText($(".queue-key", row), one.key ?? "–");
}
