// HTTP calls of the service: repeated while that may help, bounded in time and size.
//
// Only this module catches fetch's errors, and only this module converts the service's problems (RFC 9457) into
// exceptions.

import { decode, parseJson } from "./decode.js";
import * as errors from "./errors.js";
import { retryAfter } from "./retry-after.js";
import { TimeLimit, now, sleep, unlessAborted, within } from "./timing.js";

const { ApiError, ChatJobsError, ConfigurationError, InvalidRequest, ResponseTooLarge, ServiceUnavailable } = errors;

/** Most milliseconds that a `Retry-After` of the service is honoured for. */
const LONGEST_RETRY_AFTER = 60_000;
/** HTTP statuses after which a call is repeated. */
export const CALLS_REPEATED = new Set([429, 502, 503, 504]);
/** Whether this runs in Node (or in what imitates it), not in a browser. */
export const IN_NODE = typeof globalThis.process?.versions?.node === "string";

/**
 * Milliseconds to wait after a number of failures in a row; 0 failures: the connection had worked until it broke.
 * @typedef {(failures: number) => number} Backoff
 */

/** The codes of the service's problems that have an exception of their own. @type {Map<string, typeof ChatJobsError>} */
const KNOWN = new Map([
  ["job_id_taken", errors.JobIdConflict],
  ...[
    ...[errors.BatchFinished, errors.BatchNotFound, errors.ContentDeleted, errors.DeliveryNotFound],
    ...[errors.EndpointNotFound, errors.IdempotencyMismatch, errors.JobFinished, errors.JobNotFound],
    ...[errors.JobRunning, errors.NothingToResume, errors.PauseNotFound, errors.ScheduleNotFound],
    ...[errors.EventsExpired, errors.TooManyEndpoints, errors.WebhookUrlRefused],
  ].map((kind) => /** @type {[string, typeof ChatJobsError]} */ ([kind.code, kind])),
]);

/**
 * Milliseconds to wait, at random so that clients do not call together: up to 250, doubled per failure, at most 10 s.
 * @type {Backoff}
 */
export const exponential = (failures) => Math.random() * Math.min(10_000, 250 * 2 ** Math.min(failures, 10));

/**
 * @typedef {object} CallOptions
 * @property {Record<string, string>} [query]
 * @property {Uint8Array} [body] JSON
 * @property {string} [key] the idempotency key
 * @property {AbortSignal | null} [signal]
 */

/** @typedef {Omit<RequestInit, "headers"> & { headers?: Record<string, string>, duplex?: "half" }} Init */

/**
 * @typedef {object} HttpOptions
 * @property {string | null} [apiKey]
 * @property {number} timeout for a call with all its repetitions
 * @property {number} silence without a byte after which a connection counts as dead
 * @property {number} maxResponseBytes
 * @property {Backoff} backoff
 * @property {typeof globalThis.fetch} [fetch]
 */

/** Calls of the service, repeated while that may help; its errors and fetch's are thrown as ChatJobsError. */
export class Http {
  #base;
  /** @type {Record<string, string>} */
  #headers;
  #fetch;

  /**
   * @param {string} baseUrl
   * @param {HttpOptions} options
   */
  constructor(baseUrl, options) {
    this.#base = checkedBase(baseUrl);
    this.#headers = usualHeaders(options.apiKey ?? null);
    this.#fetch = options.fetch ?? ((/** @type {any} */ url, /** @type {any} */ init) => globalThis.fetch(url, init));
    this.timeout = options.timeout;
    this.silence = options.silence;
    this.maxResponseBytes = options.maxResponseBytes;
    this.backoff = options.backoff;
  }

  /**
   * The response of a call as a value of `shape`. Throws ApiError for another response, too.
   * @template T
   * @param {import("./decode.js").Shape<T>} shape
   * @param {string} method
   * @param {string} path
   * @param {CallOptions} [options]
   * @returns {Promise<T>}
   */
  async read(shape, method, path, options) {
    return known(shape, await this.call(method, path, options));
  }

  /**
   * The body of a successful response. Only calls that may be made twice are made here.
   *
   * Throws ServiceUnavailable once the time is up, ResponseTooLarge, ApiError and the service's errors.
   * @param {string} method
   * @param {string} path
   * @param {CallOptions} [options]
   * @returns {Promise<Uint8Array>}
   */
  async call(method, path, { query, body, key, signal } = {}) {
    /** @type {Record<string, string>} */
    const headers = body === undefined ? {} : { "Content-Type": "application/json" };
    if (key !== undefined) headers["Idempotency-Key"] = key;
    const deadline = now() + this.timeout;
    const init = { method, headers, body: /** @type {BodyInit | undefined} */ (body) };
    const late = new ServiceUnavailable(`the service did not answer within ${this.timeout / 1000} seconds`);
    let last = late;
    const attempt = async (/** @type {AbortSignal} */ inner) => this.#answer(path, query, init, inner);
    for (let failures = 1; ; failures++) {
      let wait;
      try {
        return await within(deadline - now(), signal, attempt, () => late);
      } catch (error) {
        if (error === late) throw last;
        if (!(error instanceof ServiceUnavailable)) throw error;
        last = error;
        wait = Math.max(this.backoff(failures), error.retryAfter ?? 0);
        if (now() + wait >= deadline) throw error;
      }
      await sleep(wait, signal);
    }
  }

  /**
   * @param {string} path
   * @param {Record<string, string> | undefined} query
   * @param {Init} init
   * @param {AbortSignal | null | undefined} signal
   */
  async #answer(path, query, init, signal) {
    const connection = await this.open(path, query, init, signal);
    try {
      const body = await this.body(connection);
      if (!connection.response.ok) throw failure(connection.response, body, CALLS_REPEATED);
      return body;
    } finally {
      connection.close();
    }
  }

  /**
   * The connection of a request whose response has begun; close it. Throws ServiceUnavailable.
   * @param {string} path
   * @param {Record<string, string> | undefined} query
   * @param {Init} init `Authorization: ""` sends no key
   * @param {AbortSignal | null | undefined} signal
   * @param {number} [silence]
   */
  async open(path, query, init, signal, silence = this.silence) {
    const headers = new Headers({ ...this.#headers, ...init.headers });
    if (!headers.get("Authorization")) headers.delete("Authorization");
    const search = query && Object.keys(query).length ? `?${new URLSearchParams(query)}` : "";
    const wanted = { ...init, headers, redirect: /** @type {const} */ ("manual"), cache: /** @type {const} */ ("no-store") };
    return Connection.open(this.#fetch, `${this.#base}${path}${search}`, wanted, silence, signal);
  }

  /**
   * The whole body of a response, at most `limit` bytes.
   *
   * Throws ResponseTooLarge, ServiceUnavailable, and ApiError for a compressed response, which was not asked for.
   * @param {Connection} connection
   * @param {number} [limit]
   */
  async body(connection, limit = this.maxResponseBytes) {
    refuseCompressed(connection.response);
    const pieces = [];
    let size = 0;
    for (let piece; (piece = await connection.read()); ) {
      pieces.push(piece);
      this.check((size += piece.length), limit);
    }
    return joined(pieces, size);
  }

  /**
   * Throws ResponseTooLarge if `size` is over `limit` bytes.
   * @param {number} size
   * @param {number} [limit]
   */
  check(size, limit = this.maxResponseBytes) {
    if (size > limit) throw new ResponseTooLarge(`the service's answer is larger than the ${limit} bytes that this client reads`);
  }
}

/** A request and its response, read piece by piece. `close` it. */
export class Connection {
  #limit;
  #silence;
  /** @type {ReadableStreamDefaultReader<Uint8Array> | undefined} */
  #reader;
  /** @type {Response} */
  response = Response.error(); // until there is one

  /**
   * @param {typeof globalThis.fetch} fetch
   * @param {string} url
   * @param {RequestInit} init
   * @param {number} silence
   * @param {AbortSignal | null | undefined} signal
   */
  static async open(fetch, url, init, silence, signal) {
    signal?.throwIfAborted();
    const opened = new Connection(silence, signal);
    await opened.#open(fetch, url, init);
    return opened;
  }

  /**
   * @param {number} silence
   * @param {AbortSignal | null | undefined} signal
   */
  constructor(silence, signal) {
    this.#silence = silence;
    this.#limit = new TimeLimit(silence, signal, () => this.#silent());
  }

  /** The next bytes; null at the end. Throws ServiceUnavailable. */
  async read() {
    if (this.#reader === undefined) return null;
    this.#limit.renew();
    const { done, value } = await this.#reached(this.#reader.read());
    return done ? null : value;
  }

  /** Hang up. */
  close() {
    this.#limit.end(new DOMException("The connection was closed", "AbortError"));
  }

  /**
   * @param {typeof globalThis.fetch} fetch
   * @param {string} url
   * @param {RequestInit} init
   */
  async #open(fetch, url, init) {
    try {
      this.response = await this.#reached(fetch(url, { ...init, signal: this.#limit.signal }));
    } catch (error) {
      this.#limit.close();
      throw error;
    }
    this.#reader = this.response.body?.getReader();
    this.#reader?.closed.catch(() => {}); // told by read
  }

  /**
   * @template T
   * @param {Promise<T>} promise
   * @returns {Promise<T>}
   */
  async #reached(promise) {
    const { signal } = this.#limit;
    try {
      return await unlessAborted(promise, signal);
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      throw new ServiceUnavailable(`the service is not reachable: ${told(error)}`);
    } finally {
      this.#limit.pause(); // while nobody waits for bytes, there is no silence
    }
  }

  #silent() {
    return new ServiceUnavailable(`the service sent nothing within ${this.#silence / 1000} seconds`);
  }
}

/**
 * @param {unknown} error
 * @returns {string}
 */
export function told(error) {
  const { cause, message } = /** @type {{ cause?: any, message?: string }} */ (error ?? {});
  return String(cause?.code ?? cause?.message ?? message ?? error);
}

/**
 * @param {Uint8Array[]} pieces
 * @param {number} size
 */
export function joined(pieces, size) {
  if (pieces.length === 1) return pieces[0];
  const whole = new Uint8Array(size);
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

/**
 * A value of `shape` from a document of the service. Throws ApiError for any other document.
 * @template T
 * @param {import("./decode.js").Shape<T>} shape
 * @param {Uint8Array} document
 * @returns {T}
 */
export function known(shape, document) {
  const value = decode(shape, document);
  if (value === undefined) throw new ApiError(`the service's answer is no ${shape.title} that this version knows`);
  return value;
}

/**
 * A browser unpacks what it asked for by itself, and its answers are counted unpacked; in Node nobody asked for it.
 * @param {Response} response
 */
export function refuseCompressed(response) {
  if (IN_NODE && (response.headers.get("content-encoding") ?? "identity") !== "identity") {
    throw new ApiError("the service's answer is compressed", { status: response.status });
  }
}

/**
 * The exception for an error response (RFC 9457): ServiceUnavailable if its status is in `repeated`.
 * @param {Response} response
 * @param {Uint8Array} body
 * @param {{ has(status: number): boolean }} repeated
 * @returns {InstanceType<typeof ChatJobsError>}
 */
export function failure(response, body, repeated) {
  if (response.type === "opaqueredirect") return new ApiError("the service answered with a redirect");
  const { status } = response;
  const parsed = parseJson(body);
  const problem = typeof parsed === "object" && parsed !== null && !Array.isArray(parsed) ? parsed : {};
  const [code, detail] = [text(problem.code), text(problem.detail)];
  if (repeated.has(status)) {
    const pause = retryAfter(response.headers, Date.now());
    const retry = pause === null ? null : Math.min(pause, LONGEST_RETRY_AFTER);
    return new ServiceUnavailable(detail, { status, reason: code, retryAfter: retry });
  }
  if (status === 401) return new errors.Unauthorized(detail);
  if (code === InvalidRequest.code) {
    const found = problems(problem.errors);
    return new InvalidRequest(found.length ? found : [{ pointer: "", message: detail ?? "is not valid" }]);
  }
  const kind = KNOWN.get(code ?? "");
  return kind ? new kind(detail) : new ApiError(detail ?? `the service answered ${status}`, { status, reason: code });
}

/**
 * @param {unknown} value
 * @returns {string | null}
 */
const text = (value) => (typeof value === "string" && value ? value : null);

/**
 * @param {unknown} found
 * @returns {import("./errors.js").Problem[]}
 */
function problems(found) {
  const listed = Array.isArray(found) ? found.filter((one) => typeof one === "object" && one && !Array.isArray(one)) : [];
  return listed.map((one) => ({ pointer: text(one.pointer) ?? "", message: text(one.message) ?? "is not valid" }));
}

/** @param {string} baseUrl */
function checkedBase(baseUrl) {
  if (typeof baseUrl !== "string" || !/^https?:\/\/[!-~]+$/i.test(baseUrl)) {
    throw new ConfigurationError("the service's baseUrl must be an absolute http or https URL");
  }
  let url;
  try {
    url = new URL(baseUrl);
  } catch {
    throw new ConfigurationError("the service's baseUrl is not a URL");
  }
  if (url.username || url.password) throw new ConfigurationError("the service's baseUrl must not have a user or password");
  return `${url.origin}${url.pathname.replace(/\/+$/, "")}`;
}

/**
 * @param {string | null} apiKey
 * @returns {Record<string, string>}
 */
function usualHeaders(apiKey) {
  if (apiKey !== null && !(typeof apiKey === "string" && /^[!-~]+$/.test(apiKey))) {
    throw new ConfigurationError("the API key must be printable ASCII without spaces");
  }
  return {
    // A browser sets these two itself, and another origin would have to allow them.
    ...(IN_NODE ? { "Accept-Encoding": "identity", "User-Agent": "chatjobs-javascript" } : {}),
    ...(apiKey === null ? {} : { Authorization: `Bearer ${apiKey}` }),
  };
}
