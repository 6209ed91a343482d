// @ts-check
// What is shown while the line to the server is lost is how it was: it is greyed, and its buttons do nothing.

import { $$ } from "./dom.js";

/** Marks a part as stale, or takes that back. @param {Element} part @param {boolean} stale */
export function markStale(part, stale) {
  part.classList.toggle("stale", stale);
  for (const button of $$("button[data-act]", part)) {
    if (stale) button.setAttribute("aria-disabled", "true");
    else button.removeAttribute("aria-disabled");
  }
}
