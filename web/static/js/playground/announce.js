// @ts-check
// What a screen reader is told of an answer as it comes: whole sentences, not tokens. Owns the page's quiet live region.

/** Beyond that many characters without a sentence's end, what is there is said at a blank. */
const LONG = 400;

export class Announcer {
  /** @param {HTMLElement} region has aria-live */
  constructor(region) {
    this.region = region;
    /** @type {WeakMap<object, number>} */
    this.told = new WeakMap();
  }

  /** Say something now. @param {string} words */
  say(words) {
    const line = document.createElement("p");
    line.textContent = words;
    this.region.append(line);
    while (this.region.children.length > 6) this.region.firstElementChild?.remove();
  }

  /**
   * Say what is new and whole of a text that grows.
   * @param {object} whose
   * @param {string} text
   * @param {boolean} over whether no more comes
   */
  follow(whose, text, over) {
    const from = this.told.get(whose) ?? 0;
    const fresh = text.slice(from);
    let end = over ? fresh.length : Math.max(...[". ", "! ", "? ", "\n"].map((mark) => fresh.lastIndexOf(mark) + 1));
    if (!end && fresh.length > LONG) end = fresh.lastIndexOf(" ");
    if (end <= 0) return;
    this.told.set(whose, from + end);
    const words = fresh.slice(0, end).replace(/[*_`#>|]+/g, " ").trim();
    if (words) this.say(words);
  }
}
