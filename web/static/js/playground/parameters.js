// @ts-check
// The form of sampling parameters. An empty field stands for the model's default and is not sent.

import { h } from "../dom.js";

/** @typedef {import('./conversation.js').Model} Model */
/** @typedef {{name: string, label: string, kind: 'number'|'whole'|'text'|'word'|'switch', min?: number, max?: number,
 *   step?: number, from?: string, value?: any, hint?: string, slider?: boolean, off?: number}} Field */

/** @type {{title: string, open: boolean, fields: Field[]}[]} */
const GROUPS = [
  { title: "Sampling", open: true, fields: [
    { name: "temperature", label: "Temperature", kind: "number", min: 0, max: 2, step: 0.05, slider: true, hint: "0 always takes the likeliest token" },
    { name: "top_p", label: "Top p", kind: "number", min: 0.01, max: 1, step: 0.01, slider: true, hint: "1 is off", off: 1 },
    { name: "max_tokens", label: "Max tokens", kind: "whole", min: 1, from: "max_new_tokens", hint: "The most the answer may have" },
    { name: "seed", label: "Seed", kind: "whole", min: 0, max: 4294967295, hint: "The same seed draws the same" },
    { name: "stop", label: "Stop", kind: "text", hint: "Ends the answer; one to a line" },
  ] },
  { title: "More sampling", open: false, fields: [
    { name: "repetition_penalty", label: "Repetition penalty", kind: "number", min: 0.01, max: 2, step: 0.01, hint: "1 is off", off: 1 },
    { name: "presence_penalty", label: "Presence penalty", kind: "number", min: -2, max: 2, step: 0.1, hint: "0 is off", off: 0 },
    { name: "frequency_penalty", label: "Frequency penalty", kind: "number", min: -2, max: 2, step: 0.1, hint: "0 is off", off: 0 },
    { name: "top_k", label: "Top k", kind: "whole", min: 0, max: 1000000, hint: "0 is off", off: 0 },
    { name: "min_p", label: "Min p", kind: "number", min: 0, max: 1, step: 0.01, hint: "0 is off", off: 0 },
    { name: "min_tokens", label: "Min tokens", kind: "whole", min: 0, hint: "The answer does not end before", off: 0 },
  ] },
  { title: "Video and speech", open: true, fields: [
    { name: "frames", label: "Frames", kind: "whole", min: 1, hint: "Of a video, over its whole length" },
    { name: "fps", label: "Frames a second", kind: "number", min: 0.01, max: 60, step: 0.01, hint: "Instead of a number of frames" },
    { name: "use_audio_in_video", label: "Listen to a video’s sound", kind: "switch" },
    { name: "speech", label: "Speak the answer", kind: "switch" },
  ] },
  { title: "Shape and serving", open: false, fields: [
    { name: "response_format", label: "Answer in JSON", kind: "switch", value: { type: "json_object" } },
    { name: "keep_alive", label: "Keep alive", kind: "word", hint: "How long the model stays loaded after it: 5m; 0 unloads at once, −1 never" },
    { name: "timeout", label: "Timeout", kind: "word", hint: "How long the answer may take, waiting included: 30s" },
  ] },
];

export class Parameters {
  /**
   * @param {HTMLElement} place
   * @param {Record<string, string>} values what was changed before, as text
   * @param {(values: Record<string, string>) => void} changed
   */
  constructor(place, values, changed) {
    /** @type {Map<string, {field: Field, row: HTMLElement, input: any, slider: any}>} */
    this.rows = new Map();
    this.changed = changed;
    /** @type {{box: HTMLElement, names: string[]}[]} */
    this.boxes = [];
    for (const { title, open, fields } of GROUPS) {
      const names = fields.map((field) => field.name);
      const used = names.some((name) => values[name] !== undefined);
      const box = h("details", { class: "pg-group", open: open || used }, h("summary", {}, title),
        ...fields.map((field) => this.row(field, values[field.name] ?? "")));
      this.boxes.push({ box, names });
      place.append(box);
    }
    this.refresh();
  }

  /** @param {Field} field @param {string} value */
  row(field, value) {
    const id = `parameter-${field.name}`;
    const hint = field.hint ? h("p", { class: "pg-hint", id: `${id}-hint` }, field.hint) : null;
    const about = hint ? { "aria-describedby": `${id}-hint` } : {};
    /** @type {any} */
    let input;
    if (field.kind === "switch") {
      input = h("input", { type: "checkbox", id, ...about });
      input.checked = value === "true";
    } else if (field.kind === "word") {
      input = h("input", { type: "text", id, pattern: "[\\-\u2212]?[0-9.]+ *(ms|s|m|h|d)?", title: "Seconds, or a text such as 5m", ...about });
      input.value = value;
    } else if (field.kind === "text") {
      input = h("textarea", { id, rows: "1", ...about });
      input.value = value;
    } else {
      input = h("input", { type: "number", id, step: String(field.kind === "whole" ? 1 : "any"), inputmode: "decimal", ...about });
      for (const edge of /** @type {const} */ (["min", "max"])) if (field[edge] !== undefined) input[edge] = String(field[edge]);
      input.value = value;
    }
    const slider = field.slider
      ? /** @type {any} */ (h("input", { type: "range", min: String(field.min), max: String(field.max), step: String(field.step), "aria-label": `${field.label}, slider` })) : null;
    const reset = h("button", { type: "button", class: "pg-reset", "aria-label": `Reset ${field.label} to the model’s own` }, "Reset");
    const label = h("label", { for: id }, field.label);
    const row = h("div", { class: `pg-parameter pg-${field.kind}` }, label, reset, slider, input, hint);
    this.rows.set(field.name, { field, row, input, slider });
    input.addEventListener("input", () => this.update());
    slider?.addEventListener("input", () => { input.value = slider.value; this.update(); });
    reset.addEventListener("click", () => { this.clear(field.name); input.focus(); });
    return row;
  }

  /** @param {string} [name] one of them, or all */
  clear(name) {
    for (const [own, { field, input }] of this.rows) {
      if (name && name !== own) continue;
      if (field.kind === "switch") input.checked = false;
      else input.value = "";
    }
    this.update();
  }

  update() {
    this.refresh();
    this.changed(this.texts());
  }

  /** The changed values as text. @returns {Record<string, string>} */
  texts() {
    /** @type {Record<string, string>} */
    const found = {};
    for (const [name, { field, input }] of this.rows) {
      const value = field.kind === "switch" ? (input.checked ? "true" : "") : input.value;
      if (value.trim() !== "") found[name] = value;
    }
    return found;
  }

  /** The changed values as they are sent, without fields that no chosen model has. @returns {Record<string, any>} */
  values() {
    /** @type {Record<string, any>} */
    const found = {};
    for (const [name, text] of Object.entries(this.texts())) {
      const { field, row } = /** @type {any} */ (this.rows.get(name));
      if (row.hidden) continue;
      if (field.kind === "switch") found[name] = field.value ?? true;
      else if (field.kind === "word") found[name] = /^[-\u2212]?[0-9.]+$/.test(text.trim()) ? Number(text.trim().replace("\u2212", "-")) : text.trim();
      else if (field.kind === "text") found[name] = text.split("\n").filter((line) => line !== "");
      else found[name] = Number(text);
    }
    return found;
  }

  /** Return the first invalid field, or null. */
  wrong() {
    for (const { row, input } of this.rows.values()) if (!row.hidden && !input.checkValidity()) return input;
    return null;
  }

  /**
   * Show the fields that one of the models honours, with the first one's defaults.
   * @param {Model[]} models
   * @param {any} limits
   */
  fit(models, limits) {
    for (const [name, { field, row, input }] of this.rows) {
      row.hidden = !models.some((model) => model.parameters.includes(name));
      const own = models[0]?.defaults[field.from ?? name] ?? field.off;
      if (field.kind === "number" || field.kind === "whole") input.placeholder = own === undefined || own === null ? "not set" : String(own);
      if (field.name === "max_tokens" || field.name === "min_tokens") input.max = limits.max_new_tokens ?? "";
      if (field.name === "frames") input.max = limits.max_video_frames ?? "";
    }
    for (const { box, names } of this.boxes) box.hidden = names.every((name) => this.rows.get(name)?.row.hidden);
    this.refresh();
  }

  refresh() {
    for (const { field, row, input, slider } of this.rows.values()) {
      const set = field.kind === "switch" ? input.checked : input.value.trim() !== "";
      row.classList.toggle("is-set", set);
      if (slider) slider.value = set ? input.value : input.placeholder || String(field.off ?? 0);
    }
  }
}
