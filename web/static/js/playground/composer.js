// @ts-check
// The composer: a question's text, and the files dropped, pasted, chosen or recorded for it. It refuses files that a model does
// not take before anything is sent.

import { $, h, replace } from "../dom.js";
import { accepted, choice, kindOf, limitsSaid, mediumOf, preview, release, taken, tooMuch, words } from "./media.js";

/** @typedef {import('./conversation.js').Medium} Medium */
/** @typedef {import('./conversation.js').Model} Model */
/** @typedef {{chosen: () => Model[], all: () => Model[], limits: () => any, switchTo: (model: Model, kinds: string[]) => void,
 *   send: () => void, drafted: (text: string) => void}} Page */

/** Loads the part for microphone and camera on first use. */
const recording = () => import("./record.js");

/** Whether the browser can record: over https or on localhost only. */
const canRecord = () => Boolean(navigator.mediaDevices && window.MediaRecorder);

/** The sentence about a model without weights; an administrator gets a link to download them. @param {Model} model */
const absent = (model) => h("p", null, `The weights of ${model.id} are not here yet. `,
  document.body.dataset.role === "user" ? null : h("a", { href: "/ui/models" }, "Download them"));

/** @param {string} text */
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

export class Composer {
  /** @param {Page} page @param {string} draft */
  constructor(page, draft) {
    this.page = page;
    /** @type {Medium[]} */
    this.media = [];
    /** Files declined since the last message. @type {{blob: Blob, kind: import('./conversation.js').Kind, name: string, made: boolean}[]} */
    this.declined = [];
    this.form = $("#composer");
    /** @type {HTMLTextAreaElement} */
    this.draft = $("#draft");
    this.picker = $("#file");
    this.refused = $("#refused");
    this.draft.value = draft;
    this.draft.addEventListener("input", () => { page.drafted(this.draft.value); this.grow(); });
    this.draft.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); page.send(); }
    });
    this.form.addEventListener("submit", (/** @type {Event} */ event) => { event.preventDefault(); page.send(); });
    $("#attach").addEventListener("click", () => this.picker.click());
    this.picker.addEventListener("change", () => { void this.add([...this.picker.files]); this.picker.value = ""; });
    this.form.addEventListener("paste", (/** @type {ClipboardEvent} */ event) => void this.pasted(event));
    $("#record").addEventListener("click", () => this.guarded(() => this.record()));
    $("#camera").addEventListener("click", () => this.guarded(() => this.film()));
    this.catchDrops($("#playground"));
    this.grow();
  }

  /** @param {HTMLElement} area */
  catchDrops(area) {
    let inside = 0;
    const files = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
    const over = (/** @type {number} */ step) => { inside = Math.max(0, inside + step); area.classList.toggle("is-over", inside > 0); };
    area.addEventListener("dragenter", (event) => { if (files(event)) { event.preventDefault(); over(1); } });
    area.addEventListener("dragleave", (event) => { if (files(event)) over(-1); });
    area.addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
    area.addEventListener("drop", (event) => {
      if (!files(event)) return;
      event.preventDefault();
      over(-inside);
      void this.add([...(event.dataTransfer?.files ?? [])]);
    });
  }

  /** @param {ClipboardEvent} event */
  async pasted(event) {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    const { nameOf } = await recording();
    const named = (/** @type {File} */ file) => (file.name === "image.png" ? new File([file], nameOf("pasted", file.type), { type: file.type }) : file);
    void this.add(files.map(named), true);
  }

  /** @param {() => Promise<void>} act */
  async guarded(act) {
    try {
      await act();
    } catch (error) {
      this.refuse([/** @type {any} */ (error).message]);
    }
  }

  async record() {
    const { microphone, nameOf } = await recording();
    const most = Math.min(this.page.limits().max_audio_seconds ?? 600, 600);
    const blob = await microphone($("#recording"), most);
    this.quiet();
    if (blob) await this.attach(blob, "audio", nameOf("recording", blob.type));
    this.draft.focus();
  }

  async film() {
    const { camera, nameOf } = await recording();
    const kinds = taken(this.page.chosen());
    const most = Math.min(this.page.limits().max_video_seconds ?? 600, 600);
    const made = await camera(kinds.includes("image"), kinds.includes("video"), kinds.includes("audio"), most);
    this.quiet();
    if (made) await this.attach(made.blob, made.kind, nameOf(made.kind === "image" ? "photo" : "video", made.blob.type));
    this.draft.focus();
  }

  /** Attach the files that can be sent. @param {File[]} files @param {boolean} [made] whether they were recorded here */
  async add(files, made = false) {
    this.quiet();
    for (const file of files) {
      const kind = kindOf(file);
      if (!kind) {
        this.also(h("p", null, `${file.name} is neither an image nor a sound nor a video.`));
      } else {
        await this.attach(file, kind, file.name, made);
      }
    }
  }

  /** @param {Blob} blob @param {import('./conversation.js').Kind} kind @param {string} name @param {boolean} [made] */
  async attach(blob, kind, name, made = true) {
    if (!taken(this.page.chosen()).includes(kind)) { this.decline(blob, kind, name, made); return; }
    const medium = await mediumOf(blob, kind, this.apart(name), made);
    const reason = tooMuch(medium, this.media, this.page.limits());
    if (reason) { this.also(h("p", null, reason)); return; }
    this.media.push(medium);
    this.show();
  }

  /** Return a name that no attached file has: the code shown reads files by name. @param {string} name */
  apart(name) {
    const names = new Set(this.media.map((medium) => medium.name));
    const dot = name.lastIndexOf(".") > 0 ? name.lastIndexOf(".") : name.length;
    let free = name;
    for (let number = 2; names.has(free); number += 1) free = `${name.slice(0, dot)}-${number}${name.slice(dot)}`;
    return free;
  }

  /** Say which media the model does not take, and which models take them. @param {Blob} blob @param {import('./conversation.js').Kind} kind @param {string} name @param {boolean} made */
  decline(blob, kind, name, made) {
    this.declined.push({ blob, kind, name, made });
    const all = [...this.declined];
    const kinds = [...new Set(all.map((one) => one.kind))];
    const takesAll = (/** @type {Model} */ model) => kinds.every((one) => model.inputs.includes(one));
    const deaf = this.page.chosen().filter((model) => !takesAll(model));
    const able = this.page.all().filter((model) => takesAll(model) && model.downloaded);
    const who = deaf.map((model) => model.id).join(" and ") || "The model";
    const takes = taken(deaf);
    const offers = able.map((model) => h("button", {
      type: "button", class: "button small",
      onclick: async () => {
        this.quiet();
        this.page.switchTo(model, kinds);
        for (const one of all) await this.attach(one.blob, one.kind, one.name, one.made);
      },
    }, `Ask ${model.id}`));
    const box = h("div", { class: "pg-declined" }, h("p", null, `${who} ${deaf.length > 1 ? "do" : "does"} not take ${choice(kinds.map(words))}${takes.length ? `, only ${choice(takes)}` : ""}. ${offers.length ? "These do:" : "No model here does."}`),
      offers.length ? h("div", { class: "pg-row" }, offers) : null);
    $(".pg-declined", this.refused)?.remove();
    this.also(box);
  }

  /** Return the reasons why the question cannot be sent, as children of the alert. @returns {any[]} */
  missing() {
    const models = this.page.chosen();
    for (const model of models) {
      const stray = this.media.find((medium) => !model.inputs.includes(medium.kind));
      if (stray) return [`${model.id} does not take ${words(stray.kind)}: remove ${stray.name}, or choose another model.`];
      if (model.requires.length && !this.media.some((medium) => model.requires.includes(medium.kind))) {
        return [`${model.id} needs ${words(/** @type {any} */ (model.requires[0]))} with each question. Drop one here, or choose it.`];
      }
      if (model.requires.length && this.media.length > 1) return [`${model.id} takes exactly one ${model.requires[0]} with a question.`];
      if (!model.downloaded) return [absent(model)];
    }
    return this.draft.value.trim() || this.media.length ? [] : ["Write a question first."];
  }

  /** Add a reason to the alert. @param {any} why */
  also(why) {
    this.refused.append(why);
    this.refused.hidden = false;
  }

  /** Show these reasons only. @param {any[]} why */
  refuse(why) {
    this.declined = [];
    replace(this.refused, why);
    this.refused.hidden = false;
  }

  quiet() {
    this.declined = [];
    replace(this.refused);
    this.refused.hidden = true;
  }

  /** Return the question and clear the composer. @returns {{text: string, media: Medium[]}} */
  take() {
    const said = { text: this.draft.value.trim(), media: this.media };
    this.put("", []);
    return said;
  }

  /** @param {string} text @param {Medium[]} media */
  put(text, media) {
    this.draft.value = text;
    this.media = [...media];
    this.page.drafted(text);
    this.quiet();
    this.show();
    this.grow();
  }

  /** Show the attached files, and what the models take. */
  show() {
    release($("#attached"));
    replace($("#attached"), this.media.map((medium) => preview(medium, () => {
      this.media = this.media.filter((other) => other !== medium);
      this.quiet();
      this.show();
      this.draft.focus();
    })));
    const kinds = taken(this.page.chosen());
    this.picker.accept = accepted(kinds);
    $("#attach").hidden = !kinds.length;
    $("#record").hidden = !kinds.includes("audio") || !canRecord();
    $("#camera").hidden = !(kinds.includes("image") || kinds.includes("video")) || !canRecord();
    $("#limits").textContent = kinds.length ? `${sentence(choice(kinds))}, ${limitsSaid(this.page.limits())}` : "Text alone";
  }

  grow() {
    this.draft.style.height = "auto";
    this.draft.style.height = `${Math.min(this.draft.scrollHeight + 2, 280)}px`;
  }
}
