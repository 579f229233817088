// A client's stream of events, which reconnects where it broke off.

import { failure, told } from "./calls.js";
import { ChatJobsError, ServiceUnavailable, StreamBroken } from "./errors.js";
import { TimeLimit, now, sleep, unlessAborted, within } from "./timing.js";

/** Most bytes of an error's body. */
export const MAX_PROBLEM_BYTES = 64 * 1024;
/** HTTP statuses after which a stream connects again. */
export const STREAMS_REPEATED = {
  /** @param {number} status */
  has: (status) => [408, 425, 429].includes(status) || (status >= 500 && status < 600),
};
/** Connections in a row whose events do not fit together, after which the stream fails. */
const BROKEN_IN_A_ROW = 3;
/** A connection that lasted longer counts as no failure, even if it brought no event. In milliseconds. */
const LASTING = 5_000;

/**
 * The events of one stream over several connections, from their bytes.
 * @template E
 * @typedef {object} Events
 * @property {string} lastEventId the id of the last event that the reader has
 * @property {() => void} connect
 * @property {(chunk: Uint8Array) => Iterable<[string, E]>} feed throws StreamBroken, ResponseTooLarge
 * @property {(event: E) => boolean} ends
 */

/**
 * A stream token, or a function that gets one for each connection: a token is checked when connecting, and expires.
 * @typedef {string | (() => string | Promise<string>)} Token
 */

/**
 * Called with true when a connection is open, and with false when it is lost and another one will be tried.
 * @typedef {(connected: boolean) => unknown} OnConnection
 */

/**
 * @typedef {object} StreamLimits
 * @property {number} patience milliseconds without a byte from the service, over all connections
 * @property {number} timeout milliseconds in all
 * @property {AbortSignal | null} [signal]
 * @property {Token} [token]
 * @property {OnConnection} [onConnection]
 */

/**
 * The events of a job or batch: `for await (const event of stream)`. Leaving the loop closes the connection.
 *
 * Iterate once. Iterating throws ServiceUnavailable after `patience` without a byte from the service, StreamBroken if
 * its events do not fit together, a `TimeoutError` (DOMException) after `timeout` in all, the reason of an aborted
 * signal, and the service's errors.
 * @template E
 */
export class Stream {
  #http;
  #path;
  #events;
  #limits;
  /** @type {[string, E][]} */
  #ready = [];
  /** @type {import("./calls.js").Connection | null} */
  #connection = null;
  /** @type {TimeLimit | null} */
  #limit = null;
  #begun = false;
  #closed = false;
  #receivedAt = 0;
  #connectedAt = 0;
  #failures = 0;
  #broken = 0;

  /**
   * @param {import("./calls.js").Http} http
   * @param {string} path
   * @param {Events<E>} events
   * @param {StreamLimits} limits
   */
  constructor(http, path, events, limits) {
    /** The id of the last event that the loop received: with it a later `stream` goes on. @type {string} */
    this.lastEventId = events.lastEventId;
    this.#http = http;
    this.#path = path;
    this.#events = events;
    this.#limits = limits;
  }

  /** Close the connection; a loop over the events ends. What is streamed continues. */
  close() {
    this.#closed = true;
    this.#limit?.end(new DOMException("The stream was closed", "AbortError"));
    this.#hangUp();
  }

  /** @returns {AsyncGenerator<E, void, void>} */
  [Symbol.asyncIterator]() {
    if (this.#begun) throw new TypeError("a stream is iterated once; open another one, with its lastEventId");
    this.#begun = true;
    return this.#iterate();
  }

  async *#iterate() {
    if (this.#closed) return;
    this.#receivedAt = now();
    this.#limit = new TimeLimit(this.#limits.timeout, this.#limits.signal);
    try {
      for (let found; (found = await this.#next(this.#limit.signal)); ) {
        const [id, event] = found;
        this.lastEventId = id;
        yield event;
        if (this.#closed || this.#events.ends(event)) return;
      }
    } catch (error) {
      if (!this.#closed) throw error;
    } finally {
      this.#limit.close();
      this.#hangUp();
    }
  }

  /**
   * The next event and its id; undefined if the service answers that none follows.
   * @param {AbortSignal} signal
   */
  async #next(signal) {
    signal.throwIfAborted(); // one piece of the stream may have had many events
    while (!this.#ready.length) {
      try {
        const connection = this.#connection ?? (await this.#connect(signal));
        if (connection === null) return undefined;
        await this.#receive(connection);
      } catch (error) {
        if (!(error instanceof ServiceUnavailable || error instanceof StreamBroken)) throw error;
        await this.#recover(error, signal);
      }
    }
    return this.#ready.shift();
  }

  /**
   * A new connection; null if the reader has the terminal event already.
   * @param {AbortSignal} signal
   */
  async #connect(signal) {
    const { lastEventId } = this.#events;
    const { token } = this.#limits;
    /** @type {Record<string, string>} */
    const headers = { Accept: "text/event-stream" };
    if (lastEventId) headers["Last-Event-ID"] = lastEventId;
    if (token !== undefined) headers.Authorization = "";
    this.#connectedAt = now();
    const query = token === undefined ? undefined : { token: await this.#token(token, signal) };
    const connection = await this.#http.open(this.#path, query, { headers }, signal);
    this.#connection = connection;
    const { status, headers: given } = connection.response;
    if (status !== 200 && status !== 204) {
      throw failure(connection.response, await this.#http.body(connection, MAX_PROBLEM_BYTES), STREAMS_REPEATED);
    }
    if (status === 204 && lastEventId.endsWith(".end")) return null;
    if (!(given.get("content-type") ?? "").startsWith("text/event-stream")) {
      throw new ServiceUnavailable("the answer is not a stream of events", { status });
    }
    this.#events.connect();
    this.#limits.onConnection?.(true);
    return connection;
  }

  /**
   * The token for a connection. Throws `ServiceUnavailable` if there is none within the limits.
   * @param {string | (() => string | Promise<string>)} token
   * @param {AbortSignal} signal
   */
  async #token(token, signal) {
    if (typeof token === "string") return token;
    try {
      return await within(this.#limits.patience, signal, (inner) => unlessAborted(Promise.resolve(token()), inner));
    } catch (error) {
      if (signal.aborted || (error instanceof ChatJobsError && !(error instanceof ServiceUnavailable))) throw error;
      throw new ServiceUnavailable(`there is no stream token: ${told(error)}`);
    }
  }

  /**
   * Wait for the next bytes, and queue the events that they complete.
   * @param {import("./calls.js").Connection} connection
   */
  async #receive(connection) {
    const piece = await connection.read();
    if (piece === null) throw new ServiceUnavailable("the stream was cut");
    this.#receivedAt = now();
    for (const found of this.#events.feed(piece)) {
      this.#ready.push(found);
      this.#failures = this.#broken = 0;
    }
  }

  /**
   * Wait before the next connection. Throws the error if there is to be none.
   * @param {ServiceUnavailable | StreamBroken} error
   * @param {AbortSignal} signal
   */
  async #recover(error, signal) {
    this.#hangUp();
    if (error instanceof StreamBroken) this.#broken++;
    const silent = now() - this.#receivedAt;
    if (silent >= this.#limits.patience || this.#broken >= BROKEN_IN_A_ROW) throw error;
    this.#limits.onConnection?.(false);
    if (this.#receivedAt - this.#connectedAt > LASTING) this.#failures = 0;
    const wait = Math.max(this.#http.backoff(this.#failures), error.retryAfter ?? 0);
    this.#failures++;
    await sleep(Math.min(wait, this.#limits.patience - silent), signal);
  }

  #hangUp() {
    this.#connection?.close();
    this.#connection = null;
  }
}
