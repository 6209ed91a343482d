// @ts-check
// Markdown as models write it, made into elements: headings, lists, quotes, tables, code, emphasis, links.
// Everything is built as nodes, so no answer can bring markup of its own. What it does not know stays as it is written.

import { h } from "../dom.js";

/** @typedef {{kind: string, lines: string[], info?: string}} Block */

const DEEPEST = 20; // quotes in quotes and lists in lists; what is deeper stays as it is written
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;

/**
 * Show Markdown in an element. Called again with more of the same text, it leaves the blocks that did not change.
 * @param {HTMLElement} element
 * @param {string} text
 * @param {number} [depth] in how many quotes it is
 */
export function render(element, text, depth = 0) {
  const made = blocks(text);
  made.forEach((block, place) => {
    const key = `${block.kind}\n${block.info ?? ""}\n${block.lines.join("\n")}`;
    const old = /** @type {any} */ (element.children[place]);
    if (old?.markdown === key) return;
    const node = /** @type {any} */ (nodeOf(block, depth));
    node.markdown = key;
    if (old) old.replaceWith(node);
    else element.append(node);
  });
  while (element.children.length > made.length) element.lastElementChild?.remove();
}

/** Split text into blocks. An unclosed fence goes to the end: it may still be coming. @param {string} text */
export function blocks(text) {
  /** @type {Block[]} */
  const found = [];
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  for (let at = 0; at < lines.length;) {
    const line = lines[at];
    const fence = /^\s{0,3}(`{3,}|~{3,})\s*([^`]*)$/.exec(line);
    if (fence) {
      let end = at + 1;
      while (end < lines.length && !lines[end].trim().startsWith(fence[1])) end += 1;
      const written = lines.slice(at + 1, end);
      if (end === lines.length && written[written.length - 1] === "") written.pop(); // more may come
      found.push({ kind: "code", info: fence[2].trim(), lines: written });
      at = end + 1;
    } else if (!line.trim()) {
      at += 1;
    } else if (/^#{1,6}\s/.test(line)) {
      found.push({ kind: "heading", lines: [line] });
      at += 1;
    } else if (/^\s{0,3}([-*_])(\s*\1){2,}\s*$/.test(line)) {
      found.push({ kind: "rule", lines: [line] });
      at += 1;
    } else {
      const kind = ITEM.test(line) ? "list" : /^\s{0,3}>/.test(line) ? "quote" : isTable(lines, at) ? "table" : "text";
      let end = at + 1;
      while (end < lines.length && goesOn(kind, lines, at, end)) end += 1;
      found.push({ kind, lines: lines.slice(at, end) });
      at = end;
    }
  }
  return found;
}

/** Whether a block that began at `from` has the line `at` too. @param {string} kind @param {string[]} lines @param {number} from @param {number} at */
function goesOn(kind, lines, from, at) {
  const line = lines[at];
  if (kind === "list" && !line.trim()) return ITEM.test(lines[at + 1] ?? "") && goesOn(kind, lines, from, at + 1); // a loose list
  if (kind === "list" && /^\S/.test(line) && ITEM.test(line) && isOrdered(line) !== isOrdered(lines[from])) return false;
  if (!line.trim() || /^\s{0,3}(`{3,}|~{3,})/.test(line) || /^#{1,6}\s/.test(line)) return false;
  if (kind === "quote") return /^\s{0,3}>/.test(line);
  if (kind === "table") return line.includes("|");
  return kind === "list" || !(ITEM.test(line) || /^\s{0,3}>/.test(line) || isTable(lines, at));
}

/** @param {string} item */
const isOrdered = (item) => /^\s*\d/.test(item);

/** @param {string[]} lines @param {number} at */
function isTable(lines, at) {
  return lines[at].includes("|") && /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)+\|?\s*$/.test(lines[at + 1] ?? "");
}

/** @param {Block} block @param {number} depth @returns {HTMLElement} */
function nodeOf(block, depth) {
  const { kind, lines } = block;
  if (kind === "code") return code(lines.join("\n"), block.info ?? "");
  if (kind === "rule") return h("hr", {});
  if (kind === "heading") {
    const [, marks, words] = /^(#{1,6})\s+(.*?)\s*#*$/.exec(lines[0]) ?? ["", "#", lines[0]];
    return h(`h${Math.min(6, marks.length + 2)}`, {}, ...inline(words)); // below those of the page
  }
  if (kind === "quote" && depth < DEEPEST) {
    const quote = h("blockquote", {});
    render(quote, lines.map((line) => line.replace(/^\s{0,3}>\s?/, "")).join("\n"), depth + 1);
    return quote;
  }
  if (kind === "table") return table(lines);
  if (kind === "list") return list(lines);
  return h("p", {}, ...broken(lines));
}

/** @param {string[]} lines */
function broken(lines) {
  return lines.flatMap((line, place) => [...(place ? [h("br", {})] : []), ...inline(line.trim())]);
}

/** @param {string} text @param {string} language */
function code(text, language) {
  const copy = h("button", { type: "button", class: "pg-copy", "aria-label": "Copy this code" }, "Copy");
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
  const name = h("span", {}, language || "code");
  return h("figure", { class: "pg-code" }, h("figcaption", {}, name, copy),
    h("pre", { tabindex: "0" }, h("code", {}, text)));
}

/** @param {string[]} lines */
function table(lines) {
  const cells = (/** @type {string} */ line) => line.trim().replace(/^\||\|$/g, "").split("|").map((one) => one.trim());
  const row = (/** @type {string} */ line, /** @type {string} */ tag) => h("tr", {}, ...cells(line).map((one) => h(tag, {}, ...inline(one))));
  return h("div", { class: "pg-table", tabindex: "0" }, h("table", {}, h("thead", {}, row(lines[0], "th")),
    h("tbody", {}, ...lines.slice(2).map((line) => row(line, "td")))));
}

/** A list, with the lists inside it by their indentation. @param {string[]} lines @param {number} [depth] */
function list(lines, depth = 0) {
  const first = /** @type {RegExpExecArray} */ (ITEM.exec(lines[0]));
  const margin = first[1].length;
  const ordered = /\d/.test(first[2]);
  const whole = h(ordered ? "ol" : "ul", ordered && parseInt(first[2], 10) !== 1 ? { start: parseInt(first[2], 10) } : {});
  /** @type {string[][]} */
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= margin + 1) items.push([item[3]]);
    else if (line.trim()) items[items.length - 1].push(line);
  }
  for (const [words, ...inner] of items) {
    const nested = depth < DEEPEST ? inner.findIndex((line) => ITEM.test(line)) : -1;
    const own = nested < 0 ? inner : inner.slice(0, nested);
    const item = h("li", {}, ...broken([words, ...own]));
    if (nested >= 0) item.append(list(inner.slice(nested), depth + 1));
    whole.append(item);
  }
  return whole;
}

const INLINE = /(?<!`)(`+)(?!`)([\s\S]*?[^`])\1(?!`)|\*\*(?=\S)(.+?)\*\*|__(?=\S)(.+?)__|(?<![\w*])\*(?=\S)([^*]+?)(?<=\S)\*(?![\w*])|(?<![\w])_(?=\S)([^_]+?)_(?!\w)|~~(.+?)~~|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)|\\([\\`*_{}[\]()#+.!~>|-])/;

/** Return the nodes of a line. @param {string} text @returns {(Node|string)[]} */
function inline(text) {
  /** @type {(Node|string)[]} */
  const nodes = [];
  let rest = text;
  for (let found = INLINE.exec(rest); found; found = INLINE.exec(rest)) {
    if (found.index) nodes.push(rest.slice(0, found.index));
    const [all, , tick, strong, alsoStrong, em, alsoEm, gone, words, address, escaped] = found;
    if (tick !== undefined) nodes.push(h("code", {}, tick.trim()));
    else if (strong ?? alsoStrong) nodes.push(h("strong", {}, ...inline(strong ?? alsoStrong)));
    else if (em ?? alsoEm) nodes.push(h("em", {}, ...inline(em ?? alsoEm)));
    else if (gone) nodes.push(h("s", {}, ...inline(gone)));
    else if (address) nodes.push(h("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, words));
    else nodes.push(escaped);
    rest = rest.slice(found.index + all.length);
  }
  if (rest) nodes.push(rest);
  return nodes;
}
