// @ts-check
// One line to /ui/live: it comes back by itself, and tells why where it does not. Knows nobody who listens.
//
// `status` is connecting, open or lost; when it is lost, `why` tells: "away" (the server does not answer), "denied" (it
// does not answer this to whoever asks), "out" (the session is over), "full" (it stops, or too many pages watch; `said`
// has its words), and `again` is when it is tried next, by Date.now(); 0 when no attempt is due.

import { ApiError, send } from "./api.js";

const EVENTS = ["state", "sample", "history", "journal"];
const FIRST_WAIT = 1000;
const LONGEST_WAIT = 15000;
const SILENCE = 10000; // a sample comes every second; and an attempt that takes longer is one that failed

/** @typedef {{status: "connecting" | "open" | "lost", why: "" | "away" | "denied" | "out" | "full", said: string, again: number}} Standing */

export class Line {
  /**
   * @param {() => string} after the id of the entry that was had last
   * @param {(name: string, data: any, id: string) => void} heard
   * @param {(standing: Standing) => void} changed
   */
  constructor(after, heard, changed) {
    /** @type {Standing} */
    this.standing = { status: "connecting", why: "", said: "", again: 0 };
    [this._after, this._heard, this._changed] = [after, heard, changed];
    this._wait = FIRST_WAIT;
    /** @type {EventSource | null} */
    this._source = null;
    this._timer = 0;
    this._probe = new AbortController();
    this._latest = 0;
    setInterval(() => this._check(), 2000);
  }

  /** Opens it, anew if it is open, for what came after the entry that was had last. */
  open() {
    this.close();
    if (this.standing.status !== "lost") this._set("connecting");
    const after = this._after();
    const source = new EventSource(`/ui/live${after ? `?after=${encodeURIComponent(after)}` : ""}`);
    this._source = source;
    this._latest = Date.now();
    this._timer = setTimeout(() => this.lose(), SILENCE); // whoever waits for this line is told, and when it is tried again
    source.onopen = () => {
      clearTimeout(this._timer);
      this._wait = FIRST_WAIT;
      this._latest = Date.now();
      this._set("open");
    };
    source.onerror = () => source === this._source && this.lose();
    for (const name of EVENTS) source.addEventListener(name, (event) => this._take(name, event));
  }

  close() {
    clearTimeout(this._timer);
    this._timer = 0;
    this._probe.abort(); // or those that hang would take the few connections that a browser keeps
    this._source?.close();
    this._source = null;
  }

  /** Gives it up for now, finds out why, and tries again later. */
  async lose() {
    this.close();
    this._wait = Math.min(this._wait * 2, LONGEST_WAIT);
    const wait = this._wait * (0.75 + Math.random() / 2);
    const timer = setTimeout(() => this.open(), wait);
    this._timer = timer;
    this._probe = new AbortController();
    this._set("lost", this.standing.why || "away", this.standing.said, Date.now() + wait);
    try {
      // An EventSource does not tell the status; nor that the session is over.
      await send("GET", "/ui/live?probe", undefined, { signal: this._probe.signal });
    } catch (error) {
      /** @type {any} */
      const why = error instanceof ApiError ? { 401: "out", 403: "denied", 429: "full", 503: "full" }[error.status] : "";
      const said = error instanceof ApiError ? error.message : "";
      if (this._timer === timer) this._set("lost", why || "away", said, this.standing.again);
    }
  }

  /** Tries again now, unless it is open. */
  retry() {
    if (this.standing.status !== "open") this.open();
  }

  _take(name, event) {
    this._latest = Date.now();
    let data;
    try {
      data = JSON.parse(event.data);
    } catch {
      return; // cut off by the end of the line; it comes again with the next
    }
    this._heard(name, data, event.lastEventId);
  }

  _check() {
    const silent = Date.now() - this._latest > SILENCE;
    if (this._source && this.standing.status === "open" && silent && !document.hidden) this.lose();
  }

  /** @param {Standing["status"]} status @param {Standing["why"]} [why] */
  _set(status, why = "", said = "", again = 0) {
    this.standing = { status, why, said, again };
    this._changed(this.standing);
  }
}
