// @ts-check
// Requests to the gateway. Every error is an ApiError; a 401 dispatches "signedout" and leaves the page as it is.

/** A refusal by the gateway; `status` 0 means that it was not reached. `retryAfter` is in seconds, or null. */
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
 * Sends a request and returns the response itself, for streams.
 * @param {string} method @param {string} path @param {any} [body] @param {{signal?: AbortSignal, headers?: Record<string, string>}} [options]
 * @returns {Promise<Response>} @throws {ApiError} or an AbortError when `signal` aborts it.
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
    // Not JSON, such as a proxy's error page: the status has to do.
  }
  return new ApiError(response.status, title, message, wait > 0 ? wait : null);
}
