// @ts-check
// The playground: owns the conversation and the page's state, and connects its parts.

import { confirm, state, toastError } from "./dialog.js";
import { $, h, replace } from "./dom.js";
import { live } from "./live.js";
import { Announcer } from "./playground/announce.js";
import { Composer } from "./playground/composer.js";
import { leftOut, remembers, requestOf } from "./playground/conversation.js";
import { preview, release } from "./playground/media.js";
import { describe, load, offer, sharing } from "./playground/models.js";
import { Parameters } from "./playground/parameters.js";
import { keep, kept } from "./playground/store.js";

/** @typedef {import('./playground/conversation.js').Model} Model */
/** @typedef {import('./playground/conversation.js').Turn} Turn */

const EXAMPLES = {
  text: ["What is 17 + 25?", "What is the capital of France?", "Explain in two sentences what an LRU cache does."],
  image: ["What color is the shape?", "Describe this picture."],
  audio: ["Is the pitch rising or falling?", "Transcribe the speech."],
  video: ["Which way does it move?"],
};

const before = kept();
/** @type {Model[]} */
let models = [];
let listed = false; // whether the models are known; there may be none
let limits = /** @type {any} */ ({});
/** @type {Turn[]} */
let turns = [];
let comparing = Boolean(before.compare);
let editing = -1;
let sending = false;
let plain = Boolean(before.plain);
/** @type {Set<AbortController>} */
const running = new Set();
const selects = /** @type {HTMLSelectElement[]} */ ([$("#model-0"), $("#model-1")]);
const system = /** @type {HTMLTextAreaElement} */ ($("#system"));
const announcer = new Announcer($("#spoken"));
/** Loads the parts for asking and for code on first use: the page opens sooner. */
const asking = () => Promise.all([import("./playground/ask.js"), import("./playground/answer.js")]).catch(unloaded);
const showCode = async (/** @type {any} */ request) => (await import("./playground/code.js").catch(unloaded)).codeDialog(request);
/** @returns {never} */
function unloaded() {
  throw new Error("A part of this page could not be loaded. Try again once the server answers.");
}
const parameters = new Parameters($("#parameters"), before.parameters ?? {}, (values) => { keep({ parameters: values }); count(); });

const byId = (/** @type {string} */ id) => models.find((model) => model.id === id);
const chosen = () => /** @type {Model[]} */ (selects.slice(0, comparing ? 2 : 1).map((select) => byId(select.value)).filter(Boolean));

const composer = new Composer({
  chosen, all: () => models, limits: () => limits, send: () => void send(),
  drafted: (text) => keep({ draft: text }),
  switchTo: (model, kinds) => {
    const place = chosen().findIndex((one) => kinds.some((kind) => !one.inputs.includes(kind))); // replace the model that cannot take it
    selects[Math.max(0, place)].value = model.id;
    picked();
  },
}, before.draft ?? "");

// -- models ------------------------------------------------------------------------------------------------------------

/** @type {Promise<void>|null} */
let starting = null;

/** Fetch the models, one request at a time: a second, late list would undo a choice from the first. */
function start() {
  starting ??= list().finally(() => { starting = null; });
  return starting;
}

async function list() {
  try {
    ({ models, limits } = await load());
  } catch (error) {
    $("#models-problem").hidden = false;
    $("#models-problem-text").textContent = `The models could not be listed: ${/** @type {any} */ (error).message}`;
    return;
  }
  listed = true;
  $("#models-problem").hidden = true;
  comparing &&= models.length > 1;
  const wanted = before.models ?? [];
  const first = models.find((model) => model.state === "ready")?.id ?? models[0]?.id ?? "";
  offer(selects[0], models, wanted[0] ?? first);
  offer(selects[1], models, wanted[1] ?? models.find((model) => model.id !== selects[0].value)?.id ?? "");
  for (const select of selects) select.disabled = !models.length;
  $("#playground").setAttribute("aria-busy", "false");
  picked();
}

/** Show the chosen models and their states. */
function picked() {
  const now = chosen();
  keep({ models: selects.map((select) => select.value), compare: comparing });
  $("#column-1").hidden = !comparing;
  $("#playground").classList.toggle("is-comparing", comparing);
  $("#compare").setAttribute("aria-pressed", String(comparing));
  selects.forEach((select, place) => describe($(`#about-${place}`), byId(select.value)));
  const shared = comparing ? sharing(now) : "";
  $("#sharing").hidden = !shared;
  $("#sharing").textContent = shared;
  const forgetful = now.filter((model) => !remembers(model)).map((model) => model.id);
  $("#forgetful").hidden = !forgetful.length;
  $("#forgetful").textContent = `${forgetful.join(" and ")} answers one question at a time: it reads neither the system prompt nor what was said before.`;
  parameters.fit(now, limits);
  composer.show();
  if (!turns.length) empty();
  buttons();
}

/** Apply the models' states of a snapshot. @param {any} state */
function applySnapshot(state) {
  let changed = false;
  for (const { name, state: now } of state.models ?? []) {
    const model = byId(name);
    if (!model || model.state === now) continue;
    model.state = now;
    changed = true;
  }
  if (!changed) return;
  selects.forEach((select, place) => describe($(`#about-${place}`), byId(select.value)));
  $("#sharing").textContent = comparing ? sharing(chosen()) : "";
  $("#sharing").hidden = !$("#sharing").textContent;
}

/** Fetch the models' states after an answer: there may be no live stream. */
async function refresh() {
  try {
    const found = await load();
    applySnapshot({ models: found.models.map((model) => ({ name: model.id, state: model.state })) });
  } catch {
    // The banner says that the server is gone.
  }
}

// -- asking ------------------------------------------------------------------------------------------------------------

async function send() {
  if (running.size || sending || !models.length) return;
  const wrong = parameters.wrong();
  if (wrong) {
    wrong.closest("details").open = true;
    $("#settings").open = true;
    wrong.reportValidity();
    return;
  }
  const missing = composer.missing();
  if (missing.length) { composer.refuse(missing); composer.draft.focus(); return; }
  sending = true;
  const parts = await asking().finally(() => { sending = false; });
  if (editing >= 0) { turns = turns.slice(0, editing); editing = -1; draw(); }
  turns.push({ ...composer.take(), answers: [] });
  if (turns.length === 1) replace($("#turns"));
  $("#turns").append(shell(turns.length - 1));
  chosen().forEach((model, column) => { void answer(turns.length - 1, column, model, parts); });
}

/**
 * Have a turn answered by a model, in a column.
 * @param {number} place @param {number} column @param {Model} model @param {Awaited<ReturnType<typeof asking>>} parts
 */
async function answer(place, column, model, parts) {
  const [{ ask, unanswered }, { AnswerCard }] = parts;
  const turn = turns[place];
  const request = requestOf(turns.slice(0, place + 1), column, model, system.value, parameters.values(), limits);
  const one = unanswered(model.id, request);
  one.left = leftOut(request, turns.slice(0, place + 1), column, model);
  turn.answers[column] = one;
  const stop = new AbortController();
  const card = new AnswerCard(one, {
    again: () => void again(place, column), code: () => void showCode(request), stop: () => stop.abort(),
    formatted: (as) => { plain = as; keep({ plain }); },
  }, plain);
  const cell = $(`#turn-${place} .pg-answers`);
  if (cell.children[column]) release(cell.children[column]);
  if (cell.children[column]) cell.children[column].replaceWith(card.element);
  else cell.append(card.element);
  running.add(stop);
  buttons();
  announcer.say(`${model.id} was asked.`);
  const follow = follower(card.element);
  let frame = 0;
  let said = "";
  const changed = () => {
    if (!frame) frame = requestAnimationFrame(() => { frame = 0; card.update(); follow(); });
    announcer.follow(one, one.text, false);
    const words = one.wait?.fraction === null ? one.wait.words : "";
    if (words && words !== said) announcer.say(said = words);
  };
  try {
    await ask(one, stop.signal, changed);
    cancelAnimationFrame(frame);
    card.update();
    follow();
  } finally {
    running.delete(stop);
    buttons(); // the next question can be asked after any outcome
  }
  announcer.follow(one, one.text, true);
  announcer.say({ done: `${model.id} has answered.`, stopped: "Stopped.", failed: one.error?.message ?? "" }[one.state] ?? "");
  if (!running.size) void refresh();
}

/** Return a function that keeps a growing answer's end in view if it was in view before. @param {HTMLElement} element */
function follower(element) {
  let bottom = true;
  element.scrollIntoView({ block: "nearest" });
  const seen = () => { bottom = element.getBoundingClientRect().bottom - innerHeight < 240; };
  addEventListener("scroll", seen, { passive: true });
  return () => {
    if (!element.isConnected || element.dataset.state !== "answering") removeEventListener("scroll", seen);
    const below = element.getBoundingClientRect().bottom + $(".pg-foot").offsetHeight + 8 - innerHeight;
    if (bottom && below > 0) scrollBy({ top: below });
  };
}

/** @param {number} place @param {number} column */
async function again(place, column) {
  const model = byId(turns[place].answers[column].model);
  const after = turns.length - place - 1;
  if (running.size || !model) return;
  if (after && !await confirm({ title: "Ask this once more?", action: "Ask again", danger: true,
    text: `What follows was said to another answer: ${many(after)} after this one, with the answers, will be gone.` })) return;
  const parts = await asking();
  if (running.size || !turns[place]) return;
  turns.length = place + 1;
  draw();
  void answer(place, column, model, parts);
}

/** @param {number} questions */
const many = (questions) => (questions === 1 ? "the question" : `the ${questions} questions`);

function stopAll() {
  for (const one of running) one.abort();
}

// -- the conversation --------------------------------------------------------------------------------------------------

/** A turn without its answers. @param {number} place */
function shell(place) {
  const turn = turns[place];
  const edit = h("button", { type: "button", class: "button quiet small", onclick: () => revise(place) }, "Edit");
  return h("section", { class: "pg-turn", id: `turn-${place}`, "aria-label": `Question ${place + 1}` },
    h("div", { class: "pg-question" },
      h("h2", { class: "visually-hidden" }, `Question ${place + 1}`),
      turn.media.length ? h("div", { class: "pg-shown" }, turn.media.map((medium) => preview(medium, null))) : null,
      h("div", { class: "pg-said" }, edit, turn.text ? h("p", null, turn.text) : null)),
    h("div", { class: "pg-answers" }));
}

/** Remove the elements of turns that are gone. */
function draw() {
  for (const later of [...$("#turns").children].slice(turns.length)) {
    release(later);
    later.remove();
  }
  if (!turns.length) empty();
  buttons();
}

/** @param {number} place */
function revise(place) {
  if (running.size) return;
  editing = place;
  composer.put(turns[place].text, turns[place].media);
  composer.draft.focus();
  buttons();
}

async function clear() {
  if (!await confirm({ title: "Clear the conversation?", action: "Clear", danger: true,
    text: "Its questions, files and answers are kept nowhere else." })) return;
  stopAll();
  turns = [];
  editing = -1;
  draw();
  composer.draft.focus();
}

/** Show the placeholder before the first question. */
function empty() {
  const now = chosen();
  const kinds = /** @type {('text'|'image'|'audio'|'video')[]} */ (now[0]?.requires.length ? now[0].requires : now[0]?.inputs ?? ["text"]);
  const ideas = [...new Set([...kinds].sort((one, other) => Number(one === "text") - Number(other === "text")).flatMap((kind) => EXAMPLES[kind] ?? []))].slice(0, 4);
  const media = kinds.filter((kind) => kind !== "text");
  if (listed && !models.length) {
    replace($("#turns"), state({ title: "No model to ask", boxed: false, text: document.body.dataset.role === "user"
      ? "Your key may use none of this server's models. Whoever runs the server can allow it some."
      : "The catalog of this server is empty: models.yaml says which models there are." }));
    return;
  }
  replace($("#turns"), h("div", { class: "pg-empty" },
    h("h2", null, now.length > 1 ? `Ask ${now.map((model) => model.id).join(" and ")}` : now[0] ? `Ask ${now[0].id}` : "Ask a model"),
    h("p", { class: "lead" }, media.length ? `Drop ${media.join(", ").replace(/, ([^,]*)$/, " or $1")} anywhere on this page, or paste one.` : "Write a question, or begin with one of these."),
    h("ul", { class: "pg-ideas" }, ideas.map((idea) => h("li", null, h("button", {
      type: "button", class: "button small", onclick: () => { composer.put(idea, composer.media); composer.draft.focus(); },
    }, idea))))));
}

/** Enable the buttons that can be used now. */
function buttons() {
  const busy = running.size > 0;
  const focused = document.activeElement;
  $("#send").hidden = busy;
  $("#stop").hidden = !busy;
  if (focused === $("#send") || focused === $("#stop")) composer.draft.focus({ preventScroll: true }); // its button is gone
  $("#send").disabled = !models.length;
  $("#clear").disabled = !turns.length;
  $("#code").disabled = !models.length;
  $("#compare").disabled = busy || models.length < 2;
  for (const select of selects) select.disabled = busy || !models.length;
  $("#editing").hidden = editing < 0;
  if (editing >= 0) $("#editing-text").textContent = `Editing question ${editing + 1}: sending it replaces it and what came after it.`;
  [...document.querySelectorAll(".pg-turn")].forEach((turn, place) => turn.classList.toggle("is-edited", editing >= 0 && place >= editing));
}

/** Show the number of changed parameters on the folded settings. */
function count() {
  const changed = Object.keys(parameters.texts()).length + (system.value.trim() ? 1 : 0);
  $("#changed").hidden = !changed;
  $("#changed").textContent = `${changed} changed`;
  $("#reset").disabled = !changed;
}

// -- wiring ------------------------------------------------------------------------------------------------------------

system.value = before.system ?? "";
system.addEventListener("input", () => { keep({ system: system.value }); count(); });
for (const select of selects) select.addEventListener("change", picked);
$("#compare").addEventListener("click", () => { comparing = !comparing; picked(); });
$("#clear").addEventListener("click", () => void clear());
$("#reset").addEventListener("click", () => { system.value = ""; keep({ system: "" }); parameters.clear(); });
$("#stop").addEventListener("click", stopAll);
$("#models-again").addEventListener("click", () => void start());
$("#editing-cancel").addEventListener("click", () => { editing = -1; composer.put("", []); buttons(); });
$("#code").addEventListener("click", () => {
  const [model] = chosen();
  if (!model) return;
  const drafted = composer.draft.value.trim() || composer.media.length;
  const last = turns[turns.length - 1]?.answers[0]?.request;
  if (!drafted && last) { void showCode(last); return; }
  const turn = { text: composer.draft.value.trim() || "Hello", media: composer.media, answers: [] };
  void showCode(requestOf([...turns.slice(0, editing >= 0 ? editing : turns.length), turn], 0, model, system.value, parameters.values(), limits));
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running.size && !document.querySelector("dialog[open]")) { event.preventDefault(); stopAll(); }
});
/** @type {HTMLDetailsElement} */ ($("#settings")).open = matchMedia("(min-width: 62rem)").matches;
live.on("state", applySnapshot);
live.on("status", (status) => { if (status === "open" && !models.length) void start(); });
addEventListener("unhandledrejection", (event) => toastError(event.reason));
count();
buttons();
void start();
