// @ts-check
// One streamed POST /v1/chat/completions, read into an Answer: its wait, text, timings and error. Shows nothing.

import { ApiError, api, send } from "../api.js";
import { base64, mediaOf, withMedia } from "./conversation.js";
import { Cut, events } from "./sse.js";

/** @typedef {{model: string, request: any, state: 'waiting'|'answering'|'done'|'stopped'|'failed', text: string,
 *   reasoning: string, wait: {words: string, fraction: number|null}|null, error: Error|null, usage: any, timings: any,
 *   swap: any, device: string, note: string, finish: string, sound: Blob|null, soundUrl?: string, left?: number, began: number,
 *   thought: number|null, id: string}} Answer */

/** Return an empty answer. @param {string} model @param {any} request @returns {Answer} */
export function unanswered(model, request) {
  return {
    model, request, state: "waiting", text: "", reasoning: "", wait: { words: "Sending the request", fraction: null },
    error: null, usage: null, timings: null, swap: null, device: "", note: "", finish: "", sound: null,
    began: performance.now(), thought: null, id: newId(),
  };
}

/** An id by which the server knows the request. `randomUUID` is only there on https and localhost. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Send the answer's request and fill in the answer. Ends when it is over; never throws.
 * @param {Answer} answer
 * @param {AbortSignal} signal stops it
 * @param {() => void} changed called after each change of the answer
 */
export async function ask(answer, signal, changed) {
  try {
    const sent = new Map();
    for (const medium of mediaOf(answer.request)) sent.set(medium, await base64(medium.blob));
    const body = withMedia(answer.request, (medium, prefix) => prefix + sent.get(medium));
    const options = { include_usage: true, include_progress: true };
    const response = await send("POST", "/v1/chat/completions", { ...body, stream: true, stream_options: options },
      { signal, headers: { "X-Request-ID": answer.id } });
    let whole = false;
    for await (const { event, data } of events(/** @type {any} */ (response.body))) {
      if (event === "comment") waits(answer, data);
      else if (event === "progress") progress(answer, parsed(data));
      else if (data === "[DONE]") whole = true;
      else take(answer, parsed(data));
      changed();
    }
    if (!whole) throw new Cut("The answer ended before it was whole.");
    answer.state = "done";
  } catch (error) {
    if (signal.aborted) {
      answer.state = "stopped";
      api("DELETE", `/v1/requests/${answer.id}`).catch(() => {}); // by its id too, should a proxy keep the connection open
    } else {
      answer.state = "failed";
      answer.error = /** @type {Error} */ (error);
    }
  }
  answer.wait = null;
  changed();
}

/** @param {string} data */
function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError(0, "Answer not understood", "What came as the answer is not what the server's API says. Is there a proxy before it?");
  }
}

/** @param {Answer} answer @param {any} chunk */
function take(answer, chunk) {
  if (chunk.error) throw new ApiError(0, chunk.error.code ?? chunk.error.type ?? "Failed", chunk.error.message ?? "The server did not say why.");
  const choice = chunk.choices?.[0];
  const { content, reasoning_content: thinking } = choice?.delta ?? {};
  if (thinking) answer.reasoning += thinking;
  if (content) {
    if (answer.reasoning && answer.thought === null) answer.thought = (performance.now() - answer.began) / 1000;
    answer.text += content;
  }
  if (thinking || content) {
    answer.state = "answering";
    answer.wait = null;
  }
  if (choice?.finish_reason) answer.finish = choice.finish_reason;
  if (chunk.usage) answer.usage = chunk.usage;
  if (chunk.timings) {
    answer.timings = chunk.timings;
    answer.swap = chunk.swap ?? null;
    answer.device = chunk.device ?? "";
    answer.note = chunk.note ?? "";
  }
  if (chunk.audio) answer.sound = blobOf(chunk.audio, `audio/${chunk.audio_format || "wav"}`);
}

/** @param {string} encoded @param {string} type */
function blobOf(encoded, type) {
  return new Blob([Uint8Array.from(atob(encoded), (one) => one.charCodeAt(0))], { type });
}

/** @param {Answer} answer @param {any} said */
function progress(answer, said) {
  const loading = said.state === "loading";
  const place = said.position > 1 ? `number ${said.position} in the queue, ` : "";
  const words = loading ? `Loading ${answer.model}: ${place}${said.phase}` : `Waiting: ${place}${said.phase}`;
  answer.wait = { words, fraction: loading ? said.fraction : null };
}

/** Read a comment: the progress of a request before its first token. @param {Answer} answer @param {string} text */
function waits(answer, text) {
  const running = /^running [^:]+: (.+)$/.exec(text);
  if (running && answer.state === "waiting") answer.wait = { words: sentence(running[1]), fraction: null };
}

/** @param {string} words */
const sentence = (words) => words.charAt(0).toUpperCase() + words.slice(1);
