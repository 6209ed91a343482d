// @ts-check
// What this browser keeps between visits: draft, system prompt, parameters, models. Never media or answers.

const NAME = "switchyard.playground";

/** @typedef {{draft?: string, system?: string, parameters?: Record<string, string>, models?: string[], compare?: boolean,
 *   plain?: boolean}} Kept */

/** @returns {Kept} */
export function kept() {
  try {
    const found = JSON.parse(localStorage.getItem(NAME) ?? "{}");
    return found && typeof found === "object" ? found : {};
  } catch {
    return {}; // damaged, or the browser keeps nothing
  }
}

/** @param {Kept} changes */
export function keep(changes) {
  try {
    localStorage.setItem(NAME, JSON.stringify({ ...kept(), ...changes }));
  } catch {
    // A private window may refuse: then nothing is kept.
  }
}
