// @ts-check
// The one line to /ui/live: opens when somebody listens, comes back by itself, and rests while the page is hidden.
//
// A browser keeps few connections to a server, and the server a thread for each; so a page in the background gives its
// own back after a while. `status` is connecting, open or lost; when it is lost, `why` tells: "away" (the server does
// not answer), "denied" (it does not answer this to whoever asks), "out" (the session is over), "full" (it stops, or too many pages watch; `said` has its
// words), and `again` is when it is tried next.

import { ApiError, send } from "./api.js";

const EVENTS = ["state", "sample", "history", "journal"];
const FIRST_WAIT = 1000;
const LONGEST_WAIT = 15000;
const HIDDEN = 2000;
const MOST = 100; // entries that are kept for modules that come later
const SILENCE = 10000; // a sample comes every second

class Live {
  constructor() {
    /** @type {"connecting" | "open" | "lost"} */
    this.status = "connecting";
    /** @type {"" | "away" | "denied" | "out" | "full"} */
    this.why = "";
    this.said = "";
    /** The time, by Date.now(), of the next attempt; 0 when none is due. */
    this.again = 0;
    /** @type {Record<string, any>} What came last of each event. */
    this.last = {};
    /** @type {any[]} The journal's entries that came lately. */
    this.entries = [];
    this._listeners = new Map();
    this._wait = FIRST_WAIT;
    /** @type {EventSource | null} */
    this._source = null;
    this._lastId = "";
    this._timer = 0;
    this._heard = 0;
    document.addEventListener("visibilitychange", () => this._visible());
    addEventListener("online", () => this.retry());
    addEventListener("signedout", () => this.status === "open" && this._lost());
    addEventListener("pagehide", () => this._close());
    addEventListener("pageshow", (event) => event.persisted && this._listeners.size && this._open());
    setInterval(() => this._check(), 2000);
  }

  /**
   * Calls `listener` with the data of each such event, and at once with the last `state` or `history` that came, or all
   * entries that the page was told lately: modules come when the line may be open already. For "status" with the status. The first listener opens the line. Returns a function that ends it.
   * @param {"state" | "sample" | "history" | "journal" | "status"} event @param {(data: any) => void} listener
   */
  on(event, listener) {
    if (!this._listeners.has(event)) this._listeners.set(event, new Set());
    this._listeners.get(event).add(listener);
    if (event === "status") listener(this.status);
    else if (event === "journal") for (const entry of this.entries) listener(entry);
    else if (event in this.last) listener(this.last[event]);
    if (!this._source && !this._timer && !document.hidden) this._open();
    return () => this._listeners.get(event).delete(listener);
  }

  /** Tries again now. */
  retry() {
    if (this.status !== "open" && this._listeners.size && !document.hidden) this._open();
  }

  _open() {
    this._close();
    if (this.status !== "lost") this._set("connecting");
    const source = new EventSource(`/ui/live${this._lastId ? `?after=${encodeURIComponent(this._lastId)}` : ""}`);
    this._source = source;
    this._heard = Date.now();
    source.onopen = () => {
      this._wait = FIRST_WAIT;
      this._heard = Date.now();
      this._set("open");
    };
    source.onerror = () => source === this._source && this._lost();
    for (const name of EVENTS) source.addEventListener(name, (event) => this._take(name, event));
  }

  _take(name, event) {
    this._heard = Date.now();
    if (event.lastEventId) this._lastId = event.lastEventId;
    let data;
    try {
      data = JSON.parse(event.data);
    } catch {
      return; // cut off by the end of the line; it comes again with the next
    }
    if (name === "journal") this.entries = [...this.entries.slice(1 - MOST), data];
    else this.last[name] = data;
    this._tell(name, data);
  }

  _close() {
    clearTimeout(this._timer);
    this._timer = 0;
    this._source?.close();
    this._source = null;
  }

  async _lost() {
    this._close();
    this._wait = Math.min(this._wait * 2, LONGEST_WAIT);
    const wait = this._wait * (0.75 + Math.random() / 2);
    this._timer = setTimeout(() => this._open(), wait);
    this.again = Date.now() + wait;
    this._set("lost", this.why || "away");
    try {
      await send("GET", "/ui/live?probe"); // an EventSource does not tell the status; nor that the session is over
    } catch (error) {
      /** @type {any} */
      const why = error instanceof ApiError ? { 401: "out", 403: "denied", 429: "full", 503: "full" }[error.status] : "";
      this.said = error instanceof ApiError ? error.message : "";
      if (this.status === "lost") this._set("lost", why || "away");
    }
  }

  _check() {
    if (this._source && this.status === "open" && Date.now() - this._heard > SILENCE && !document.hidden) this._lost();
  }

  _visible() {
    clearTimeout(this._rest);
    if (document.hidden) {
      this._rest = setTimeout(() => this._close(), HIDDEN);
    } else if (!this._source && this._listeners.size) {
      this._open();
    }
  }

  /** @param {"connecting" | "open" | "lost"} status @param {"" | "away" | "denied" | "out" | "full"} [why] */
  _set(status, why = "") {
    if (status !== "lost") this.again = 0;
    const same = this.status === status && this.why === why;
    [this.status, this.why] = /** @type {any} */ ([status, why]);
    if (!same || status === "lost") this._tell("status", status);
  }

  _tell(event, data) {
    for (const listener of [...(this._listeners.get(event) ?? [])]) listener(data);
  }
}

export const live = new Live();
