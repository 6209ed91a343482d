// @ts-check
// Shows the Markdown of an answer as elements. The vendored lexer of `marked` reads the text; this module builds the nodes,
// so an answer can never bring markup of its own. HTML and links to anything but web and mail stay as they are written.

import { Lexer, Tokenizer } from "../../vendor/marked/marked.esm.js";
import { h } from "../dom.js";

/** @typedef {any} Token of marked: `type`, `raw`, and by type `text`, `tokens`, `depth`, … */

const DEEPEST = 20; // levels of quotes, lists or emphasis; what is deeper stays as it is written
const SAFE_LINK = /^(https?:\/\/|mailto:)/i;

/** The lexer's rules, with a bound on nesting: an answer may repeat one sign thousands of times. */
class BoundedTokenizer extends Tokenizer {
  depth = 0;

  /** `3*4 = 2*6` is arithmetic. @param {string} src @param {string} masked @param {string} before */
  emStrong(src, masked, before = "") {
    return /^\*(?!\*)/.test(src) && /\w/.test(before) ? undefined : super.emStrong(src, masked, before);
  }
}
for (const name of ["blockquote", "list", "emStrong", "del", "link"]) {
  const rule = /** @type {any} */ (BoundedTokenizer.prototype)[name];
  Object.defineProperty(BoundedTokenizer.prototype, name, { value(/** @type {any[]} */ ...args) {
    if (this.depth >= DEEPEST) return undefined;
    this.depth += 1;
    try {
      return rule.apply(this, args);
    } finally {
      this.depth -= 1;
    }
  } });
}

/**
 * Show Markdown in an element. Called again with more of the same text, it keeps the elements of blocks that did not change.
 * @param {HTMLElement} element @param {string} text
 */
export function render(element, text) {
  const tokens = new Lexer({ gfm: true, breaks: true, tokenizer: new BoundedTokenizer() }).lex(text).filter(isShown);
  tokens.forEach((token, place) => {
    const key = JSON.stringify(token);
    const old = /** @type {any} */ (element.children[place]);
    if (old?.markdown === key) return;
    const node = block(token);
    node.markdown = key;
    if (old) old.replaceWith(node);
    else element.append(node);
  });
  while (element.children.length > tokens.length) element.lastElementChild?.remove();
}

const isShown = (/** @type {Token} */ token) => token.type !== "space" && token.type !== "def";

/** @param {Token} token @returns {any} */
function block(token) {
  switch (token.type) {
    case "heading": return h(`h${Math.min(6, token.depth + 2)}`, {}, inline(token.tokens)); // below the page's own headings
    case "hr": return h("hr", {});
    case "code": return code(token.text, token.lang);
    case "blockquote": return h("blockquote", {}, token.tokens.filter(isShown).map(block));
    case "list": return h(token.ordered ? "ol" : "ul", { start: token.ordered && token.start !== 1 && token.start }, token.items.map(item));
    case "table": return table(token);
    default: return h("p", {}, token.tokens ? inline(token.tokens) : written(token.raw));
  }
}

/** Text as it is written, line by line. @param {string} raw @returns {any[]} */
const written = (raw) => raw.trim().split("\n").map((line, place) => [place > 0 && h("br", {}), line]);

/** The text of an item has no paragraph around it, in a loose list either. @param {Token} token */
function item(token) {
  const nodes = token.tokens.filter(isShown).map((/** @type {Token} */ one, /** @type {number} */ place) =>
    (one.type === "checkbox" ? one.raw : one.type === "text" || (one.type === "paragraph" && !place) ? inline(one.tokens ?? [one]) : block(one)));
  return h("li", {}, nodes);
}

/** @param {Token} token */
function table({ header, rows }) {
  const row = (/** @type {string} */ tag, /** @type {Token[]} */ cells) => h("tr", {}, cells.map((cell) => h(tag, {}, inline(cell.tokens))));
  return h("div", { class: "pg-table", tabindex: "0" }, h("table", {}, h("thead", {}, row("th", header)),
    h("tbody", {}, rows.map((/** @type {Token[]} */ cells) => row("td", cells)))));
}

/** @param {string} text @param {string} [language] */
function code(text, language) {
  const copy = h("button", { type: "button", class: "pg-copy", "aria-label": "Copy this code" }, "Copy");
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
  return h("figure", { class: "pg-code" }, h("figcaption", {}, h("span", {}, language || "code"), copy),
    h("pre", { tabindex: "0" }, h("code", {}, text)));
}

/** @param {Token[]} tokens @returns {any[]} elements and strings */
function inline(tokens) {
  return tokens.map((token) => {
    switch (token.type) {
      case "strong": case "em": return h(token.type, {}, inline(token.tokens));
      case "del": return h("s", {}, inline(token.tokens));
      case "codespan": return h("code", {}, token.text);
      case "br": return h("br", {});
      case "escape": return token.text;
      case "text": return token.tokens ? inline(token.tokens) : token.raw;
      case "link": case "image":
        return SAFE_LINK.test(token.href)
          ? h("a", { href: token.href, target: "_blank", rel: "noopener noreferrer nofollow" }, token.tokens ? inline(token.tokens) : token.text || token.href)
          : token.raw;
      default: return token.raw;
    }
  });
}
