// @ts-check
// Files of a question: their kind, the limits, and previews. Reads their bytes for previews only.

import { h } from "../dom.js";
import { bytes } from "../format.js";
import { icon } from "../icons.js";
import { ROOM, encodedSize } from "./conversation.js";

/** @typedef {import('./conversation.js').Medium} Medium */
/** @typedef {import('./conversation.js').Kind} Kind */
/** @typedef {import('./conversation.js').Model} Model */

const ENDINGS = /** @type {Record<string, Kind>} */ ({
  png: "image", jpg: "image", jpeg: "image", webp: "image", gif: "image", bmp: "image", tif: "image", tiff: "image",
  wav: "audio", mp3: "audio", flac: "audio", m4a: "audio", ogg: "audio", oga: "audio", opus: "audio",
  mp4: "video", avi: "video", mov: "video", webm: "video", mkv: "video",
});
const ACCEPT = { image: "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/tiff", audio: "audio/*", video: "video/*" };
export const KINDS = /** @type {Kind[]} */ (["image", "audio", "video"]);

/** A file's kind by its type, else its name; null if no model takes it. @param {File} file @returns {Kind|null} */
export function kindOf(file) {
  const kind = /** @type {Kind} */ (file.type.split("/")[0]);
  if (KINDS.includes(kind)) return kind;
  return ENDINGS[file.name.split(".").pop()?.toLowerCase() ?? ""] ?? null;
}

/** The file picker's filter. @param {Kind[]} kinds */
export const accepted = (kinds) => kinds.map((kind) => ACCEPT[kind]).join(",");

/** "an image", "a sound", "a video". @param {Kind} kind */
export const words = (kind) => ({ image: "an image", audio: "a sound", video: "a video" })[kind];

/** "image, audio or video". @param {string[]} kinds */
export const choice = (kinds) => kinds.join(", ").replace(/, ([^,]*)$/, " or $1");

/** The kinds of media that all of these models take. @param {Model[]} models @returns {Kind[]} */
export const taken = (models) => KINDS.filter((kind) => models.length && models.every((model) => model.inputs.includes(kind)));

/**
 * Return a medium of a file, with its duration and pixels if the browser can read them.
 * @param {File|Blob} file @param {Kind} kind @param {string} name @param {boolean} made whether it was made here
 * @returns {Promise<Medium>}
 */
export async function mediumOf(file, kind, name, made) {
  const type = file.type.split(";")[0];
  /** @type {Medium} */
  const medium = { kind, name, mime: type || `${kind}/octet-stream`, blob: file, made };
  const address = URL.createObjectURL(file);
  try {
    if (kind === "image") {
      const image = new Image();
      image.src = address;
      await image.decode();
      medium.pixels = image.naturalWidth * image.naturalHeight;
    } else {
      const length = await duration(address, kind);
      if (Number.isFinite(length)) medium.seconds = length; // a recording of the browser's own does not know its length
    }
  } catch {
    // The browser cannot show it; the server may still read it, or refuses it.
  } finally {
    URL.revokeObjectURL(address);
  }
  return medium;
}

/** @param {string} address @param {Kind} kind @returns {Promise<number>} */
function duration(address, kind) {
  return new Promise((resolve, reject) => {
    const player = document.createElement(kind === "audio" ? "audio" : "video");
    player.preload = "metadata";
    player.onloadedmetadata = () => resolve(player.duration);
    player.onerror = () => reject(new Error("not playable"));
    setTimeout(() => reject(new Error("too slow")), 4000);
    player.src = address;
  });
}

/** A sentence about the server's limits. @param {any} limits */
export function limitsSaid(limits) {
  const most = limits.max_body_bytes ? bytes(Math.floor(limits.max_body_bytes * 0.75)) : "";
  const count = limits.max_media_per_request ? `up to ${limits.max_media_per_request} files` : "";
  return [count, most].filter(Boolean).join(", ");
}

/**
 * Return why one more medium cannot be sent with the question, or "". Media of earlier questions make room: see `requestOf`.
 * @param {Medium} medium @param {Medium[]} beside @param {any} limits of the server's /health
 */
export function tooMuch(medium, beside, limits) {
  const { kind, name, pixels = 0, seconds = 0 } = medium;
  const { max_media_per_request: count, max_body_bytes: body, max_image_pixels: most } = limits;
  const longest = kind === "audio" ? limits.max_audio_seconds : limits.max_video_seconds;
  if (medium.blob.size === 0) return `${name} is empty.`;
  if (count && beside.length >= count) return `A request may have ${count} files; ${name} is one more.`;
  const size = [...beside, medium].reduce((sum, one) => sum + encodedSize(one.blob), ROOM);
  if (body && size > body) {
    return `${name} is too large: with it the request would have ${bytes(size)} as base64, and ${bytes(body)} is the limit.`;
  }
  if (most && pixels > most) return `${name} has ${(pixels / 1e6).toFixed(1)} megapixels; ${(most / 1e6).toFixed(0)} is the limit.`;
  if (longest && seconds > longest) return `${name} is ${seconds.toFixed(0)} s long; ${longest} s is the limit.`;
  return "";
}

/** Let go of what the media shown in an element hold. To be called before it is removed. @param {Element} element */
export function release(element) {
  for (const shown of element.querySelectorAll("[src^='blob:'], [href^='blob:']")) {
    URL.revokeObjectURL(shown.getAttribute("src") ?? shown.getAttribute("href") ?? "");
  }
}

/**
 * Return what a medium looks or sounds like, until {@link release}.
 * @param {Medium} medium @param {(() => void)|null} remove
 */
export function preview(medium, remove) {
  const address = URL.createObjectURL(medium.blob);
  const { kind, name } = medium;
  /** @type {any} */
  const shown = kind === "image" ? h("img", { src: address, alt: `Attached image ${name}` })
    : kind === "audio" ? h("audio", { src: address, controls: true, "aria-label": `Attached sound ${name}` })
      : h("video", { src: address, controls: !remove, muted: true, playsinline: true, "aria-label": `Attached video ${name}` });
  const size = h("span", { class: "pg-size" }, bytes(medium.blob.size));
  const figure = h("figure", { class: `pg-medium pg-medium-${kind}` }, shown,
    h("figcaption", {}, h("span", { class: "pg-name", title: name }, name), size));
  if (remove) {
    const button = h("button", { type: "button", class: "pg-remove", "aria-label": `Remove ${name}`, title: `Remove ${name}` }, icon("close"));
    button.addEventListener("click", remove);
    figure.append(button);
  }
  return figure;
}
