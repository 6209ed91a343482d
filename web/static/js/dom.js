// @ts-check
// Builds and finds elements. Text is always set as text: no answer of a server is parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Makes an element. Attributes: `class` and others as in HTML, `onclick` and its like as functions, `dataset` and
 * `style` as objects, `true` for one without a value; null, undefined and false leave one out. Properties that are no
 * attributes (`value`, `checked`) are set as such. Children: elements, texts, numbers, arrays of them; null, undefined
 * and false are left out.
 * @param {string} tag @param {Record<string, any> | null} [attrs] @param {...any} children @returns {any}
 */
export function h(tag, attrs, ...children) {
  return fill(document.createElement(tag), attrs, children);
}

/** Makes an SVG element, by the same rules. @param {string} tag @param {any} [attrs] @param {...any} children @returns {any} */
export function svg(tag, attrs, ...children) {
  return fill(document.createElementNS(SVG, tag), attrs, children);
}

function fill(element, attrs, children) {
  for (const [name, value] of Object.entries(attrs ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.replace(/^on/, ""), value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, String(one));
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...nodes(children));
  return element;
}

function nodes(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false && child !== true);
}

/** The first element of a selector; within `root` if one is given. @param {string} selector @param {ParentNode} [root] @returns {any} */
export function $(selector, root = document) {
  return root.querySelector(selector);
}

/** All elements of a selector. @param {string} selector @param {ParentNode} [root] @returns {any[]} */
export function $$(selector, root = document) {
  return [...root.querySelectorAll(selector)];
}

/** Replaces an element's children. @param {Element} element @param {...any} children */
export function replace(element, ...children) {
  element.replaceChildren(...nodes(children));
}

/** Sets an element's text if it differs: a screen reader does not repeat unchanged text. @param {Element} element @param {unknown} text */
export function setText(element, text) {
  const said = String(text ?? "");
  if (element.textContent !== said) element.textContent = said;
}
