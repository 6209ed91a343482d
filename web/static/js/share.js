// @ts-check
// Which of a browser's pages holds the line that all of them hear: one leads, the others listen.
//
// Who leads has a lock of the browser's, and speaks over a channel; when its page closes or rests, the next one in the
// queue has the lock at once. Knows nothing of what is said.

/** Whether the browser can: locks are for pages from this machine or by HTTPS. */
export const sharing = () => Boolean(navigator.locks && globalThis.BroadcastChannel);

export class Share {
  /**
   * @param {string} name one line for all pages of this name
   * @param {{lead: () => void, follow: () => void, heard: (message: any) => void}} calls `lead` when this page is to open
   *     the line, `follow` when it has to leave it to another, `heard` with what another page said
   */
  constructor(name, calls) {
    this._name = `switchyard ${name}`;
    this._calls = calls;
    this.leading = false;
    /** @type {BroadcastChannel | null} */
    this._channel = null;
    this._turn = new AbortController();
  }

  /** Listens, and waits to lead. */
  join() {
    this._channel = new BroadcastChannel(this._name);
    this._channel.onmessage = ({ data }) => this._calls.heard(data);
    this._queue(false);
  }

  /** Neither leads nor listens any more. */
  leave() {
    this._turn.abort();
    this.leading = false;
    this._channel?.close();
    this._channel = null;
  }

  /** Tells all other pages that listen. @param {any} message */
  say(message) {
    this._channel?.postMessage(message);
  }

  /** Leads in place of a page that has fallen silent, as one does whose script is stopped. */
  take() {
    this._turn.abort();
    this._queue(true);
  }

  /** @param {boolean} steal */
  async _queue(steal) {
    const turn = (this._turn = new AbortController());
    const over = new Promise((end) => turn.signal.addEventListener("abort", end));
    try {
      await navigator.locks.request(this._name, steal ? { steal } : { signal: turn.signal }, async () => {
        if (turn.signal.aborted) return;
        this.leading = true;
        this._calls.lead();
        await over;
      });
    } catch (error) {
      if (!(error instanceof DOMException && error.name === "AbortError")) throw error;
      if (turn.signal.aborted) return; // it was this page that gave it up
      this.leading = false; // another took it
      this._calls.follow();
      this._queue(false);
    }
  }
}
