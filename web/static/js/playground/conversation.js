// @ts-check
// A conversation's data, and the requests made from it. Pure: no page, no network.

/** @typedef {'image'|'audio'|'video'} Kind */
/** @typedef {{kind: Kind, name: string, mime: string, blob: Blob, made: boolean, seconds?: number, pixels?: number}} Medium */
/** @typedef {{text: string, media: Medium[], answers: import('./ask.js').Answer[]}} Turn */
/** @typedef {{id: string, label: string, family: string, inputs: string[], abilities: string[], state: string,
 *   device: string, requires: string[], parameters: string[], defaults: Record<string, any>, downloaded: boolean,
 *   quant_bits: number}} Model */

export const ROOM = 4096; // bytes of a request besides text and media
const FORMATS = /** @type {Record<string, string>} */ ({
  "audio/wav": "wav", "audio/x-wav": "wav", "audio/wave": "wav", "audio/vnd.wave": "wav", "audio/mpeg": "mp3",
  "audio/mp3": "mp3", "audio/flac": "flac", "audio/x-flac": "flac", "audio/ogg": "ogg", "audio/opus": "opus",
  "audio/mp4": "m4a", "audio/x-m4a": "m4a", "audio/m4a": "m4a", "audio/aac": "aac", "audio/webm": "webm",
});

/** Whether a model reads the whole conversation and not just the last question. @param {Model} model */
export const remembers = (model) => model.abilities.includes("conversation");

/**
 * Return the request of a turn: the API's JSON, with {@link Medium} objects in place of base64.
 * @param {Turn[]} turns the conversation; its last turn is asked
 * @param {number} column whose earlier answers are sent
 * @param {Model} model
 * @param {string} system
 * @param {Record<string, any>} parameters that were changed; those the model does not honour are left out
 * @param {any} [limits] of the server's /health: the oldest media beyond them are left out
 */
export function requestOf(turns, column, model, system, parameters, limits = {}) {
  const messages = [];
  const last = turns[turns.length - 1];
  if (remembers(model)) {
    if (system.trim()) messages.push({ role: "system", content: system });
    const said = earlier(turns, column, model);
    const shown = affordable([...said, last], limits);
    for (const turn of said) {
      if (!turn.text && !shown.has(turn)) continue; // nothing is left to ask
      const asked = shown.has(turn) ? content(turn) : turn.text;
      messages.push({ role: "user", content: asked }, { role: "assistant", content: turn.answers[column].text });
    }
  }
  messages.push({ role: "user", content: content(last) });
  const honoured = Object.entries(parameters).filter(([name]) => model.parameters.includes(name));
  return { model: model.id, messages, ...Object.fromEntries(honoured) };
}

/** The earlier turns that are sent to a model. @param {Turn[]} turns @param {number} column @param {Model} model */
function earlier(turns, column, model) {
  return turns.slice(0, -1).filter((turn) => turn.answers[column]?.text // two questions in a row are more than some templates take
    && turn.media.every((medium) => model.inputs.includes(medium.kind))); // else it was asked of another model
}

/** The latest turns, as many as a request has room for with their media. @param {Turn[]} turns @param {any} limits */
function affordable(turns, { max_media_per_request: most = Infinity, max_body_bytes: body = Infinity }) {
  const found = new Set();
  let room = body - ROOM - turns.reduce((sum, turn) => sum + said(turn), 0);
  let count = 0;
  for (const turn of [...turns].reverse()) {
    count += turn.media.length;
    room -= turn.media.reduce((sum, medium) => sum + encodedSize(medium.blob), 0);
    if ((count > most || room < 0) && turn !== turns.at(-1)) break;
    found.add(turn);
  }
  return found;
}

/** About how many bytes of a body a turn's text takes. @param {Turn} turn */
const said = (turn) => 3 * (turn.text.length + Math.max(0, ...turn.answers.map((answer) => answer?.text.length ?? 0)));

/** The bytes of a blob as base64. @param {Blob} blob */
export const encodedSize = (blob) => Math.ceil(blob.size / 3) * 4;

/**
 * Return how many files of earlier questions a request leaves out for lack of room.
 * @param {any} request of {@link requestOf} @param {Turn[]} turns @param {number} column @param {Model} model
 */
export function leftOut(request, turns, column, model) {
  const sent = new Set(mediaOf(request));
  return remembers(model) ? earlier(turns, column, model).flatMap((turn) => turn.media).filter((medium) => !sent.has(medium)).length : 0;
}

/** @param {Turn} turn */
function content(turn) {
  if (!turn.media.length) return turn.text;
  const said = turn.text ? [{ type: "text", text: turn.text }] : [];
  return [...turn.media.map((medium) => ({ medium })), ...said];
}

/**
 * Return a request with each medium as a content part whose data is the result of `encoded`.
 * @template T
 * @param {any} request
 * @param {(medium: Medium, prefix: string) => T} encoded
 */
export function withMedia(request, encoded) {
  const messages = request.messages.map((/** @type {any} */ message) => {
    if (typeof message.content === "string") return message;
    const parts = message.content.map((/** @type {any} */ one) => (one.medium ? part(one.medium, encoded) : one));
    return { ...message, content: parts };
  });
  return { ...request, messages };
}

/** @param {Medium} medium @param {(medium: Medium, prefix: string) => any} encoded */
function part(medium, encoded) {
  if (medium.kind === "audio") {
    const format = FORMATS[medium.mime];
    return { type: "input_audio", input_audio: { data: encoded(medium, ""), ...(format ? { format } : {}) } };
  }
  const url = encoded(medium, `data:${medium.mime};base64,`);
  return medium.kind === "image"
    ? { type: "image_url", image_url: { url } } : { type: "video_url", video_url: { url } };
}

/** Return every medium of a request in order. @param {any} request @returns {Medium[]} */
export function mediaOf(request) {
  return request.messages.flatMap((/** @type {any} */ message) => (typeof message.content === "string" ? []
    : message.content.flatMap((/** @type {any} */ one) => (one.medium ? [one.medium] : []))));
}

/** Return a blob as base64. @param {Blob} blob @returns {Promise<string>} */
export function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result).replace(/^[^,]*,/, ""));
    reader.onerror = () => reject(new Error("a file could not be read; it may have been moved or changed"));
    reader.readAsDataURL(blob);
  });
}
