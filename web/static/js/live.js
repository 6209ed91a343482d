// @ts-check
// The page's stream of /ui/live. A visible page holds one stream; a hidden page holds none, and is sent the current state
// when it is visible again. A lost stream is opened again by itself, with a growing wait.
//
// `status` is "connecting", "open" or "lost". For a lost stream `reason` is "unreachable" (the server does not answer),
// "forbidden" (this client may not see it), "signed-out" (the session is over) or "refused" (the server stops, or its limit
// of open streams is reached; `message` has the server's words).

import { ApiError, send } from "./api.js";

const EVENTS = ["state", "sample", "history", "journal"];
const FIRST_WAIT = 1000;
const LONGEST_WAIT = 15000;
const SILENCE = 10000; // a sample comes every second; a stream that is silent for this long is lost
/** @type {Record<number, "forbidden" | "signed-out" | "refused">} */
const REASONS = { 401: "signed-out", 403: "forbidden", 429: "refused", 503: "refused" };

class Live {
  constructor() {
    /** @type {"connecting" | "open" | "lost"} */
    this.status = "connecting";
    /** @type {"" | "unreachable" | "forbidden" | "signed-out" | "refused"} */
    this.reason = "";
    this.message = "";
    /** @type {Map<string, ((data: any) => void)[]>} */
    this._listeners = new Map();
    this._lastId = ""; // of the journal: a new stream begins after this entry
    this._wait = FIRST_WAIT;
    /** @type {EventSource | null} */
    this._source = null;
    this._timer = 0;
    this._probe = new AbortController();
    // By then all modules of the page have added their listeners.
    document.addEventListener("DOMContentLoaded", () => this._followVisibility());
    document.addEventListener("visibilitychange", () => this._followVisibility());
    addEventListener("pageshow", () => this._followVisibility()); // out of the back/forward cache
    addEventListener("pagehide", () => this._close());
    addEventListener("online", () => this.retry());
    addEventListener("signedout", () => this._source && this.status === "open" && this._lose());
  }

  /**
   * Calls `listener` with the data of each such event from now on; for "status" with the status, now and at each change.
   * A page without listeners opens no stream.
   * @param {"state" | "sample" | "history" | "journal" | "status"} event @param {(data: any) => void} listener
   */
  on(event, listener) {
    this._listeners.set(event, [...(this._listeners.get(event) ?? []), listener]);
    if (event === "status") listener(this.status);
  }

  /** Opens a lost stream now. */
  retry() {
    if (this.status !== "open" && !document.hidden) this._open();
  }

  _followVisibility() {
    if (document.hidden) this._close();
    else if (!this._source && this._listeners.size) this._open();
  }

  _open() {
    this._close();
    if (this.status !== "lost") this._setStatus("connecting");
    const source = new EventSource(`/ui/live${this._lastId && `?after=${encodeURIComponent(this._lastId)}`}`);
    this._source = source;
    this._restartTimeout();
    source.onopen = () => {
      this._wait = FIRST_WAIT;
      this._restartTimeout();
      this._setStatus("open");
    };
    source.onerror = () => this._lose();
    for (const name of EVENTS) source.addEventListener(name, (event) => this._receive(name, event));
  }

  _close() {
    clearTimeout(this._timer);
    this._timer = 0;
    this._probe.abort(); // a browser has few connections to one server: a probe that hangs would keep one
    this._source?.close();
    this._source = null;
  }

  _restartTimeout() {
    clearTimeout(this._timer);
    this._timer = setTimeout(() => this._lose(), SILENCE);
  }

  /** Closes the stream, schedules the next attempt and asks the server for the reason: an EventSource tells no status. */
  async _lose() {
    this._close();
    this._wait = Math.min(this._wait * 2, LONGEST_WAIT);
    const timer = setTimeout(() => this._open(), this._wait * (0.75 + Math.random() / 2));
    this._timer = timer;
    this._probe = new AbortController();
    this._setStatus("lost", this.reason || "unreachable", this.message);
    const error = await send("GET", "/ui/live?probe", undefined, { signal: this._probe.signal }).catch((failure) => failure);
    if (this._timer !== timer) return;
    if (error instanceof ApiError) this._setStatus("lost", REASONS[error.status] ?? "unreachable", error.message);
    else this._setStatus("lost", "unreachable");
  }

  /** @param {string} name @param {MessageEvent} event */
  _receive(name, event) {
    this._restartTimeout();
    let data;
    try {
      data = JSON.parse(event.data);
    } catch {
      return; // cut off by the end of the stream; the next stream sends it again
    }
    this._lastId = event.lastEventId || this._lastId;
    this._tell(name, data);
  }

  /** @param {Live["status"]} status @param {Live["reason"]} [reason] */
  _setStatus(status, reason = "", message = "") {
    Object.assign(this, { status, reason, message });
    this._tell("status", status);
  }

  /** @param {string} event @param {any} data */
  _tell(event, data) {
    for (const listener of this._listeners.get(event) ?? []) listener(data);
  }
}

export const live = new Live();
