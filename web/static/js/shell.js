// @ts-check
// The frame of every view: the menu on narrow screens, the theme, and the state of the live stream.

import { $, h, replace, setText } from "./dom.js";
import { live } from "./live.js";

const THEMES = ["system", "light", "dark"];

function theme() {
  const button = $("#theme-button");
  if (!button) return;
  const root = document.documentElement;
  const say = () => {
    const now = root.dataset.theme ?? "system";
    setText($("#theme-text"), { system: "System theme", light: "Light theme", dark: "Dark theme" }[now]);
  };
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "system") + 1) % THEMES.length];
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      if (next === "system") localStorage.removeItem("theme");
      else localStorage.setItem("theme", next);
    } catch {
      // Storage is switched off: the choice lasts as long as the page.
    }
    say();
    dispatchEvent(new Event("themechange"));
  });
  say();
}

function menu() {
  const button = $("#menu-button");
  if (!button) return;
  const panel = $("#menu");
  const set = (/** @type {boolean} */ open) => {
    panel.classList.toggle("open", open);
    button.setAttribute("aria-expanded", String(open));
  };
  button.addEventListener("click", () => set(!panel.classList.contains("open")));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !panel.classList.contains("open")) return;
    set(false);
    button.focus();
  });
  document.addEventListener("click", (event) => {
    if (event.target instanceof Node && !$(".masthead").contains(event.target)) set(false);
  });
  panel.addEventListener("focusout", (/** @type {FocusEvent} */ event) => {
    if (event.relatedTarget instanceof Node && !$(".masthead").contains(event.relatedTarget)) set(false);
  });
}

function connection() {
  const banner = $("#banner");
  if (!banner) return;
  const words = { connecting: "Connecting", open: "Live", lost: "Disconnected" };
  let shown = "";
  live.on("status", (status) => {
    const place = $("#connection");
    place.dataset.status = status;
    document.body.dataset.connection = status;
    setText($("#connection-text"), live.reason === "forbidden" ? "Not live" : live.reason === "signed-out" ? "Signed out" : words[status]);
    const now = status === "lost" ? live.reason : status === "open" ? "" : shown;
    if (now === shown) return;
    shown = now;
    banner.hidden = !now;
    banner.classList.toggle("caution", now !== "unreachable");
    if (now) replace(banner, ...warning(now));
  });
}

/** What the banner says of a lost stream. @param {string} reason */
function warning(reason) {
  if (reason === "forbidden") {
    return [h("span", null, h("strong", null, "No live figures. "),
      "Without API keys this server shows them only on its own machine; its operator can make a key: main.py keys create NAME.")];
  }
  if (reason === "signed-out") {
    // In another tab: this page keeps its drafts and answers.
    const there = `/ui/login?next=${encodeURIComponent(location.pathname + location.search)}`;
    return [h("span", null, h("strong", null, "Signed out. "), "The session is over. This page stays as it is, and goes on once you are signed in."),
      h("a", { class: "button small", href: there, target: "_blank" }, "Sign in")];
  }
  if (reason === "refused") {
    return [h("span", null, h("strong", null, "No live figures for now. "),
      `${live.message.replace(/^./, (letter) => letter.toUpperCase())}. It is being tried again.`),
      h("button", { class: "button small", type: "button", id: "retry", onclick: () => live.retry() }, "Try now")];
  }
  return [
    h("span", null, h("strong", null, "The server does not answer. "), "What you see is how it was; it is being tried again."),
    h("button", { class: "button small", type: "button", id: "retry", onclick: () => live.retry() }, "Try now"),
  ];
}

theme();
menu();
connection();
