// @ts-check
// Keeps a list of elements in step with a list of things, each by its key: what stays is not made anew, so that focus,
// hover and transitions survive a change of the rest.

/** @type {WeakMap<Element, Map<string, Element>>} */
const known = new WeakMap();

/**
 * Makes `parent`'s children those of `items`, in order. `make` builds one, `update` is called for each; `leave` is given
 * those that are no longer wanted and has to remove them, at once or after a while.
 * @template T
 * @param {Element} parent @param {T[]} items
 * @param {{key: (item: T) => string, make: (item: T) => Element, update?: (element: any, item: T) => void,
 *   leave?: (element: Element) => void}} how
 */
export function updateKeyedList(parent, items, { key, make, update = () => {}, leave = (element) => element.remove() }) {
  const before = known.get(parent) ?? new Map();
  const now = new Map();
  const wanted = new Set(items.map(key));
  const gone = [...before].filter(([name]) => !wanted.has(name)).map(([, element]) => element);
  for (const element of gone) element.setAttribute("data-leaving", "");
  let place = next(parent.firstElementChild);
  for (const item of items) {
    const name = key(item);
    const element = before.get(name) ?? make(item);
    now.set(name, element);
    update(element, item);
    if (element === place) place = next(element.nextElementSibling);
    else parent.insertBefore(element, place);
  }
  known.set(parent, now);
  gone.forEach(leave);
}

/** The next one that is not leaving. @param {Element | null} element */
function next(element) {
  let found = element;
  while (found?.hasAttribute("data-leaving")) found = found.nextElementSibling;
  return found;
}
