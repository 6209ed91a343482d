// @ts-check
// Microphone and camera: recordings as the browser makes them (WebM, Ogg or MP4; the server reads all three), photos as JPEG.
// Owns the devices while they are used, and always releases them.

import { h } from "../dom.js";
import { duration } from "../format.js";

const FORMS = {
  audio: ["audio/webm;codecs=opus", "audio/ogg;codecs=opus", "audio/mp4"],
  video: ["video/webm;codecs=vp8,opus", "video/webm", "video/mp4"],
};
const REASONS = /** @type {Record<string, string>} */ ({
  NotAllowedError: "The browser was not allowed to use it. Permit it in the address bar and try again.",
  NotFoundError: "There is none on this machine.",
  NotReadableError: "Another program is using it.",
});

/** @param {unknown} error @param {string} device */
const explained = (error, device) => new Error(
  `The ${device} cannot be used. ${REASONS[/** @type {any} */ (error)?.name] ?? /** @type {any} */ (error)?.message ?? ""}`);

/** @param {MediaStreamConstraints} wanted @param {string} device */
async function open(wanted, device) {
  try {
    return await navigator.mediaDevices.getUserMedia(wanted);
  } catch (error) {
    throw explained(error, device);
  }
}

class Recording {
  /** @param {MediaStream} stream @param {'audio'|'video'} kind */
  constructor(stream, kind) {
    const mimeType = FORMS[kind].find((form) => MediaRecorder.isTypeSupported(form));
    this.recorder = new MediaRecorder(stream, mimeType ? { mimeType } : {});
    /** @type {Blob[]} */
    this.pieces = [];
    this.began = performance.now();
    this.recorder.ondataavailable = (event) => this.pieces.push(event.data);
    this.recorder.start(500);
  }

  get seconds() { return (performance.now() - this.began) / 1000; }

  /** @returns {Promise<Blob>} */
  stop() {
    return new Promise((resolve) => {
      const whole = () => resolve(new Blob(this.pieces, { type: this.recorder.mimeType }));
      if (this.recorder.state === "inactive") { whole(); return; } // its device went away
      this.recorder.onstop = whole;
      this.recorder.stop();
    });
  }
}

/** A name for a recording. @param {string} what @param {string} mime */
export function nameOf(what, mime) {
  const ending = /** @type {Record<string, string>} */ ({ jpeg: "jpg", "x-matroska": "mkv", "svg+xml": "svg" });
  const kind = mime.split(";")[0].split("/")[1] ?? "bin";
  return `${what}-${new Date().toTimeString().slice(0, 8).replaceAll(":", "")}.${ending[kind] ?? kind}`;
}

/**
 * Record from the microphone, with a strip in `place` to stop or give up. Returns the sound, or null if given up.
 * @param {HTMLElement} place @param {number} most seconds
 * @returns {Promise<Blob|null>}
 */
export async function microphone(place, most) {
  const stream = await open({ audio: true }, "microphone");
  const recording = new Recording(stream, "audio");
  const time = h("span", { class: "pg-time" }, "0:00");
  const done = h("button", { type: "button", class: "button small primary" }, "Stop and attach");
  const drop = h("button", { type: "button", class: "button small quiet" }, "Discard");
  const strip = h("div", { class: "pg-recording", role: "group", "aria-label": "Recording from the microphone" },
    h("span", { class: "pg-dot", "aria-hidden": "true" }), h("span", {}, "Recording"), time, done, drop);
  place.replaceChildren(strip);
  done.focus();
  const kept = await new Promise((resolve) => {
    done.addEventListener("click", () => resolve(true));
    drop.addEventListener("click", () => resolve(false));
    strip.addEventListener("keydown", (event) => { if (event.key === "Escape") { event.stopPropagation(); resolve(false); } });
    const tick = setInterval(() => {
      time.textContent = clock(recording.seconds);
      if (!strip.isConnected || recording.seconds >= most) { clearInterval(tick); resolve(strip.isConnected); }
    }, 250);
  });
  const blob = await recording.stop();
  stream.getTracks().forEach((track) => track.stop());
  strip.remove();
  return kept ? blob : null;
}

/** @param {number} seconds */
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

/**
 * Show the camera in a dialog; take a photo or a video. Returns null if the dialog was closed.
 * @param {boolean} photos whether a photo may be taken @param {boolean} videos whether a video may be
 * @param {boolean} sound whether a video is to have some @param {number} most seconds
 * @returns {Promise<{kind: 'image'|'video', blob: Blob}|null>}
 */
export async function camera(photos, videos, sound, most) {
  const stream = await open({ video: true, audio: videos && sound }, "camera")
    .catch((error) => (videos && sound ? open({ video: true }, "camera") : Promise.reject(error)));
  const view = /** @type {HTMLVideoElement} */ (h("video", { autoplay: true, playsinline: true, muted: true, "aria-label": "What the camera sees" }));
  view.muted = true;
  view.srcObject = stream;
  const photo = h("button", { type: "button", class: "button primary", hidden: !photos }, "Take a photo");
  const film = h("button", { type: "button", class: "button", hidden: !videos }, "Record a video");
  const close = h("button", { type: "button", class: "button quiet" }, "Cancel");
  const dialog = /** @type {HTMLDialogElement} */ (h("dialog", { class: "dialog pg-camera", "aria-label": "Camera" }, view,
    h("div", { class: "pg-row" }, photo, film, close)));
  document.body.append(dialog);
  dialog.showModal();
  /** @type {Recording|null} */
  let recording = null;
  /** @type {number|undefined} */
  let tick;
  try {
    return await new Promise((resolve, reject) => {
      dialog.addEventListener("cancel", () => resolve(null)); // at once; the close comes after keys that are pressed meanwhile
      dialog.addEventListener("close", () => resolve(null));
      close.addEventListener("click", () => resolve(null));
      photo.addEventListener("click", () => still(view).then((blob) => resolve({ kind: "image", blob }), reject));
      const finish = async () => {
        clearInterval(tick);
        const whole = recording;
        recording = null; // once is enough
        if (whole) resolve({ kind: "video", blob: await whole.stop() });
      };
      film.addEventListener("click", () => {
        if (tick) { void finish(); return; }
        const begun = recording = new Recording(stream, "video");
        photo.hidden = true;
        tick = window.setInterval(() => {
          film.textContent = `Stop and attach · ${duration(Math.floor(begun.seconds))}`;
          if (begun.seconds >= most) void finish();
        }, 250);
      });
    });
  } finally {
    clearInterval(tick);
    stream.getTracks().forEach((track) => track.stop());
    dialog.remove();
  }
}

/** Return the current frame, or the first one. @param {HTMLVideoElement} view @returns {Promise<Blob>} */
async function still(view) {
  if (view.readyState < view.HAVE_CURRENT_DATA) await new Promise((seen) => view.addEventListener("loadeddata", seen, { once: true }));
  const canvas = document.createElement("canvas");
  canvas.width = view.videoWidth;
  canvas.height = view.videoHeight;
  canvas.getContext("2d")?.drawImage(view, 0, 0);
  const blob = await new Promise((resolve) => { canvas.toBlob(resolve, "image/jpeg", 0.92); });
  if (!blob) throw new Error("The camera shows nothing yet.");
  return blob;
}
