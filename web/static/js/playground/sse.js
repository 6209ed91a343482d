// @ts-check
// Parses server-sent events of a fetched response: EventSource cannot POST. Does not know what the events mean.

/** The connection was lost in the middle of a stream. */
export class Cut extends Error {}

/**
 * Yield a stream's events as they come, and its comments as events named "comment".
 * @param {ReadableStream<Uint8Array>} stream
 * @throws {Cut} or an AbortError when the page aborts it
 * @returns {AsyncGenerator<{event: string, data: string}>}
 */
export async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let name = "";
  /** @type {string[]} */
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new Cut("The connection was lost in the middle of the answer.");
      });
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = rest.split("\n");
      rest = lines.pop() ?? "";
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line === "") {
          if (data.length) yield { event: name || "message", data: data.join("\n") };
          name = "";
          data = [];
        } else if (line.startsWith(":")) {
          yield { event: "comment", data: line.slice(1).trim() };
        } else {
          const colon = line.indexOf(":");
          const field = colon < 0 ? line : line.slice(0, colon);
          const said = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
          if (field === "event") name = said;
          else if (field === "data") data.push(said);
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever leaves early wants no more of it
  }
}
