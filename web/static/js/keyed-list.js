// @ts-check
// Updates a list of elements from a list of items by key. Elements of items that stay are kept, with their focus, hover and
// transitions.

/** @type {WeakMap<Element, Map<string, Element>>} */
const known = new WeakMap();

/**
 * Makes `parent`'s children those of `items`, in order. `make` builds an element, `update` is called for each, and `leave`
 * removes an element whose item is gone, at once or after a transition.
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

/** The first element from here on that is not leaving. @param {Element | null} element */
function next(element) {
  let found = element;
  while (found?.hasAttribute("data-leaving")) found = found.nextElementSibling;
  return found;
}
