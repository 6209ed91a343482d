// @ts-check
// A conversation as it is kept here, and the requests that are made of it. Pure: no page, no network.

/** @typedef {'image'|'audio'|'video'} Kind */
/** @typedef {{kind: Kind, name: string, mime: string, blob: Blob, made: boolean, seconds?: number, pixels?: number}} Medium */
/** @typedef {{text: string, media: Medium[], answers: import('./ask.js').Answer[]}} Turn */
/** @typedef {{id: string, label: string, family: string, inputs: string[], abilities: string[], state: string,
 *   device: string, requires: string[], parameters: string[], defaults: Record<string, any>, downloaded: boolean,
 *   quant_bits: number}} Model */

const FORMATS = /** @type {Record<string, string>} */ ({
  "audio/wav": "wav", "audio/x-wav": "wav", "audio/wave": "wav", "audio/vnd.wave": "wav", "audio/mpeg": "mp3",
  "audio/mp3": "mp3", "audio/flac": "flac", "audio/x-flac": "flac", "audio/ogg": "ogg", "audio/opus": "opus",
  "audio/mp4": "m4a", "audio/x-m4a": "m4a", "audio/m4a": "m4a", "audio/aac": "aac", "audio/webm": "webm",
});

/** Whether a model reads more of a conversation than its last question. @param {Model} model */
export const remembers = (model) => model.abilities.includes("conversation");

/**
 * Return the request of a turn: what the API takes, but with media as {@link Medium} objects where base64 goes.
 * @param {Turn[]} turns the conversation; its last turn is asked
 * @param {number} column whose earlier answers belong to it
 * @param {Model} model
 * @param {string} system
 * @param {Record<string, any>} parameters what was changed; those the model does not honour are left out
 */
export function requestOf(turns, column, model, system, parameters) {
  const messages = [];
  const last = turns[turns.length - 1];
  if (remembers(model)) {
    if (system.trim()) messages.push({ role: "system", content: system });
    for (const turn of turns.slice(0, -1)) {
      const answer = turn.answers[column];
      if (!answer || !answer.text) continue; // two questions in a row are more than some templates take
      if (turn.media.some((medium) => !model.inputs.includes(medium.kind))) continue; // asked of another model
      messages.push({ role: "user", content: content(turn) }, { role: "assistant", content: answer.text });
    }
  }
  messages.push({ role: "user", content: content(last) });
  const honoured = Object.entries(parameters).filter(([name]) => model.parameters.includes(name));
  return { model: model.id, messages, ...Object.fromEntries(honoured) };
}

/** @param {Turn} turn */
function content(turn) {
  if (!turn.media.length) return turn.text;
  const said = turn.text ? [{ type: "text", text: turn.text }] : [];
  return [...turn.media.map((medium) => ({ medium })), ...said];
}

/**
 * Return a request with each medium as a content part whose base64 is what `encoded` says.
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

/** Return every medium of a request, in their order. @param {any} request @returns {Medium[]} */
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
