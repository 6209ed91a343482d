// @ts-check
// While the stream is lost, a page shows the last snapshot as stale: greyed, with its time, and with buttons that do nothing.

import { $, $$, setText } from "./dom.js";
import { clock } from "./format.js";

/** Marks a part as stale or as current. @param {Element} part @param {string} status of the stream @param {any} snapshot the last one, or null */
export function showStale(part, status, snapshot) {
  const stale = status === "lost" && snapshot !== null;
  part.classList.toggle("stale", stale);
  for (const button of $$("button[data-act]", part)) {
    if (stale) button.setAttribute("aria-disabled", "true");
    else button.removeAttribute("aria-disabled");
  }
  $("#as-of").hidden = !stale;
  if (stale) setText($("#as-of"), `As of ${clock(snapshot.time)}`);
}
