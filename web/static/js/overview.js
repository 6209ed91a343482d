// @ts-check
// The overview: passes the live stream's events to its parts, and shows the last snapshot as stale while the stream is lost.

import { $, replace, setText } from "./dom.js";
import { duration, number } from "./format.js";
import { entryElement } from "./journal.js";
import { live } from "./live.js";
import { cleanup, perform } from "./overview-actions.js";
import * as catalog from "./overview-catalog.js";
import { Plots } from "./overview-plots.js";
import * as queue from "./overview-queue.js";
import * as slots from "./overview-slots.js";
import { Samples } from "./samples.js";
import { cold, mayChange, paletteOf, syncClock } from "./snapshot.js";
import { showStale } from "./stale.js";

const LATEST = 3; // entries of the journal

const samples = new Samples();
const plots = new Plots($("#plots"), samples);
/** @type {any} */
let state = null;
let server = 0; // its start time: a new server numbers its journal anew
/** @type {any[]} */
let entries = [];

function showState(/** @type {any} */ snapshot) {
  state = snapshot;
  syncClock(state);
  $(".slot-skeleton")?.remove();
  if (server !== state.started) [server, entries] = [state.started, entries.filter((entry) => entry.time >= state.started)];
  slots.showSlots($("#slots"), state);
  catalog.showCatalog($("#catalog"), state);
  queue.showQueue($("#queue"), $("#queue-empty"), state);
  $("#catalog-empty").hidden = cold(state).length > 0;
  $("#cleanup").hidden = !mayChange(state);
  setText($("#profile"), state.profile);
  $("#stopping").hidden = !state.stopping;
  showFigures();
  showEntries();
  $("#overview").setAttribute("aria-busy", "false");
  $("#overview").classList.add("known");
}

function showFigures() {
  const loaded = state ? state.models.filter((/** @type {any} */ one) => one.state === "ready").length : null;
  const asked = state?.requests.filter((/** @type {any} */ one) => !one.by_hand) ?? [];
  const running = asked.filter((/** @type {any} */ one) => one.state === "running").length;
  setText($("#figure-loaded"), loaded === null ? "–" : `${loaded} of ${state.models.length}`);
  const unlisted = state ? state.requests_in_all - state.requests.length : 0; // only the oldest requests are listed; the others wait
  // A user's snapshot lists only their own requests: the totals come from the samples.
  const own = state && !mayChange(state);
  setText($("#figure-running"), !state ? "–" : own ? samples.latest("running") ?? "–" : running);
  setText($("#figure-waiting"), !state ? "–" : own ? samples.latest("waiting") ?? "–" : asked.length - running + unlisted);
  const rate = samples.latest("tokens_per_second");
  setText($("#figure-tokens"), rate === null ? "–" : number(rate, rate < 100 && rate % 1 ? 1 : 0));
  const first = samples.over("first_token_seconds", "mean", samples.end - 60, samples.end);
  setText($("#figure-first"), first === null ? "–" : duration(first));
  setText($("#figure-swaps"), samples.times.length ? number(samples.over("swaps", "sum", samples.end - 600, samples.end)) : "–");
}

function showEntries() {
  const shown = entries.slice(-LATEST).reverse();
  replace($("#latest"), shown.map((entry) => entryElement(entry, paletteOf(state, entry.model))));
  $("#latest-empty").hidden = shown.length > 0;
}

function addEntry(/** @type {any} */ entry) {
  entries = [...entries, entry].slice(-50);
  if (["evicted", "expired", "unloaded", "cleanup", "out_of_memory", "crash"].includes(entry.kind) && Date.now() / 1000 - entry.time < 30) slots.showLeaving($("#slots"), entry);
  if (state) showEntries();
}

function showStatus(/** @type {string} */ status) {
  showStale($("#overview"), status, state);
  const unknown = status === "lost" && state === null;
  $("#no-state").hidden = !unknown;
  $("#overview").classList.toggle("unknown", unknown);
}

$("#cleanup").addEventListener("click", (/** @type {any} */ event) => perform(event.currentTarget, () => cleanup(state)));
live.on("status", showStatus);
live.on("history", (history) => {
  samples.begin(history);
  plots.show();
  showFigures();
});
live.on("sample", (sample) => {
  samples.add(sample);
  plots.show();
  showFigures();
});
live.on("state", showState);
live.on("journal", addEntry);
setInterval(() => {
  if (!state || live.status !== "open") return;
  slots.tick($("#slots"));
  catalog.tick($("#catalog"));
  queue.tick($("#queue"));
}, 1000);
