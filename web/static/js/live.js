// @ts-check
// What the server tells all the time: who listens on this page, and what came last. Rests while the page is hidden.
//
// A browser keeps few connections to a server, and the server a thread for each; so the pages of one browser share one
// line (share.js), which one of them holds (line.js), and a page in the background lets another hold it after a while.
// Where a browser cannot share, each page has its own. `status`, `why`, `said` and `again` are as of the line.

import { Line } from "./line.js";
import { extend } from "./samples.js";
import { Share, sharing } from "./share.js";

const HIDDEN = 2000;
const MOST = 100; // entries that are kept for modules that come later, and for pages
const SILENCE = 12000; // of who leads: more than the line's own
const APART = 4000; // within which one of several pages that hear nothing is the first to act

class Live {
  constructor() {
    /** @type {import("./line.js").Standing["status"]} */
    this.status = "connecting";
    /** @type {import("./line.js").Standing["why"]} */
    this.why = "";
    this.said = "";
    this.again = 0;
    /** @type {Record<string, any>} What came last of each event; the history with the samples that came since. */
    this.last = {};
    /** @type {{id: string, entry: any}[]} The journal's entries that came lately, all of them of one server. */
    this._entries = [];
    this._listeners = new Map();
    this._lastId = ""; // how far the server has told its journal, entries among it that are not for this page
    this._since = ""; // and from where on those that are for it are kept here
    this._watching = false;
    this._whole = false; // whether this page has what went before, or will be told it by the server
    this._asked = ""; // which answer of another page is for this one
    this._heardAt = 0;
    this._after = ""; // the entry after which the line is wanted, where another page lacks more than this one
    this._line = new Line(() => this._after || this._lastId, (name, data, id) => this._pass({ name, data, id }),
      (standing) => this._pass({ standing }));
    this._share = sharing() ? new Share(`live of ${document.body.dataset.whose ?? ""}`, {
      lead: () => this._lead(), follow: () => this._follow(), heard: (message) => this._hear(message),
    }) : null;
    document.addEventListener("visibilitychange", () => this._visible());
    addEventListener("online", () => this.retry());
    addEventListener("signedout", () => this._doubt());
    addEventListener("pagehide", () => this._rest());
    addEventListener("pageshow", (event) => event.persisted && this._watch());
    setInterval(() => this._check(), 2000);
  }

  /**
   * Calls `listener` with the data of each such event, and at once with the last `state` or `history` that came, or all
   * entries that the page was told lately: modules come when the line may be open already. For "status" with the status.
   * The first listener opens the line. Returns a function that ends it.
   * @param {"state" | "sample" | "history" | "journal" | "status"} event @param {(data: any) => void} listener
   */
  on(event, listener) {
    if (!this._listeners.has(event)) this._listeners.set(event, new Set());
    this._listeners.get(event).add(listener);
    if (event === "status") listener(this.status);
    else if (event === "journal") for (const { entry } of this._entries) listener(entry);
    else if (event in this.last) listener(this.last[event]);
    this._watch();
    return () => this._listeners.get(event).delete(listener);
  }

  /** Tries again now. */
  retry() {
    if (!this._watching) this._watch();
    else if (this._leads) this._line.retry();
    else this._share?.say({ ask: "retry" });
  }

  // -- who holds the line ----------------------------------------------------------------------------------------------

  get _leads() {
    return !this._share || this._share.leading;
  }

  _watch() {
    if (this._watching || !this._listeners.size || document.hidden) return;
    this._watching = true;
    this._heardAt = Date.now();
    if (!this._share) {
      this._line.open();
      return;
    }
    this._share.join();
    this._askAll();
  }

  _askAll() {
    this._asked = `${Math.random()}`;
    this._share?.say({ ask: "all", from: this._asked, after: this._lastId });
  }

  _rest() {
    this._watching = this._whole = false;
    this._share?.leave();
    this._line.close();
  }

  _lead() {
    this._whole = true;
    this._line.open();
    this._share?.say({ leads: true });
  }

  _follow() {
    this._line.close();
    this._heardAt = Date.now();
  }

  _visible() {
    clearTimeout(this._resting);
    if (document.hidden) this._resting = setTimeout(() => this._rest(), HIDDEN);
    else this._watch();
  }

  /** What was asked of the server was answered as nobody signed in is answered. */
  _doubt() {
    if (this.status !== "open") return;
    if (this._leads) this._line.lose();
    else this._share?.say({ ask: "doubt" });
  }

  /** Leads where nobody does who can: the page that holds the line is stopped, perhaps by a debugger. */
  _check() {
    const due = Math.max(this._heardAt, this.again) + SILENCE + Math.random() * APART;
    if (this._watching && !this._leads && !document.hidden && Date.now() > due) {
      this._heardAt = Date.now();
      this._share?.take();
    }
  }

  // -- what is told ----------------------------------------------------------------------------------------------------

  /** Takes what the line said, and has the other pages hear it. */
  _pass(message) {
    this._share?.say(message);
    this._take(message);
  }

  /** Hears another page. */
  _hear(message) {
    if (message.ask && !this._share?.leading) return;
    if (message.ask === "retry") this._line.retry();
    else if (message.ask === "doubt" && this.status === "open") this._line.lose();
    else if (message.ask === "all") this._tellAll(message);
    if (message.ask) return;
    this._heardAt = Date.now();
    if (message.leads && !this._whole) this._askAll();
    else if (message.to) this._takeAll(message);
    else if (this._whole || message.standing) this._take(message); // else it will be in the answer
  }

  /** Tells a page that came later how things stand. Where it lacks more of the journal than is kept here, the server
   * tells it again, and those that have it pass over it. */
  _tellAll({ from, after }) {
    const lacking = serverOf(after) === serverOf(this._since) && later(this._since, after);
    const { status, why, said, again } = this;
    this._share?.say({ to: from, last: this.last, standing: { status, why, said, again }, since: lacking ? "" : this._since,
      entries: lacking ? [] : this._entries.filter(({ id }) => later(id, after)) });
    if (!lacking) return;
    this._after = after;
    this._line.open();
    this._after = "";
  }

  _takeAll({ to, last, entries, standing, since }) {
    if (this._whole || to !== this._asked) return;
    this._whole = true;
    for (const name of ["history", "state"]) if (name in last) this._take({ name, data: last[name], id: since });
    for (const { id, entry } of entries) this._take({ name: "journal", data: entry, id });
    this._take({ standing });
  }

  _take({ standing, name, data, id }) {
    if (standing) {
      this._stand(standing);
    } else if (name) {
      const news = this._advance(id);
      if (name === "journal") {
        if (!news) return;
        this._keep(id, data);
      } else {
        if (name === "sample" && this.last.history) extend(this.last.history, data);
        this.last[name] = data;
      }
      this._tell(name, data);
    }
  }

  /** Notes how far the server has told its journal. What one told that was there before it is over: its ids say nothing
   * of this one's. @param {string} id @returns {boolean} whether that is farther than before */
  _advance(id) {
    if (!id || !later(id, this._lastId)) return false;
    if (serverOf(id) !== serverOf(this._lastId)) {
      this._entries = [];
      this._since = id;
    }
    this._lastId = id;
    return true;
  }

  _keep(id, entry) {
    this._entries.push({ id, entry });
    if (this._entries.length > MOST) this._since = this._entries.shift()?.id ?? id;
  }

  /** @param {import("./line.js").Standing} standing */
  _stand({ status, why, said, again }) {
    const same = this.status === status && this.why === why;
    [this.status, this.why, this.said, this.again] = [status, why, said, again];
    if (!same || status === "lost") this._tell("status", status);
  }

  _tell(event, data) {
    for (const listener of [...(this._listeners.get(event) ?? [])]) listener(data);
  }
}

/** The part of an entry's id that tells one server from another. @param {string} id */
const serverOf = (id) => id.split("-")[0];

/** Whether one entry came after another, by their ids `<server>-<number>`: one of another server did.
 * @param {string} id @param {string} than */
function later(id, than) {
  return serverOf(id) !== serverOf(than) || Number(id.split("-")[1]) > Number(than.split("-")[1]);
}

export const live = new Live();
