// @ts-check
// Announces a streamed answer to screen readers in whole sentences. Owns the page's polite live region.

/** Characters without a sentence's end after which the text is cut at a space. */
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
   * Say the new whole sentences of a growing text.
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
