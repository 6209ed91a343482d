// @ts-check
// The dialog that shows a request as curl and as Python. snippets.js makes the texts.

import { $, h } from "../dom.js";
import { mediaOf } from "./conversation.js";
import { release } from "./media.js";
import { curl, python } from "./snippets.js";

const MADE = { curl, python };

/** @type {((request: any) => void)|null} */
let shown = null;

/** Show a request as code. @param {any} request of `requestOf` */
export function codeDialog(request) {
  shown ??= wired();
  shown(request);
}

/** Wire the dialog; returns the function that opens it for a request. */
function wired() {
  const dialog = /** @type {HTMLDialogElement} */ ($("#code-dialog"));
  const listing = $("#code-text");
  const streamed = /** @type {HTMLInputElement} */ ($("#code-stream"));
  const files = $("#code-files");
  const tabs = /** @type {HTMLButtonElement[]} */ ([...dialog.querySelectorAll("[role=tab]")]);
  /** @type {any} */
  let request = null;

  const name = () => /** @type {'curl'|'python'} */ (tabs.find((tab) => tab.getAttribute("aria-selected") === "true")?.dataset.code ?? "curl");
  const show = () => {
    const keyed = document.body.dataset.keyed === "true";
    listing.textContent = MADE[name()](request, { origin: location.origin, keyed, stream: streamed.checked });
    $("#code-panel").setAttribute("aria-labelledby", `code-tab-${name()}`);
    $("#code-key").hidden = !keyed;
  };
  const choose = (/** @type {HTMLButtonElement} */ tab) => {
    for (const one of tabs) {
      one.setAttribute("aria-selected", String(one === tab));
      one.tabIndex = one === tab ? 0 : -1;
    }
    show();
  };
  tabs.forEach((tab, place) => {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
      const other = tabs[(place + 1) % tabs.length];
      choose(other);
      other.focus();
    });
  });
  streamed.addEventListener("change", show);
  dialog.addEventListener("close", () => { release(files); files.replaceChildren(); });
  $("#code-close").addEventListener("click", () => dialog.close());
  $("#code-copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(listing.textContent ?? "");
    $("#code-copied").textContent = "Copied.";
    setTimeout(() => { $("#code-copied").textContent = ""; }, 2000);
  });

  return (/** @type {any} */ wanted) => {
    request = wanted;
    const media = [...new Set(mediaOf(request))];
    files.hidden = !media.length;
    files.replaceChildren("It reads ", ...media.flatMap((medium, place) => [place ? ", " : "", saved(medium)]),
      " from the folder it is run in.");
    show();
    dialog.showModal();
  };
}

/** A medium's name; a recording gets a link to save it under this name. @param {import('./conversation.js').Medium} medium */
function saved(medium) {
  if (!medium.made) return h("code", {}, medium.name);
  const link = h("a", { href: URL.createObjectURL(medium.blob), download: medium.name }, `${medium.name} (save it)`);
  return link;
}
