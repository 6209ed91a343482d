// @ts-check
// The overview's actions: load, unload, pin, clean up, cancel. Asks before an action that loses something.

import { api } from "./api.js";
import { confirm, toast, toastError } from "./dialog.js";
import { bytes, number } from "./format.js";
import { lacking } from "./snapshot.js";

const many = (/** @type {number} */ count, /** @type {string} */ one) => `${number(count)} ${one}${count === 1 ? "" : "s"}`;
const path = (/** @type {string} */ name, /** @type {string} */ what) => `/admin/models/${encodeURIComponent(name)}/${what}`;

/** Runs an action with its button busy and shows its error. @param {any} button @param {() => Promise<void>} action */
export async function perform(button, action) {
  if (button.getAttribute("aria-busy") === "true" || button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-busy", "true");
  try {
    await action();
  } catch (error) {
    toastError(error);
  } finally {
    button.removeAttribute("aria-busy");
  }
}

/** Loads a model; asks first if other models must be evicted for it. @param {any} state @param {any} model */
export async function load(state, model) {
  const lack = lacking(state, model);
  if (lack > 0) {
    const sure = await confirm({
      title: `Load ${model.name}?`, action: "Load it",
      text: `It needs about ${bytes(model.predicted_bytes)}, ${bytes(lack)} more than is free. The models used least recently are unloaded to make room, once they have answered.`,
    });
    if (!sure) return;
  }
  const { model: loaded } = await api("POST", path(model.name, "load"), {});
  toast(`${model.name} is ready after ${loaded.seconds.toFixed(1)} s.`, "good");
}

/** Unloads a model. @param {any} model */
export async function unload(model) {
  const busy = model.leases + model.waiting;
  const sure = await confirm({
    title: `Unload ${model.name}?`, danger: true, action: busy ? "Unload it anyway" : "Unload",
    text: busy
      ? `It has ${many(model.leases, "request")} running and ${number(model.waiting)} waiting. They all fail.`
      : `${bytes(model.bytes)} are given back. The next request for it loads it again.`,
  });
  if (!sure) return;
  const done = await api("POST", path(model.name, "unload"), { force: busy > 0 });
  toast(done.unloaded ? `${model.name} was unloaded; ${bytes(done.freed_bytes)} are free.` : `${model.name} was not loaded.`, "good");
}

/** Pins or unpins a model. @param {any} model */
export async function pin(model) {
  await api("POST", path(model.name, "pin"), { pinned: !model.pinned });
}

/** Unloads idle models and removes temporary files. @param {any} state */
export async function cleanup(state) {
  const idle = state.models.filter((/** @type {any} */ one) => one.state === "ready" && !one.leases && !one.waiting && !one.pinned);
  const what = idle.length ? `Unloads ${idle.map((/** @type {any} */ one) => one.name).join(", ")}, and removes` : "No model is idle and unpinned; removes";
  const sure = await confirm({
    title: "Clean up?", danger: true, action: "Clean up",
    text: `${what} temporary files that no request uses. Models that answer, and pinned ones, stay.`,
  });
  if (!sure) return;
  const done = await api("POST", "/admin/emergency_cleanup", {});
  toast(`${many(done.evicted.length, "model")} unloaded (${bytes(done.freed_bytes)}), ${many(done.temp_entries_removed, "file")} removed (${bytes(done.temp_bytes_removed)}).`, "good");
}

/** Cancels a request. @param {any} request */
export async function cancel(request) {
  await api("DELETE", `/v1/requests/${encodeURIComponent(request.id)}`);
  toast(`The request to ${request.model} was cancelled.`, "good");
}
