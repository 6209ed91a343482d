// @ts-check
// The events: the journal, filtered by kind and model. The address holds the filter.

import { api } from "./api.js";
import { state as emptyState, toastError } from "./dialog.js";
import { $, $$, h, replace, setText } from "./dom.js";
import { GROUPS, entryElement, wordOf } from "./journal.js";
import { live } from "./live.js";
import { showStale } from "./stale.js";
import { paletteOf } from "./snapshot.js";

const PAGE = 150;
const KEPT = 1000;
const ALL = "Everything";

/** @type {Map<number, any>} */
let entries = new Map();
let server = 0;
let shown = PAGE;
let told = 0; // the last entry that was there when the page was opened
/** @type {any} */
let state = null;
const chosen = { group: ALL, kind: "", model: "", ...Object.fromEntries(new URLSearchParams(location.search)) };

function makeFilters() {
  const kinds = [...new Set(GROUPS.flatMap(([, found]) => found))];
  if (![ALL, ...GROUPS.map(([name]) => name)].includes(chosen.group)) chosen.group = ALL;
  if (!kinds.includes(chosen.kind)) chosen.kind = "";
  replace($("#groups"), [ALL, ...GROUPS.map(([name]) => name)].map((name) =>
    h("label", { class: "chip" }, h("input", { type: "radio", name: "group", value: name, checked: name === chosen.group }), name)));
  $("#kind").append(...kinds.map((kind) => h("option", { value: kind, selected: kind === chosen.kind }, wordOf(kind))));
  $("#filters").addEventListener("change", choose);
  $("#filters").addEventListener("submit", (/** @type {Event} */ event) => event.preventDefault());
  $("#more").addEventListener("click", () => {
    shown += PAGE;
    show();
  });
}

function showModels() {
  const select = $("#model");
  const names = state.models.map((/** @type {any} */ model) => model.name);
  if (select.options.length - 1 === names.length) return;
  if (!names.includes(chosen.model)) chosen.model = "";
  replace(select, h("option", { value: "" }, "every model"), names.map((/** @type {string} */ name) => h("option", { value: name, selected: name === chosen.model }, name)));
}

function choose() {
  chosen.group = $("#groups input:checked").value;
  chosen.kind = $("#kind").value;
  chosen.model = $("#model").value;
  const query = new URLSearchParams(Object.entries(chosen).filter(([, value]) => value && value !== ALL));
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
  shown = PAGE;
  show();
}

function wanted(/** @type {any} */ entry) {
  const group = GROUPS.find(([name]) => name === chosen.group);
  return (!group || group[1].includes(entry.kind)) && (!chosen.kind || entry.kind === chosen.kind)
    && (!chosen.model || entry.model === chosen.model || entry.detail.newcomer === chosen.model
      || (entry.detail.models ?? []).includes(chosen.model));
}

function show() {
  const found = [...entries.values()].sort((a, b) => b.id - a.id).filter(wanted);
  const list = [];
  let day = "";
  for (const entry of found.slice(0, shown)) {
    const now = new Date(entry.time * 1000).toDateString();
    if (now !== day && (day || now !== new Date().toDateString())) list.push(h("li", { class: "day" }, new Date(entry.time * 1000).toLocaleDateString(undefined, { weekday: "long", year: "numeric", month: "long", day: "numeric" })));
    day = now;
    const element = entryElement(entry, paletteOf(state, entry.model), true);
    if (entry.id > told) element.classList.add("fresh");
    list.push(element);
  }
  replace($("#list"), list);
  $("#list-card").hidden = !found.length;
  $("#more").hidden = found.length <= shown;
  setText($("#count"), found.length === entries.size ? `${found.length} events` : `${found.length} of ${entries.size} events`);
  const nothing = $("#nothing");
  nothing.hidden = found.length > 0;
  if (!found.length) {
    const filtered = entries.size > 0;
    replace(nothing, emptyState({ icon: "buffer", title: filtered ? "No such event" : "Nothing has happened yet", text: filtered
      ? "None of the events that are kept is of this kind and about this model." : "Loads, evictions and failures will be told here, with their reasons." },
    filtered ? h("button", { class: "button", type: "button", onclick: clear }, "Show everything") : null));
  }
}

function clear() {
  $$("#groups input")[0].checked = true;
  $("#kind").value = "";
  $("#model").value = "";
  choose();
}

function take(/** @type {any[]} */ more) {
  for (const entry of more) entries.set(entry.id, entry);
  if (entries.size > KEPT) entries = new Map([...entries].sort(([a], [b]) => a - b).slice(-KEPT));
}

async function fetchAll() {
  try {
    const { data, last, started } = await api("GET", "/admin/events");
    if (server !== started) [entries, server] = [new Map(), started];
    take(data);
    told = Math.max(told, last);
    $("#skeleton")?.remove();
    $("#events").setAttribute("aria-busy", "false");
    show();
  } catch (error) {
    toastError(error);
  }
}

makeFilters();
let fetched = fetchAll();
live.on("state", (now) => {
  const first = state === null;
  state = now;
  showModels();
  if (server && server !== state.started) [told, fetched] = [0, fetchAll()]; // a new server has a new journal
  else if (first) fetched.then(show);
});
live.on("journal", async (entry) => {
  await fetched;
  if (entries.has(entry.id) && entries.get(entry.id).time === entry.time) return;
  take([entry]);
  show();
});
live.on("status", (status) => showStale($("#events"), status, state));
