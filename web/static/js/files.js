// @ts-check
// Lists temporary files and kept quantized copies, polled every few seconds, and removes them on request.

import { api } from "./api.js";
import { confirm, state, toast, toastError } from "./dialog.js";
import { $, h, replace } from "./dom.js";
import { ago, bytes, duration, number } from "./format.js";
import { icon } from "./icons.js";

const EVERY = 5000;
const AGES = [["0", "any age"], ["600", "older than 10 min"], ["3600", "older than 1 h"], ["86400", "older than 1 day"]];

/** A head is a text, or its column's class and a text: `number|Size`. @param {string} id @param {string} label @param {string[]} heads @param {any[]} rows */
function table(id, label, heads, rows) {
  return h("div", { class: "table-scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", { class: "table", id },
      h("thead", null, h("tr", null, heads.map((head) => {
        const [kind, text] = head.includes("|") ? head.split("|") : ["", head];
        return h("th", { scope: "col", class: kind || null }, text);
      }))),
      h("tbody", null, rows)));
}

/** @param {[string, any, string?][]} pairs */
function figures(pairs) {
  return h("dl", { class: "figures" }, pairs.map(([name, value, small]) =>
    h("div", { class: "figure" }, h("dt", null, name), h("dd", null, value, small ? h("small", null, ` ${small}`) : null))));
}

/** Runs a button's action with the button busy. @param {any} button @param {() => Promise<void>} work */
async function busy(button, work) {
  if (button.disabled) return;
  button.disabled = true;
  button.setAttribute("aria-busy", "true");
  try {
    await work();
  } catch (error) {
    toastError(error);
  }
  button.disabled = false;
  button.removeAttribute("aria-busy");
}

/** One list of the view: polls `path` and shows the answer by `render` when it changed. */
class Keep {
  /** @param {string} id @param {string} path @param {(data: any) => any[]} render */
  constructor(id, path, render) {
    this.place = $(id);
    this.path = path;
    this.render = render;
    this.seen = "";
  }

  async refresh() {
    let shown;
    let key;
    try {
      const data = await api("GET", this.path);
      delete data.timestamp;
      shown = () => this.render(data);
      key = JSON.stringify(data);
    } catch (/** @type {any} */ error) {
      key = `${error.status} ${error.message}`;
      if (!error.status && this.seen && !this.seen.startsWith("0 ")) return; // the banner says so; the list stays
      shown = () => [state({ title: error.title, text: error.message, wrong: true },
        h("button", { class: "button", type: "button", onclick: () => this.refresh() }, icon("refresh"), "Try again"))];
    }
    if (key === this.seen || this.held) return;
    this.seen = key;
    const held = this.place.contains(document.activeElement) ? document.activeElement?.id : "";
    replace(this.place, ...shown());
    this.place.removeAttribute("aria-busy");
    if (held) $(`#${held}`)?.focus();
  }

  /** Whether the user is about to act on the list. Then it is not redrawn: a pressed button, and the one that a dialog returns
   * the focus to, must stay. */
  get held() {
    const choosing = document.activeElement?.tagName === "SELECT" && this.place.contains(document.activeElement);
    return choosing || this.place.querySelector(":active") || document.querySelector("dialog[open]");
  }
}

/** @param {any} data */
function temporary(data) {
  if (!data.file_count) {
    return [state({ icon: "check", title: "Nothing lies about", text: h("span", null, "Requests put away what they used. The folder is ",
      h("code", null, data.temp_dir), ".") })];
  }
  const used = data.files.filter((/** @type {any} */ file) => file.in_use).length;
  const rows = [...data.files].sort((a, b) => b.bytes - a.bytes).map((file) => h("tr", null,
    h("td", null, h("span", { class: "file-name" }, file.name), " ", badge(file)),
    h("td", { class: "number" }, bytes(file.bytes)), h("td", { class: "number" }, duration(file.age_seconds))));
  return [
    h("div", { class: "keep-head" },
      figures([["Entries", number(data.file_count)], ["On the disk", bytes(data.total_bytes)], ["In use", number(used)]]),
      cleaner()),
    table("temporary-table", "Temporary files", ["Name", "number|Size", "number|Age"], rows),
    h("p", { class: "hint files-foot" }, "In ", h("code", null, data.temp_dir),
      data.file_count > data.files.length ? `. The first ${number(data.files.length)} are listed.` : "."),
  ];
}

/** The gateway keeps files whose names begin with a dot. @param {any} file */
function badge(file) {
  if (file.in_use) return h("span", { class: "badge accent" }, "in use");
  return h("span", { class: "badge" }, file.name.startsWith(".") ? "stays" : "left over");
}

let age = "0";

function cleaner() {
  const select = h("select", { class: "select", id: "clean-age", "aria-label": "Which files to remove", onchange: () => (age = select.value) },
    AGES.map(([value, text]) => h("option", { value }, text)));
  select.value = age;
  const button = h("button", { class: "button small danger", type: "button", id: "clean" }, icon("trash"), "Clean up…");
  button.addEventListener("click", async () => {
    const which = AGES.find(([value]) => value === age)?.[1];
    const text = `Entries of ${which} that no request uses are removed for good. Those in use stay.`;
    if (!(await confirm({ title: "Remove temporary files?", text: text.replace("of older", "older"), action: "Remove", danger: true }))) return;
    await busy(button, async () => {
      const done = await api("POST", "/admin/cleanup_temp", { older_than: Number(age) });
      toast(done.removed ? `${number(done.removed)} removed, ${bytes(done.freed_bytes)} freed` : "There was nothing to remove", "good");
      await lists.temporary.refresh();
    });
  });
  return h("div", { class: "keep-actions" }, select, button);
}

/** @param {any} data */
function quantized(data) {
  if (!data.entries.length) {
    return [state({ icon: "buffer", title: "No copies are kept", text: data.limit_bytes
      ? "When a model is quantized at its load, a copy is kept here, and its next load is quick."
      : "Keeping copies is switched off: the setting quantized_cache is 0." })];
  }
  const share = data.limit_bytes ? Math.min(1, data.total_bytes / data.limit_bytes) : 1;
  const over = data.total_bytes > data.limit_bytes;
  const rows = [...data.entries].sort((a, b) => b.last_used - a.last_used).map((entry) => h("tr", null,
    h("td", null, h("strong", null, entry.model)), h("td", { class: "number" }, `${entry.quant_bits} bit`), h("td", { class: "number" }, bytes(entry.bytes)),
    h("td", { class: "number" }, ago(entry.last_used)), h("td", { class: "file-name faint wide-only" }, entry.folder)));
  const size = `${bytes(data.total_bytes)} of ${bytes(data.limit_bytes)}`;
  return [
    h("div", { class: "keep-head" },
      h("div", { class: "limit" },
        figures([["Kept", bytes(data.total_bytes), `of at most ${bytes(data.limit_bytes)}`]]),
        h("div", { class: "bar", role: "img", "aria-label": size }, h("div", { class: over && "over", style: { width: `${share * 100}%` } }))),
      h("div", { class: "keep-actions" },
        over ? pruner("prune", "Prune to the limit…", null, `The copies unused for longest go until ${bytes(data.limit_bytes)} are kept.`) : null,
        pruner("prune-all", "Remove all…", 0, "All copies go. The next load of each model quantizes its weights again, which takes longer."))),
    table("quantized-table", "Quantized copies", ["Model", "number|To", "number|Size", "number|Last used", "wide-only|Folder"], rows),
  ];
}

/** @param {string} id @param {string} label @param {number | null} to @param {string} text */
function pruner(id, label, to, text) {
  const button = h("button", { class: "button small danger", type: "button", id }, icon("trash"), label);
  button.addEventListener("click", async () => {
    if (!(await confirm({ title: "Remove quantized copies?", text, action: "Remove", danger: true }))) return;
    await busy(button, async () => {
      const done = await api("POST", "/admin/quantized/prune", to === null ? {} : { to });
      toast(`${number(done.removed.length)} removed, ${bytes(done.freed_bytes)} freed`, "good");
      await lists.quantized.refresh();
    });
  });
  return button;
}

const lists = {
  temporary: new Keep("#temporary", "/admin/temp_status", temporary),
  quantized: new Keep("#quantized", "/admin/quantized", quantized),
};

async function refresh() {
  await Promise.all([lists.temporary.refresh(), lists.quantized.refresh()]);
}

async function keepOn() {
  if (!document.hidden) await refresh();
  setTimeout(keepOn, EVERY);
}

document.addEventListener("visibilitychange", () => !document.hidden && refresh());
keepOn();
