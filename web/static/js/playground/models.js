// @ts-check
// The list of models, the server's limits of a request, and the pickers. Asks no model.

import { api } from "../api.js";
import { h, replace } from "../dom.js";
import { KINDS } from "./media.js";

/** @typedef {import('./conversation.js').Model} Model */

const STATES = /** @type {Record<string, [string, string]>} */ ({
  ready: ["Loaded", "go"], loading: ["Loading", "care"], draining: ["Unloading", "care"], cold: ["Not loaded", ""],
});

/** @returns {Promise<{models: Model[], limits: any}>} */
export async function load() {
  const [list, health] = await Promise.all([api("GET", "/v1/models"), api("GET", "/health")]);
  return { models: list.data, limits: health.vlm_config ?? {} };
}

/**
 * Fill a picker.
 * @param {HTMLSelectElement} select @param {Model[]} models @param {string} chosen
 */
export function offer(select, models, chosen) {
  replace(select, models.length ? models.map((model) => h("option", { value: model.id }, title(model))) : h("option", { value: "" }, "No model"));
  select.value = models.some((model) => model.id === chosen) ? chosen : models[0]?.id ?? "";
}

/** A model's name in the picker. @param {Model} model */
function title(model) {
  const takes = KINDS.filter((kind) => model.inputs.includes(kind));
  const missing = model.downloaded ? "" : " (not downloaded)";
  return `${model.id}${missing} · ${takes.length ? takes.join(", ") : "text"}`;
}

/** Describes a model below its picker. @param {HTMLElement} place @param {Model|undefined} model */
export function describe(place, model) {
  if (!model) { replace(place); return; }
  const [state, mood] = model.downloaded ? STATES[model.state] ?? [model.state, ""] : ["Not downloaded", "halt"];
  replace(place, h("span", { class: `badge ${mood}` }, state), h("span", { class: "hint" }, model.label === model.id ? model.family : model.label));
}

/** Why the two cannot answer at the same time, or "". @param {Model[]} models */
export function sharing(models) {
  const [one, other] = models;
  if (!other) return "";
  if (one.id === other.id) return "Both columns ask the same model.";
  if (one.device !== other.device) return "";
  if (models.every((model) => model.state === "ready")) return "";
  return `${one.id} and ${other.id} share the slot ${one.device}. If there is room for both they answer together; otherwise the second waits, and is loaded when the first has answered.`;
}
