// @ts-check
// The cold models: their size, what prevents a load, and the button that loads them.

import { $, h, setText } from "./dom.js";
import { ago, bytes, duration } from "./format.js";
import { icon } from "./icons.js";
import { updateKeyedList } from "./keyed-list.js";
import { load, perform } from "./overview-actions.js";
import { cold, lacking, paletteOf, mayChange, now } from "./snapshot.js";

/** Shows the cold models of a snapshot in `place`. @param {Element} place @param {any} state */
export function showCatalog(place, state) {
  updateKeyedList(place, cold(state), { key: (model) => model.name, make: (model) => makeModel(model, state), update: (row, model) => updateModel(row, model, state) });
}

/** Updates ages and countdowns. @param {Element} place */
export function tick(place) {
  for (const row of place.children) tell(/** @type {any} */ (row));
}

function makeModel(model, state) {
  const row = h("li", { class: "cold" },
    h("span", { class: "swatch hollow", "aria-hidden": "true" }),
    h("div", { class: "cold-what" },
      h("p", { class: "resident-title" }, h("strong", { class: "truncate" }, model.name), h("span", { class: "cold-size faint" })),
      h("p", { class: "hint truncate cold-label" }),
      h("p", { class: "hint cold-why", hidden: true }),
      mayChange(state) ? h("p", { class: "hint cold-get", hidden: true }, h("a", { href: "/ui/models" }, "Get them under Models")) : null));
  row.dataset.model = model.name;
  if (mayChange(state)) {
    row.append(h("button", { class: "button small", type: "button", dataset: { act: "load" }, "aria-label": `Load ${model.name}`,
      onclick: (/** @type {any} */ event) => perform(event.currentTarget, () => load(row.state, row.model)) }, icon("play"), "Load"));
  }
  return row;
}

function updateModel(row, model, state) {
  [row.model, row.state] = [model, state];
  row.className = `cold ${paletteOf(state, model.name)}`;
  setText($(".cold-size", row), bytes(model.predicted_bytes));
  $(".cold-size", row).title = lacking(state, model) ? "Others would have to make room" : "It fits beside what is loaded";
  tell(row);
}

function tell(row) {
  const { model } = row;
  const used = model.last_used ? `used ${ago(model.last_used)}` : "";
  setText($(".cold-label", row), [model.pinned ? "pinned" : "", used, model.inputs.join(", ")].filter(Boolean).join(" · "));
  const wait = model.retry_at === null ? 0 : model.retry_at - now();
  const why = model.weights_missing
    ? `Its weights are not here: ${model.weights_missing}.`
    : wait > 0 ? `The last load failed: ${model.last_failure}. It is left alone for ${duration(Math.ceil(wait))}.` : "";
  const place = $(".cold-why", row);
  place.hidden = !why;
  setText(place, why);
  place.title = why;
  const button = $("[data-act=load]", row);
  if (button) button.hidden = Boolean(model.weights_missing);
  const get = $(".cold-get", row);
  if (get) get.hidden = !model.weights_missing;
}
