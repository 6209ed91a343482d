// @ts-check
// The icons of icons.svg, by name: menu close contrast key lock buffer check warning info trash refresh pin play stop
// eject download upload copy send mic camera image file plus code chevron external columns signal-off.

import { svg } from "./dom.js";

const SPRITE = new URL("../icons.svg", import.meta.url).pathname;

/** Makes an icon, hidden from screen readers: its button has a text or an aria-label. @param {string} name @returns {SVGElement} */
export function icon(name) {
  return svg("svg", { class: "icon", "aria-hidden": "true", focusable: "false" }, svg("use", { href: `${SPRITE}#${name}` }));
}
