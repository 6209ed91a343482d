// @ts-check
// The view of models: lists the weights, follows downloads while one runs, and performs the buttons' actions.
//
// It polls /admin/weights, and /admin/downloads each second while a download runs. When the server does not answer, the
// page keeps what it shows.

import { api } from "./api.js";
import { confirm, state, toast, toastError } from "./dialog.js";
import { $, h, replace, setText } from "./dom.js";
import { bytes } from "./format.js";
import { icon } from "./icons.js";
import { live } from "./live.js";
import { Row, isActive } from "./models-row.js";
import { disk, slots } from "./models-stores.js";

const BUSY = 1000;
const IDLE = 10000;
const LONGEST = 15000;

const root = $("#models");
/** @type {any} The last answer of /admin/weights. */
let known = null;
/** @type {any} The last snapshot of the live stream. */
let snapshot = null;
/** @type {Map<string, Row>} */
const rows = new Map();
const parts = { stores: h("div", { class: "stores" }), summary: h("p", { class: "hint" }), tools: h("div", { class: "row" }),
  list: h("ul", { class: "model-list" }) };
let timer = 0;
let failures = 0;
let asked = 0; // requests sent,
let drawn = 0; // and the latest one whose answer is shown: answers may come in another order
let said = ""; // the error shown instead of a list

/** Asks for everything and draws it. */
async function refresh() {
  const mine = ++asked;
  const found = await api("GET", "/admin/weights");
  if (mine < drawn) return;
  drawn = mine;
  const before = known;
  known = found;
  if (snapshot?.time > found.timestamp) applySnapshot();
  for (const model of known.models) ended(model.name, before?.models.find((one) => one.name === model.name)?.download, model.download);
  if (!before) frame();
  draw();
}

/** Updates the downloads' progress; after one has ended, refreshes everything. */
async function follow() {
  const mine = ++asked;
  const { downloads } = await api("GET", "/admin/downloads");
  if (mine < drawn) return;
  drawn = mine;
  let over = false;
  for (const model of known.models) {
    const now = downloads[model.name] ?? null;
    if (ended(model.name, model.download, now)) over = true;
    model.download = now;
    rows.get(model.name)?.update(model);
  }
  if (over) await refresh();
}

/** Whether a download has just ended; shows its result. @param {string} name @param {any} before @param {any} now */
function ended(name, before, now) {
  if (!isActive(before) || isActive(now)) return false;
  if (now?.state === "done") toast(now.fetched ? `${name} is downloaded: ${bytes(now.total)}.` : `${name} is as the hub has it.`, "good");
  else if (now?.state === "failed") toast(`The download of ${name} failed.`, "wrong");
  return true;
}

async function turn() {
  clearTimeout(timer);
  const busy = known?.models.some((model) => isActive(model.download));
  try {
    if (!document.hidden) await (busy ? follow() : refresh());
    failures = 0;
  } catch (error) {
    failures += 1;
    if (!known) failed(error);
  }
  root.toggleAttribute("data-stale", failures > 0);
  const active = known?.models.some((model) => isActive(model.download));
  clearTimeout(timer);
  timer = setTimeout(turn, Math.min((active ? BUSY : IDLE) * 2 ** failures, Math.max(LONGEST, IDLE)));
}

function frame() {
  root.removeAttribute("aria-busy");
  if (!known.models.length) {
    replace(root, state({ icon: "file", title: "No models", text: "The catalog is empty: name some in models.yaml and start the server again." }));
    return;
  }
  replace(root, parts.stores,
    h("section", { class: "section", "aria-labelledby": "catalog" },
      h("div", { class: "section-head" }, h("div", null, h("h2", { id: "catalog" }, "Catalog"), parts.summary), parts.tools),
      parts.list));
}

function draw() {
  const colours = new Map(known.models.map((model, place) => [model.name, `var(--palette-${(place % 8) + 1})`]));
  replace(parts.stores, disk(known.disk), slots(known, colours));
  for (const model of known.models) {
    if (!rows.has(model.name)) {
      const row = new Row(model, colours.get(model.name) ?? "", actions);
      rows.set(model.name, row);
      parts.list.append(row.element);
    }
    rows.get(model.name)?.update(model);
  }
  const here = known.models.filter((model) => model.state === "complete" || model.state === "local").length;
  setText(parts.summary, `Profile ${known.profile}: ${here} of ${known.models.length} can be served`);
  const lacking = known.models.filter((model) => ["absent", "partial"].includes(model.state) && !isActive(model.download));
  if (parts.tools.dataset.lacking !== String(lacking.length)) {
    parts.tools.dataset.lacking = String(lacking.length);
    replace(parts.tools, lacking.length > 1 && h("button", { class: "button small", type: "button", onclick: () => fetchAll(lacking) },
      icon("download"), `Download the ${lacking.length} that lack weights`));
  }
}

function failed(error) {
  root.removeAttribute("aria-busy");
  if (said === error.message) return; // its button stays, and the focus on it
  said = error.message;
  replace(root, state({ wrong: true, title: error.status === 403 ? "Not for this key" : "The models cannot be shown", text: error.message },
    h("button", { class: "button", type: "button", onclick: turn }, icon("refresh"), "Try again")));
}

/** Performs a button's action, then refreshes. @param {() => Promise<void>} what */
async function act(what) {
  try {
    await what();
    drawn = ++asked; // answers to older requests do not know of it
    await refresh();
  } catch (error) {
    toastError(error);
  }
  await turn();
}

async function fetchAll(models) {
  await act(async () => {
    for (const model of models) await begin(model);
  });
}

/** Starts a download and notes it, in case it ends before the next poll. @param {any} model */
async function begin(model) {
  const { download } = await api("POST", path(model, "download"));
  drawn = ++asked;
  const one = known.models.find((/** @type {any} */ other) => other.name === model.name);
  if (one) one.download = download;
}

const path = (model, what) => `/admin/models/${encodeURIComponent(model.name)}/${what}`;

const actions = {
  download: (model) => act(() => begin(model)),
  cancel: (model) => act(async () => {
    const { download } = await api("DELETE", path(model, "download"));
    toast(download?.done ? `Stopped. ${bytes(download.done)} of ${model.name} stay on the disk, to go on from.` : `The download of ${model.name} is stopped.`);
  }),
  free: async (model) => {
    const size = model.deletable_bytes + model.kept_bytes;
    const told = [
      h("p", null, h("strong", null, bytes(model.deletable_bytes)), " of weights are deleted from the disk",
        model.kept_bytes ? [", and ", h("strong", null, bytes(model.kept_bytes)), " of quantized ones kept of them"] : "", "."),
      h("p", null, `To ask ${model.name} again they have to be downloaded again.`),
      model.loaded && h("p", null, "It is loaded now, and will be unloaded; requests under way are ended."),
      model.shared_with.length > 0 && h("p", null, `${model.shared_with.join(", ")} read${model.shared_with.length === 1 ? "s" : ""} the same files and loses them too.`),
    ];
    const title = model.state === "partial" ? `Delete what is here of ${model.name}?` : `Delete the weights of ${model.name}?`;
    if (!(await confirm({ title, text: h("div", { class: "stack tight" }, told.filter(Boolean)), action: `Free ${bytes(size)}`, danger: true }))) return;
    await act(async () => {
      const force = model.loaded || model.shared_with.length ? "?force=true" : "";
      const freed = await api("DELETE", path(model, "weights") + force);
      toast(`${bytes(freed.freed_bytes + freed.quantized_bytes)} are free again.`, "good");
    });
    rows.get(model.name)?.focus();
  },
};

/** Applies the models' states of the snapshot. @returns {boolean} whether any differed */
function applySnapshot() {
  const states = new Map(snapshot.models.map((model) => [model.name, model.state]));
  const changed = known?.models.some((model) => states.has(model.name) && states.get(model.name) !== model.model_state);
  for (const model of changed ? known.models : []) {
    model.model_state = states.get(model.name) ?? model.model_state;
    model.loaded = model.model_state !== "cold";
  }
  return Boolean(changed);
}

live.on("state", (state) => {
  snapshot = state;
  if (!applySnapshot()) return;
  for (const model of known.models) rows.get(model.name)?.update(model);
});
live.on("status", (status) => status === "open" && failures > 0 && turn());
document.addEventListener("visibilitychange", () => !document.hidden && turn());
turn();
