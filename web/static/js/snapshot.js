// @ts-check
// Reads a snapshot (the data of the live stream's `state` event): residents of a slot, cold models, rights, the server's time.

let ahead = 0; // seconds by which the server's clock is ahead of this one

/** Follows the server's clock; to be called with each new snapshot. @param {any} state */
export function syncClock(state) {
  ahead = state.time - Date.now() / 1000;
}

/** The server's time, in seconds since 1970. */
export const now = () => Date.now() / 1000 + ahead;

/** Whether this client may change anything. @param {any} state */
export const mayChange = (state) => (state ? state.role !== "user" : document.body.dataset.role !== "user");

/** The CSS class of a model's colour. @param {any} state @param {string | null} name */
export function paletteOf(state, name) {
  const place = state ? state.models.findIndex((/** @type {any} */ model) => model.name === name) : -1;
  return place < 0 ? "palette-none" : `palette-${(place % 8) + 1}`;
}

/**
 * The replicas that take memory of a slot, each with its `model`. A replica on a GPU that offloads to this slot appears with its
 * offloaded bytes; its cache is on the GPU.
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

/** The models that are in no slot. @param {any} state @returns {any[]} */
export const cold = (state) => state.models.filter((/** @type {any} */ model) => model.state === "cold");

/** The bytes to free in the roomiest of a model's slots so that it fits; 0 if it fits. @param {any} state @param {any} model */
export function lacking(state, model) {
  const free = Math.max(0, ...state.slots.filter((/** @type {any} */ slot) => model.slots.includes(slot.device)).map((/** @type {any} */ slot) => slot.free_bytes));
  return Math.max(0, model.predicted_bytes - free);
}

/** A word for what a resident does, and its badge's colour. @param {any} one @returns {[string, string]} */
export function doing(one) {
  if (one.state === "loading") return ["loading", "accent"];
  if (one.state === "draining") return ["leaving", "halt"];
  if (one.leases) return ["answering", "go"];
  return ["idle", ""];
}

/** The sentence about a degraded load; "" for a normal one. @param {any} model */
export function degraded(model) {
  return {
    small_batch: "It makes one answer at a time, because memory ran out.",
    offload: "A part of it is in RAM, because the GPU's memory ran out; that is slower.",
    cpu: "It runs on the CPU, because the GPU's memory ran out; that is slower.",
  }[model.level] ?? "";
}
