// @ts-check
// A request as curl and as Python, ready to paste and run. Pure. Media are read from files by name, not inlined as base64.

import { mediaOf, withMedia } from "./conversation.js";

const KEY = "SWITCHYARD_API_KEY";
const MARK = "\uE000"; // stands around a medium's number until it is replaced; of the private use area
const OPENAI = new Set([
  "model", "messages", "max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop",
  "n", "stream", "stream_options", "response_format", "logit_bias",
]);

/** @param {string} text */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Escape the special characters of an unquoted here-document. @param {string} text */
const escaped = (text) => text.replace(/[\\$`]/g, "\\$&");

/** @param {string} name */
const path = (name) => (name.startsWith("-") ? `./${name}` : name);

/**
 * @param {any} request of {@link requestOf}
 * @param {{origin: string, keyed: boolean, stream: boolean}} where
 */
export function curl(request, { origin, keyed, stream }) {
  const media = mediaOf(request);
  const body = withMedia(stream ? { ...request, stream: true } : request,
    (medium, prefix) => `${prefix}${MARK}${media.indexOf(medium)}${MARK}`);
  const text = JSON.stringify(body, null, 2);
  const lines = [
    `curl ${stream ? "-sN" : "-s"} ${quoted(`${origin}/v1/chat/completions`)} \\`,
    ...(keyed ? [`  -H "Authorization: Bearer $${KEY}" \\`] : []),
    "  -H 'Content-Type: application/json' \\",
  ];
  if (!media.length) return [...lines, `  -d ${quoted(text)}`].join("\n");
  // Media are too large for an argument; in a here-document the shell inserts the files.
  const filled = escaped(text).replace(new RegExp(`${MARK}(\\d+)${MARK}`, "g"),
    (_, number) => `$(base64 < ${quoted(path(media[Number(number)].name))} | tr -d '\\r\\n')`);
  return [...lines, "  -d @- <<REQUEST", filled, "REQUEST"].join("\n");
}

/**
 * @param {any} request of {@link requestOf}
 * @param {{origin: string, keyed: boolean, stream: boolean}} where
 */
export function python(request, { origin, keyed, stream }) {
  const some = mediaOf(request).length > 0;
  const body = withMedia(request, (medium, prefix) => new Code(
    `${prefix ? `${JSON.stringify(prefix)} + ` : ""}encoded(${JSON.stringify(medium.name)})`));
  const own = Object.entries(body).filter(([name]) => !OPENAI.has(name));
  const fields = Object.entries(body).filter(([name]) => OPENAI.has(name));
  if (own.length) fields.push(["extra_body", Object.fromEntries(own)]);
  if (stream) fields.push(["stream", true]);
  const imports = [...(some ? ["import base64"] : []), ...(keyed ? ["import os"] : [])];
  const key = keyed ? `os.environ["${KEY}"]` : '"none"';
  return [
    ...imports, ...(imports.length ? [""] : []),
    "from openai import OpenAI", "",
    `client = OpenAI(base_url="${origin}/v1", api_key=${key})`, "",
    ...(some ? ["", "def encoded(path):", '    with open(path, "rb") as file:',
      "        return base64.b64encode(file.read()).decode()", "", ""] : []),
    `${stream ? "stream" : "answer"} = client.chat.completions.create(`,
    ...fields.map(([name, value]) => `    ${name}=${literal(value, 4)},`),
    ")",
    ...(stream ? ["for chunk in stream:", "    if chunk.choices:",
      '        print(chunk.choices[0].delta.content or "", end="", flush=True)', "print()"]
      : ["print(answer.choices[0].message.content)"]),
  ].join("\n");
}

/** A Python expression, written unquoted. */
class Code {
  /** @param {string} text */
  constructor(text) { this.text = text; }
}

/** A value as a Python literal. @param {any} value @param {number} margin @returns {string} */
function literal(value, margin) {
  if (value instanceof Code) return value.text;
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value); // a string of JSON is one of Python too
  const pad = " ".repeat(margin + 4);
  const list = Array.isArray(value);
  const entries = list ? value.map((one) => literal(one, margin + 4))
    : Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one, margin + 4)}`);
  const [open, close] = list ? "[]" : "{}";
  const short = `${open}${entries.join(", ")}${close}`;
  if (short.length + margin < 88 && !short.includes("\n")) return short;
  return `${open}\n${entries.map((one) => `${pad}${one},\n`).join("")}${" ".repeat(margin)}${close}`;
}
