// @ts-check
// Asks the gateway. Every error has one shape; that a session is over is told to the page, which stays as it is.

/** What the gateway refused, or that it could not be reached (`status` 0). `retryAfter` is in seconds, or null. */
export class ApiError extends Error {
  /** @param {number} status @param {string} title @param {string} message @param {number | null} retryAfter */
  constructor(status, title, message, retryAfter = null) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.title = title;
    this.retryAfter = retryAfter;
  }
}

/**
 * Sends a request and returns the JSON that comes back. `body` is sent as JSON; FormData and Blobs as they are.
 * @param {string} method @param {string} path @param {any} [body] @param {{signal?: AbortSignal}} [options]
 * @returns {Promise<any>} @throws {ApiError}
 */
export async function api(method, path, body, options = {}) {
  const response = await send(method, path, body, options);
  try {
    return await response.json();
  } catch {
    throw new ApiError(response.status, "Answer not understood", "The server did not answer with JSON.");
  }
}

/**
 * The same, but returns the response itself, for streams. Errors are thrown all the same.
 * @param {string} method @param {string} path @param {any} [body] @param {{signal?: AbortSignal, headers?: Record<string, string>}} [options]
 * @returns {Promise<Response>} @throws {ApiError} or, when `signal` ended it, an AbortError.
 */
export async function send(method, path, body, { signal, headers = {} } = {}) {
  const raw = body instanceof FormData || body instanceof Blob;
  const said = body === undefined || raw ? headers : { "Content-Type": "application/json", ...headers };
  let response;
  try {
    response = await fetch(path, {
      method, signal, headers: { Accept: "application/json, text/event-stream", ...said },
      body: body === undefined || raw ? body : JSON.stringify(body),
    });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "Not reached", "The server does not answer. Is it still running?");
  }
  if (response.status === 401) dispatchEvent(new Event("signedout"));
  if (!response.ok) throw await refusal(response);
  return response;
}

/** @param {Response} response */
async function refusal(response) {
  const wait = Number(response.headers.get("Retry-After"));
  let title = response.statusText || `Status ${response.status}`;
  let message = `The server, or what stands before it, answered ${[response.status, response.statusText].join(" ").trim()} and did not say why.`;
  try {
    const said = await response.json();
    if (typeof said.error === "string") [title, message] = [said.error, said.details ?? message];
    else if (said.error) [title, message] = [said.error.code ?? said.error.type ?? title, said.error.message ?? message];
  } catch {
    // No JSON, such as a proxy's page: its status has to do.
  }
  return new ApiError(response.status, title, message, wait > 0 ? wait : null);
}
