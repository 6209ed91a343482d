// @ts-check
// Confirmation dialogs, toasts and placeholders.

import { $, h } from "./dom.js";
import { icon } from "./icons.js";

const STAY = 6000; // milliseconds; an error stays until it is closed

/**
 * Asks in a dialog; true if the action was chosen. Escape, the backdrop and Cancel all mean no. `text` may be an
 * element. A dangerous action is not what Enter does. It is over when it is answered, not with the event that a browser
 * has for that later: what had the focus before has it again, and is for the next key that is pressed.
 * @param {{title: string, text?: any, action?: string, danger?: boolean}} question @returns {Promise<boolean>}
 */
export function confirm({ title, text = "", action = "Continue", danger = false }) {
  return new Promise((resolve) => {
    const answer = (/** @type {boolean} */ sure) => {
      dialog.close();
      dialog.remove();
      resolve(sure);
    };
    const cancel = h("button", { class: "button", type: "button", onclick: () => answer(false) }, "Cancel");
    const go = h("button", { class: `button primary${danger ? " danger" : ""}`, type: "button", onclick: () => answer(true) }, action);
    const dialog = h("dialog", { "aria-labelledby": "dialog-title", "aria-describedby": "dialog-text" },
      h("div", { class: "dialog-body" },
        h("h2", { id: "dialog-title" }, title), h("div", { id: "dialog-text", class: "lead" }, text)),
      h("div", { class: "dialog-actions" }, cancel, go));
    dialog.addEventListener("click", (/** @type {Event} */ event) => event.target === dialog && answer(false));
    dialog.addEventListener("cancel", () => answer(false)); // Escape
    dialog.addEventListener("close", () => answer(false)); // closed by the browser itself
    document.body.append(dialog);
    dialog.showModal();
    (danger ? cancel : go).focus();
  });
}

/** Shows a message for a while, and has it read out. @param {string} text @param {"info" | "good" | "care" | "wrong"} [kind] */
export function toast(text, kind = "info") {
  const close = h("button", { class: "button quiet small icon-only", type: "button", "aria-label": "Dismiss", onclick: () => box.remove() },
    icon("close"));
  const box = h("div", { class: `toast ${kind}` }, h("span", null, text), close);
  const place = $("#toasts");
  place.append(box);
  while (place.children.length > 4) place.firstElementChild.remove();
  if (kind !== "wrong") setTimeout(() => box.remove(), STAY);
}

/** Shows an error's message. @param {any} error */
export function toastError(error) {
  if (error?.name !== "AbortError") toast(error?.title ? `${error.title}: ${error.message}` : String(error?.message ?? error), "wrong");
}

/**
 * What a view shows instead of what it cannot: an icon, a title, a text, and elements such as a button.
 * @param {{icon?: string, title: string, text?: any, wrong?: boolean, boxed?: boolean}} what @param {...any} more
 */
export function state({ icon: name = "buffer", title, text = "", wrong = false, boxed = true }, ...more) {
  return h("div", { class: `state${boxed ? " boxed" : ""}${wrong ? " wrong" : ""}` }, icon(wrong ? "warning" : name), h("h2", null, title),
    text ? h("p", null, text) : null, ...more);
}
