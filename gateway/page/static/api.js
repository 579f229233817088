// Calls of the API. An error response is thrown as a Problem.

export class Problem extends Error {
  constructor(status, body) {
    super(body?.detail || body?.title || (status ? `The service answered ${status}` : "The service is not reachable"));
    this.status = status;
    this.code = body?.code;
    this.errors = body?.errors ?? [];
  }
}

const TIMEOUT_MS = 30_000;
/** Dispatches `signed-out` after a 401; the page then shows the sign-in. */
export const signedOut = new EventTarget();

/** `body`: a value to be sent as JSON, or a Blob, which the browser reads piece by piece as it sends it. */
export async function call(method, path, { body, headers, signal } = {}) {
  const answer = await request(method, path, { headers, signal: signal ?? AbortSignal.timeout(TIMEOUT_MS), ...payload(body, headers) });
  const found = await json(answer);
  if (answer.ok) return found;
  if (answer.status === 401 && path !== "/api/session") signedOut.dispatchEvent(new Event("signed-out"));
  throw new Problem(answer.status, found);
}

function payload(body, headers) {
  if (body === undefined || body instanceof Blob) return { body };
  return { body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...headers } };
}

async function request(method, path, options) {
  try {
    return await fetch(path, { method, ...options });
  } catch {
    throw new Problem(0);
  }
}

async function json(answer) {
  try {
    return await answer.json();
  } catch {
    return null;
  }
}

export const jobPath = (id, rest = "") => `/api/jobs/${encodeURIComponent(id)}${rest}`;
export const batchPath = (id, rest = "") => `/api/batches/${encodeURIComponent(id)}${rest}`;

/** An idempotency key: a request repeated after a lost response creates one job only. */
export function newKey() {
  return `page-${Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("")}`;
}
