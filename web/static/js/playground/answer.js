// @ts-check
// The card of one answer, while it is streamed and afterwards. Sends no requests.

import { h } from "../dom.js";
import { icon } from "../icons.js";
import { render } from "./markdown.js";

/** @typedef {import('./ask.js').Answer} Answer */
/** @typedef {{again: () => void, code: () => void, stop: () => void, formatted: (plain: boolean) => void}} Acts */

export class AnswerCard {
  /** @param {Answer} answer @param {Acts} acts @param {boolean} plain whether Markdown is shown as it is written */
  constructor(answer, acts, plain) {
    this.answer = answer;
    this.plain = plain;
    this.began = performance.now();
    this.renderAgain = 0; // not before, while the answer is streamed
    this.waitWords = h("span", {});
    this.waitTime = h("span", { class: "pg-time" });
    this.bar = /** @type {any} */ (h("progress", { max: "1", "aria-label": `Loading ${answer.model}` }));
    this.wait = h("div", { class: "pg-wait" }, h("span", { class: "pg-spinner", "aria-hidden": "true" }), this.waitWords, this.waitTime, this.bar);
    this.thinkingTitle = h("span", {}, "Reasoning");
    this.thinkingText = h("div", { class: "pg-reasoning" });
    this.thinking = h("details", { class: "pg-thinking", hidden: true }, h("summary", {}, this.thinkingTitle), this.thinkingText);
    this.text = h("div", { class: "pg-text" });
    this.sound = h("div", { class: "pg-sound", hidden: true });
    this.problem = h("div", { class: "pg-problem", hidden: true });
    this.stats = h("dl", { class: "pg-stats" });
    this.note = h("p", { class: "pg-note", hidden: true });
    this.left = answer.left ? h("p", { class: "pg-note" }, answer.left === 1 ? "A file of an earlier question was left out: a request has no room for all of them."
      : `${answer.left} files of earlier questions were left out: a request has no room for all of them.`) : "";
    this.stop = button("stop", "Stop this answer", acts.stop);
    this.copy = button("copy", "Copy the answer", () => this.copied());
    this.again = button("refresh", "Ask again", acts.again);
    this.code = button("code", "Show as code", acts.code);
    this.format = h("button", { type: "button", class: "button quiet small" });
    this.format.addEventListener("click", () => { acts.formatted(this.plain = !this.plain); this.update(); });
    this.acts = h("div", { class: "pg-acts" }, this.copy, this.again, this.code, this.format);
    this.retry = h("button", { type: "button", class: "button small" }, "Try again");
    this.retry.addEventListener("click", acts.again);
    this.element = h("article", { class: "pg-answer", "aria-label": `Answer of ${answer.model}` },
      h("header", {}, h("span", { class: "pg-who" }, answer.model), this.stop), this.left,
      this.wait, this.thinking, this.text, this.sound, this.problem, this.note, h("footer", {}, this.stats, this.acts));
    this.clock = window.setInterval(() => this.tick(), 1000);
    this.update();
  }

  /** Show the answer's current state. */
  update() {
    const { answer } = this;
    const over = ["done", "stopped", "failed"].includes(answer.state);
    this.element.dataset.state = answer.state;
    this.element.setAttribute("aria-busy", String(!over));
    this.showWait();
    this.thinking.hidden = !answer.reasoning;
    this.thinkingText.textContent = answer.reasoning.trim();
    this.thinkingTitle.textContent = this.thoughtFor(over);
    this.text.classList.toggle("is-plain", this.plain);
    this.showText(over);
    this.format.textContent = this.plain ? "Markdown" : "Plain text";
    this.stop.hidden = over;
    this.acts.hidden = !over;
    this.copy.hidden = this.format.hidden = !answer.text;
    if (over) this.finish();
  }

  /** Shows Markdown, or the text as it is written: on request, and when an answer is too strange for the lexer. @param {boolean} over */
  showText(over) {
    const { text } = this.answer;
    const began = performance.now();
    if (!this.plain && !over && began < this.renderAgain) return;
    try {
      if (this.plain) this.text.textContent = text;
      else render(this.cleared(), text);
    } catch (error) {
      console.warn("not shown as Markdown:", error);
      this.text.textContent = text;
    }
    this.renderAgain = performance.now() + 4 * (performance.now() - began); // a slow text takes a fifth of the page's time
  }

  /** Return the text's element, without plain text in it. */
  cleared() {
    if (this.text.firstChild?.nodeType === Node.TEXT_NODE) this.text.replaceChildren();
    return this.text;
  }

  showWait() {
    const { wait } = this.answer;
    this.wait.hidden = !wait;
    if (!wait) return;
    this.waitWords.textContent = wait.words;
    this.bar.hidden = wait.fraction === null;
    if (wait.fraction !== null) this.bar.value = wait.fraction;
  }

  tick() {
    if (!this.element.isConnected) { clearInterval(this.clock); return; }
    const seconds = Math.floor((performance.now() - this.began) / 1000);
    this.waitTime.textContent = seconds ? `${seconds} s` : "";
  }

  /** @param {boolean} over */
  thoughtFor(over) {
    const { thought, timings } = this.answer;
    if (thought === null && !over) return "Reasoning…";
    const seconds = thought === null ? timings?.total : thought - (timings?.first_token ?? 0);
    return seconds > 0 ? `Reasoned for ${short(seconds)}` : "Reasoning";
  }

  finish() {
    const { answer } = this;
    clearInterval(this.clock);
    if (answer.sound && !answer.soundUrl) {
      answer.soundUrl = URL.createObjectURL(answer.sound);
      this.sound.hidden = false;
      const player = /** @type {any} */ (h("audio", { controls: true, src: answer.soundUrl, "aria-label": `${answer.model} speaks its answer` }));
      this.sound.replaceChildren(player);
      player.play()?.catch(() => {}); // browsers may want a click first
    }
    this.stats.replaceChildren(...figures(answer).map(([term, value, title]) => h("div", title ? { title } : {}, h("dt", {}, term), h("dd", {}, value))));
    this.note.hidden = !answer.note;
    this.note.textContent = answer.note;
    if (answer.state === "failed") this.fail(/** @type {any} */ (answer.error));
    else if (answer.state === "stopped") this.say("Stopped.");
    else if (answer.finish === "length") this.say("Cut at the limit of tokens. Raise “Max tokens” for more.");
    else if (!answer.text && !answer.sound) this.say(answer.reasoning ? "It reasoned and then said nothing." : "The answer is empty.");
  }

  /** @param {string} words */
  say(words) {
    this.problem.hidden = false;
    this.problem.className = "pg-problem is-quiet";
    this.problem.textContent = words;
  }

  /** @param {any} error */
  fail(error) {
    this.problem.hidden = false;
    this.problem.className = "pg-problem is-bad";
    this.problem.setAttribute("role", "alert");
    const message = h("p", {}, error?.message ?? "Something went wrong.");
    this.problem.replaceChildren(message, this.retry);
    let left = Math.ceil(error?.retryAfter ?? 0);
    if (left <= 0) return;
    const count = () => {
      this.retry.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
      /** @type {any} */ (this.retry).disabled = left > 0;
    };
    count();
    const clock = setInterval(() => {
      left -= 1;
      count();
      if (left <= 0 || !this.element.isConnected) clearInterval(clock);
    }, 1000);
  }

  async copied() {
    await navigator.clipboard.writeText(this.answer.text);
    this.copy.classList.add("is-done");
    setTimeout(() => this.copy.classList.remove("is-done"), 1200);
  }
}

/** @param {string} name @param {string} title @param {() => void} act */
function button(name, title, act) {
  const made = h("button", { type: "button", class: "button quiet small icon-only", "aria-label": title, title }, icon(name));
  made.addEventListener("click", act);
  return made;
}

/** @param {number} seconds */
const short = (seconds) => (seconds < 1 ? `${Math.round(seconds * 1000)} ms` : seconds < 10 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds)} s`);

/** The answer's figures: term, value, and what it means. @param {Answer} answer @returns {[string, string, string?][]} */
function figures({ timings, usage, swap, device }) {
  if (!timings) return [];
  /** @type {[string, string, string?][]} */
  const found = [["First token", short(timings.first_token), "From the request to the first token, waiting included"]];
  const making = timings.total - timings.first_token;
  if (usage && usage.completion_tokens > 1 && making > 0) {
    found.push(["Speed", `${((usage.completion_tokens - 1) / making).toFixed(making > 10 ? 0 : 1)} tokens/s`, "After the first token"]);
  }
  found.push(["Total", short(timings.total)]);
  if (usage) found.push(["Tokens", `${usage.prompt_tokens} + ${usage.completion_tokens}`, "Of the prompt, and of the answer with its reasoning"]);
  if (timings.queued >= 0.05) found.push(["Waited", short(timings.queued), "For its media to be read and for its turn, without the load"]);
  const gone = swap?.evicted?.length ? `, evicted ${swap.evicted.join(", ")}` : "";
  found.push(["Swap", swap?.loaded ? `loaded in ${short(timings.load)}${gone}` : "none", "Whether the model had to be loaded for this answer, and which models had to go for it"]);
  if (device) found.push(["On", device]);
  return found;
}
