// @ts-check
// One model of the catalog: its facts, its files on disk, its memory and its actions.
//
// A row is made once and updated in place, so that focus and opened details stay.

import { h, replace, setText } from "./dom.js";
import { bytes, duration, percent } from "./format.js";
import { icon } from "./icons.js";

const INPUTS = { text: "text", image: "images", audio: "sound", video: "video" };
const ORDER = ["first", "second", "third", "fourth", "fifth"];
const PARTS = [
  ["weights", "Weights"], ["overhead", "Process or CUDA context"], ["cache", "Cache"], ["answering", "While it answers"],
  ["later", "Read at first need"],
];

/** Whether a download waits or runs. @param {any} download */
export const isActive = (download) => download !== null && download !== undefined && ["queued", "running"].includes(download.state);

export class Row {
  /** @param {any} model @param {string} colour @param {Record<string, (model: any) => void>} actions */
  constructor(model, colour, actions) {
    this._actions = actions;
    this._model = model;
    this._drawn = new Map();
    this._name = h("h3", { tabindex: "-1", id: `model-${model.name}` }, model.name);
    this._states = h("span", { class: "row" });
    this._disk = h("div", { class: "model-disk" });
    this._memory = h("div", { class: "model-memory" });
    this._buttons = h("div", { class: "model-actions", role: "group", "aria-label": `What to do with ${model.name}` });
    this._problem = h("p", { class: "notice danger model-problem", role: "alert", hidden: true });
    this._more = h("div", { class: "model-parts", id: `details-${model.name}`, hidden: true });
    this._toggle = h("button", { class: "model-toggle", type: "button", "aria-expanded": "false", "aria-controls": `details-${model.name}`, onclick: () => this._open() },
      icon("chevron"), "Details", h("span", { class: "visually-hidden" }, ` of ${model.name}`));
    this._bar = null;
    this.element = h("li", { class: "model", "aria-labelledby": `model-${model.name}`, style: { "--own": colour } },
      h("div", { class: "model-id" },
        h("div", { class: "model-title" }, h("span", { class: "dot", "aria-hidden": "true" }), this._name, this._states),
        model.label !== model.name && h("p", { class: "model-label" }, model.label),
        h("p", { class: "model-facts hint" }, facts(model), this._toggle)),
      this._disk, this._memory, this._buttons, this._problem, this._more);
  }

  /** Draws the parts that changed. @param {any} model */
  update(model) {
    this._model = model;
    const active = isActive(model.download);
    this.element.classList.toggle("busy", active);
    this._part("states", [model.model_state], () => replace(this._states, residence(model.model_state)));
    this._part("disk", [model.state, model.bytes_here, model.bytes_total, model.reason, active, model.download?.state], () => this._drawDisk(active));
    if (active) this._drawProgress(model.download);
    this._part("memory", [model.fit], () => replace(this._memory, memory(model.fit)));
    this._part("buttons", [model.state, active, model.download?.state, model.deletable_bytes > 0, model.not_deletable], () => this._drawButtons(active));
    this._part("problem", [model.download?.state, model.download?.error], () => {
      const error = model.download?.state === "failed" ? model.download.error : null;
      this._problem.hidden = !error;
      replace(this._problem, error && icon("warning"), error && h("span", null, error));
    });
    this._part("more", [model.fit, model.reason, model.path, model.kept_bytes, model.shared_with, model.not_deletable, model.state], () => replace(this._more, details(model)));
  }

  /** Focuses the model's name, after the focused button is gone. */
  focus() {
    this._name.focus();
  }

  _open() {
    this._more.hidden = !this._more.hidden;
    this._toggle.setAttribute("aria-expanded", String(!this._more.hidden));
  }

  /** Calls `draw` if the values it depends on changed. */
  _part(name, on, draw) {
    const now = JSON.stringify(on);
    if (this._drawn.get(name) === now) return;
    this._drawn.set(name, now);
    draw();
  }

  _drawDisk(active) {
    const model = this._model;
    this._bar = active ? progressBar(model.name) : null;
    if (this._bar) replace(this._disk, h("p", { class: "label" }, "On disk"), this._bar.element);
    else replace(this._disk, h("p", { class: "label" }, "On disk"), onDisk(model));
  }

  _drawProgress(download) {
    const bar = this._bar;
    if (!bar) return;
    const share = download.total ? download.done / download.total : 0;
    bar.fill.style.width = `${(share * 100).toFixed(1)}%`;
    const known = download.total !== null;
    bar.track.classList.toggle("unsure", !known && download.state === "running");
    bar.track.setAttribute("aria-valuenow", String(Math.round(share * 100)));
    if (download.state === "queued") {
      setText(bar.head, `Waits: ${ORDER[download.position - 1] ?? `${download.position}th`} in line`);
      setText(bar.foot, "Downloads run one after the other");
      return;
    }
    setText(bar.head, known ? `${bytes(download.done)} of ${bytes(download.total)}` : "Asking the hub");
    setText(bar.share, known ? percent(share) : "");
    const checking = download.files.some((file) => file.stage === "checking") && !download.bytes_per_second;
    const speed = checking ? "checking what is here" : `${bytes(download.bytes_per_second)}/s`;
    const left = download.seconds_left === null ? "" : ` · ${duration(Math.max(1, Math.ceil(download.seconds_left)))} left`;
    setText(bar.foot, known ? speed + left : "Which files, and how large");
  }

  _drawButtons(active) {
    const model = this._model;
    const had = this._buttons.contains(document.activeElement);
    const button = (action, name, words, kind) => h("button", {
      class: `button small ${kind}`, type: "button",
      onclick: (event) => {
        const pressed = event.currentTarget; // its icon may be the target
        pressed.setAttribute("aria-busy", String(action !== "free"));
        Promise.resolve(this._actions[action](this._model)).finally(() => pressed.removeAttribute("aria-busy"));
      },
    }, icon(name), words, h("span", { class: "visually-hidden" }, ` ${model.name}`));
    const made = [];
    if (active) made.push(button("cancel", "close", "Cancel", ""));
    else if (model.state === "absent") made.push(button("download", "download", model.download?.state === "failed" ? "Try again" : "Download", "primary"));
    else if (model.state === "partial") made.push(button("download", "download", "Resume", "primary"));
    else if (model.state === "complete") made.push(button("download", "refresh", "Check for updates", "quiet"));
    if (!active && model.state !== "absent" && model.deletable_bytes > 0 && !model.not_deletable) made.push(button("free", "trash", "Free disk…", "quiet"));
    replace(this._buttons, made);
    this._buttons.hidden = made.length === 0;
    if (had) (made[0] ?? this._name).focus();
  }
}

function facts(model) {
  const bits = model.engine === "llama_cpp" ? "GGUF" : `${model.fit.quant_bits}-bit`;
  const takes = model.inputs.map((one) => INPUTS[one] ?? one).join(", ");
  const also = model.aliases.length ? ` · also ${model.aliases.join(", ")}` : "";
  return `${bits} · takes ${takes}${also}`;
}

function residence(name) {
  const words = { ready: ["go", "loaded"], loading: ["accent", "loading"], draining: ["care", "leaving"] }[name];
  return words ? h("span", { class: `badge ${words[0]}` }, words[1]) : null;
}

function onDisk(model) {
  const line = (lamp, words, size) => h("p", { class: "model-line" },
    h("span", { class: "model-word" }, h("span", { class: `lamp ${lamp}`, "aria-hidden": "true" }), h("strong", null, words)), size && h("span", { class: "model-size" }, size));
  const hint = (text) => h("p", { class: "hint" }, text);
  switch (model.state) {
    case "complete": return [line("go", "Downloaded", bytes(model.bytes_here)), hint(model.source.repo)];
    case "local": return [line("go", "Local", bytes(model.bytes_here)), hint(model.source.package ? `from the package ${model.source.package}` : "from a folder of its own")];
    case "missing": return [line("halt", "Missing", ""), hint(sentence(model.reason))];
    case "absent": return [line("none", "Not here", ""), hint(model.source.repo)];
    default: return [
      line("care", "Half here", model.bytes_total ? `${bytes(model.bytes_here)} of ${bytes(model.bytes_total)}` : bytes(model.bytes_here)),
      model.bytes_total && h("div", { class: "bar", "aria-hidden": "true" }, h("div", { style: { width: `${Math.min(100, (model.bytes_here / model.bytes_total) * 100)}%` } })),
      hint(sentence(model.reason)),
    ];
  }
}

function progressBar(name) {
  const fill = h("div", null);
  const track = h("div", { class: "bar", role: "progressbar", "aria-label": `Download of ${name}`, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": 0 }, fill);
  const head = h("strong", null);
  const share = h("span", { class: "model-size" });
  const foot = h("p", { class: "hint" });
  return { element: h("div", { class: "model-progress" }, h("p", { class: "model-line" }, head, share), track, foot), fill, track, head, share, foot };
}

/** A model's memory as a share of its slot's budget. */
function memory(fit) {
  const label = h("p", { class: "label" }, `In memory, on ${fit.slot}`);
  if (fit.parts === null) return [label, h("p", { class: "hint" }, "Known when its weights are here")];
  const share = fit.budget ? fit.bytes / fit.budget : Infinity;
  return [
    label,
    h("p", { class: "model-line" }, h("span", null, !fit.measured && h("span", { class: "about" }, "about "), h("strong", null, bytes(fit.bytes))),
      fit.fits ? h("span", { class: "model-size" }, percent(share)) : h("span", { class: "badge halt" }, "does not fit")),
    h("div", { class: `bar own${fit.fits ? "" : " over"}`, "aria-hidden": "true" }, h("div", { style: { width: `${Math.min(100, Math.max(1, share * 100))}%` } })),
    h("p", { class: "hint" }, `of the slot's ${bytes(fit.budget)}${fit.measured ? "" : ", predicted"}`),
  ];
}

function details(model) {
  const { fit, source } = model;
  const pairs = [
    ["Family", `${model.family}, by ${model.engine}`],
    source.repo && ["From", `${source.repo} at ${source.revision}${source.file ? `: ${source.file}` : ""}`],
    ["Lies in", model.path],
    ["State", model.state === "local" ? "It is there, and yours to change or delete: no download put it there." : sentence(model.reason)],
    fit.quant_bits !== model.quant_bits && ["Quantization", `${fit.quant_bits} bits here, ${model.quant_bits} in the catalog`],
    model.kept_bytes > 0 && ["Quantized weights kept", bytes(model.kept_bytes)],
    model.shared_with.length > 0 && ["Same files as", model.shared_with.join(", ")],
    model.state !== "local" && model.not_deletable && ["Cannot be deleted here", sentence(model.not_deletable)],
  ].filter(Boolean);
  return [
    fit.parts && h("div", null, h("h4", null, fit.measured ? "Memory, as a load was measured" : "Memory, as predicted"),
      h("table", { class: "parts" }, h("caption", { class: "visually-hidden" }, `What the memory of ${model.name} consists of`),
        h("tbody", null, PARTS.filter(([key]) => fit.parts[key] > 0).map(([key, words]) => h("tr", null,
          h("th", { scope: "row" }, words, key === "cache" && h("span", { class: "hint" }, ` of ${fit.parts.cache_tokens} tokens`)),
          h("td", { class: "parts-bar" }, h("div", { style: { width: `${Math.max(1, Math.min(100, (fit.parts[key] / fit.bytes) * 100))}%` } })),
          h("td", { class: "number" }, bytes(fit.parts[key])))),
        h("tr", { class: "sum" }, h("th", { scope: "row" }, "Set aside for it"), h("td", null), h("td", { class: "number" }, bytes(fit.bytes)))))),
    h("dl", { class: "pairs" }, pairs.map(([term, words]) => h("div", null, h("dt", null, term), h("dd", null, words)))),
  ];
}

/** Makes a text a sentence; a model's name at its beginning stays lower case. @param {string} text */
function sentence(text) {
  const said = /^[a-z]+[ ,]/.test(text ?? "") ? text[0].toUpperCase() + text.slice(1) : text ?? "";
  return said && !/[.!?…]$/.test(said) ? `${said}.` : said;
}
