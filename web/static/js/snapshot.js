// @ts-check
// What a `state` of the live line means: who is in which slot, which models are cold, who may do what, what time it is.

let ahead = 0; // seconds by which the server's clock is ahead of this one

/** Keeps how the server's clock differs. To be called with each state as it comes. @param {any} state */
export function heard(state) {
  ahead = state.time - Date.now() / 1000;
}

/** The server's time, in seconds since 1970. */
export const now = () => Date.now() / 1000 + ahead;

/** Whether whoever watches may change anything. @param {any} state */
export const mayChange = (state) => (state ? state.role !== "user" : document.body.dataset.role !== "user");

/** The class that gives a model its colour everywhere. @param {any} state @param {string | null} name */
export function paletteOf(state, name) {
  const place = state ? state.models.findIndex((/** @type {any} */ model) => model.name === name) : -1;
  return place < 0 ? "palette-none" : `palette-${(place % 8) + 1}`;
}

/**
 * What takes memory of a slot: each replica of a model that is not cold, with its `model`; of one on a GPU what it has in RAM,
 * where its cache is not.
 * @param {any} state @param {string} slot @returns {any[]}
 */
export function residents(state, slot) {
  return state.models.flatMap((/** @type {any} */ model) =>
    model.replicas.filter((/** @type {any} */ one) => one.state !== "cold" && (one.device === slot || slot in one.offloaded))
      .map((/** @type {any} */ one) => ({ ...one, ...(one.device === slot ? {} : inRam(one, slot)), model })));
}

const inRam = (/** @type {any} */ one, /** @type {string} */ slot) => ({
  bytes: one.offloaded[slot], predicted_bytes: one.offloaded_predicted_bytes, cache_bytes: 0, measured_at_load_bytes: null,
});

/** The models of which nothing is in any slot. @param {any} state @returns {any[]} */
export const cold = (state) => state.models.filter((/** @type {any} */ model) => model.state === "cold");

/** The bytes that would have to go from the roomiest of its slots so that a model fits; 0 if it does. @param {any} state @param {any} model */
export function lacking(state, model) {
  const free = Math.max(0, ...state.slots.filter((/** @type {any} */ slot) => model.slots.includes(slot.device)).map((/** @type {any} */ slot) => slot.free_bytes));
  return Math.max(0, model.predicted_bytes - free);
}

/** What a resident is doing, in a word, and the badge's colour. @param {any} one @returns {[string, string]} */
export function doing(one) {
  if (one.state === "loading") return ["loading", "accent"];
  if (one.state === "draining") return ["leaving", "halt"];
  if (one.leases) return ["answering", "go"];
  return ["idle", ""];
}

/** How a model that found no memory is loaded now; "" for as it should be. @param {any} model */
export function degraded(model) {
  return {
    small_batch: "It makes one answer at a time, because memory ran out.",
    offload: "A part of it is in RAM, because the GPU's memory ran out; that is slower.",
    cpu: "It runs on the CPU, because the GPU's memory ran out; that is slower.",
  }[model.level] ?? "";
}
