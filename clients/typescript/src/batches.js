// Batches: the client's calls on them, as `jobs.batches`.
//
// Uploads and outputs are streamed: memory does not grow with their size. A browser cannot send a stream over HTTP/1.1;
// there, items are collected into a Blob first.

import { CALLS_REPEATED, IN_NODE, failure, joined, known, refuseCompressed } from "./calls.js";
import { newKey } from "./crypto.js";
import { object, parseJson, string } from "./decode.js";
import { BatchNotFound, InvalidRequest, ServiceUnavailable, StreamBroken } from "./errors.js";
import { iteratorOf } from "./map.js";
import { inPages } from "./pages.js";
import { given, itemLine, jsonText, timeText } from "./prompts.js";
import * as shapes from "./shapes.js";
import { BatchEvents } from "./sse.js";
import { MAX_PROBLEM_BYTES, STREAMS_REPEATED, Stream } from "./stream.js";
import { TimeLimit, now, sleep, within } from "./timing.js";

/** @typedef {import("../types/contracts.js").Batch} Batch */
/** @typedef {import("../types/contracts.js").BatchAccepted} BatchAccepted */
/** @typedef {import("../types/contracts.js").BatchPage} BatchPage */
/** @typedef {import("../types/contracts.js").BatchProgress} BatchProgress */
/** @typedef {import("../types/contracts.js").BatchStatus} BatchStatus */
/** @typedef {import("../types/contracts.js").OutputLine} OutputLine */
/** @typedef {import("./prompts.js").Item} Item */
/** @typedef {{ signal?: AbortSignal | null }} Signal */

/**
 * The items of a batch: a file with an item in each line (a Blob, such as a browser's File or what `fs.openAsBlob`
 * gives, or a stream of its bytes), or items.
 * @typedef {Blob | ReadableStream<Uint8Array> | Iterable<Item> | AsyncIterable<Item>} Items
 */

/**
 * @typedef {object} BatchOptions
 * @property {string} [name]
 * @property {string | import("../types/contracts.js").BatchWebhook} [webhook] a URL, or one with the events wanted
 * @property {number} [concurrency]
 * @property {"live" | "batch"} [lane]
 * @property {Date | string} [deadline]
 * @property {import("./prompts.js").ChatFields} [defaults] fields of a request for items that lack them
 * @property {string} [idempotencyKey]
 * @property {number} [timeout] milliseconds for everything
 * @property {AbortSignal | null} [signal]
 */

/** In milliseconds. */
const DAY = 24 * 3600 * 1000;
/** Bytes of an upload that are sent together, about. */
const PIECE = 64 * 1024;
/** Bytes per second below which the service gives an upload up. */
const SLOWEST = 64 * 1024;
/** Most bytes of a batch's settings, which stand in the URL: servers refuse a longer one. */
const LONGEST_QUERY = 6 * 1024;
const ENDED = new Set(["completed", "cancelled", "failed"]);
const LF = 10;
const BatchChanged = object("batch's status", { batchId: string, status: shapes.BatchStatus });

/** The calls on batches. Methods throw what ChatJobs throws, and the errors that they name. */
export class BatchCalls {
  #http;
  #patience;
  #maxEventBytes;

  /**
   * @param {import("./calls.js").Http} http
   * @param {{ patience: number, maxEventBytes: number }} limits
   */
  constructor(http, { patience, maxEventBytes }) {
    this.#http = http;
    this.#patience = patience;
    this.#maxEventBytes = maxEventBytes;
  }

  /**
   * Start a batch; it is durable once this returns, and nothing begins unless all of its items are valid.
   *
   * Items are read while they are sent. They should come at 64 KiB/s at least, or the service gives up (408).
   *
   * The same `idempotencyKey` with the same items and settings is the same batch. If the upload breaks off, a Blob or
   * an array is sent again while that may help; other items, which cannot be read again, are not: the call throws
   * ServiceUnavailable, and nothing was started. Throws InvalidRequest, whose problems name lines (from 1),
   * IdempotencyMismatch, WebhookUrlRefused, a `TimeoutError`, and what iterating over the items throws.
   * @param {Items} items
   * @param {BatchOptions} [options]
   * @returns {Promise<BatchAccepted>}
   */
  async submit(items, { idempotencyKey, timeout = DAY, signal, ...settings } = {}) {
    if (typeof items !== "object" || !(items instanceof Blob || isStream(items) || isIterable(items))) {
      throw new TypeError("items are several: put a single one in an array");
    }
    const query = settingsQuery(settings);
    const headers = { "Content-Type": "application/x-ndjson", "Idempotency-Key": idempotencyKey ?? (await newKey()) };
    const work = (/** @type {AbortSignal} */ inner) => this.#uploaded(items, query, headers, inner);
    return known(shapes.BatchAccepted, await within(timeout, signal, work));
  }

  /**
   * The batch as it is now. Throws BatchNotFound.
   * @param {string} batchId
   * @param {Signal} [options]
   * @returns {Promise<Batch>}
   */
  async get(batchId, { signal } = {}) {
    return this.#http.read(shapes.Batch, "GET", path(batchId), { signal });
  }

  /**
   * Batches, newest first, read in pages of `pageSize`. Throws InvalidRequest.
   * @param {{ status?: BatchStatus, since?: Date | string, pageSize?: number, signal?: AbortSignal | null }} [options]
   * @returns {AsyncGenerator<Batch, void, void>}
   */
  async *list({ pageSize = 100, signal, ...filter } = {}) {
    yield* inPages((cursor) => this.page({ ...filter, limit: pageSize, cursor, signal }), "batches");
  }

  /**
   * One page of `list`, at most `limit` batches; a page's `nextCursor` is the `cursor` of the next one. For user
   * interfaces. Throws InvalidRequest.
   * @param {{ status?: BatchStatus, since?: Date | string, limit?: number, cursor?: string | null, signal?: AbortSignal | null }} [options]
   * @returns {Promise<BatchPage>}
   */
  async page({ status, since, limit = 100, cursor, signal } = {}) {
    const query = given({ limit: String(limit), status, since: since && timeText(since), cursor });
    return this.#http.read(shapes.BatchPage, "GET", "/api/batches", { query, signal });
  }

  /**
   * Let no further item begin, durably; those that run finish. The status now. Throws BatchNotFound, BatchFinished.
   * @param {string} batchId
   * @param {Signal} [options]
   */
  async pause(batchId, options) {
    return this.#change(batchId, "pause", options);
  }

  /**
   * Let items begin again, durably. The status now. Throws BatchNotFound, BatchFinished.
   * @param {string} batchId
   * @param {Signal} [options]
   */
  async resume(batchId, options) {
    return this.#change(batchId, "resume", options);
  }

  /**
   * Cancel all items that have not ended, durably. The status now, which may not be the last one yet.
   *
   * Throws BatchNotFound, BatchFinished.
   * @param {string} batchId
   * @param {Signal} [options]
   */
  async cancel(batchId, options) {
    return this.#change(batchId, "cancel", options);
  }

  /**
   * The batch once it has ended, with any terminal status.
   *
   * `timeout` is in milliseconds. Throws BatchNotFound, a `TimeoutError` and what `watch` throws.
   * @param {string} batchId
   * @param {{ timeout?: number, signal?: AbortSignal | null }} [options]
   * @returns {Promise<Batch>}
   */
  async wait(batchId, { timeout = DAY, signal } = {}) {
    return within(timeout, signal, async (inner) => {
      for (;;) {
        const batch = await this.get(batchId, { signal: inner });
        if (ENDED.has(batch.status)) return batch;
        for await (const _ of this.watch(batchId, { timeout: Infinity, signal: inner }));
      }
    });
  }

  /**
   * The states of a batch, from the one it has now to its terminal one, at most two per second.
   *
   * A broken connection is opened again. `timeout` is in milliseconds, for the whole stream. Throws StreamBroken if
   * `lastEventId` is not an event's id; iterating throws BatchNotFound, a `TimeoutError`, StreamBroken.
   * @param {string} batchId
   * @param {{ lastEventId?: string, timeout?: number, signal?: AbortSignal | null, onConnection?: import("./stream.js").OnConnection }} [options]
   * @returns {Stream<BatchProgress>}
   */
  watch(batchId, { lastEventId = "", timeout = DAY, signal, onConnection } = {}) {
    const events = new BatchEvents(lastEventId, this.#maxEventBytes);
    const limits = { patience: this.#patience, timeout, signal, onConnection };
    return new Stream(this.#http, `${path(batchId)}/events`, events, limits);
  }

  /**
   * The answers so far, in the order of the items.
   *
   * A broken connection is opened again, and the lines go on where they were. Throws BatchNotFound, ResponseTooLarge,
   * StreamBroken.
   * @param {string} batchId
   * @param {Signal} [options]
   * @returns {AsyncGenerator<OutputLine, void, void>}
   */
  async *output(batchId, { signal } = {}) {
    for await (const line of this.#lines(batchId, "output", signal)) yield known(shapes.OutputLine, line);
  }

  /**
   * The items that have ended without an answer, in their order; otherwise as `output`.
   * @param {string} batchId
   * @param {Signal} [options]
   * @returns {AsyncGenerator<OutputLine, void, void>}
   */
  async *errors(batchId, { signal } = {}) {
    for await (const line of this.#lines(batchId, "errors", signal)) yield known(shapes.OutputLine, line);
  }

  /**
   * Write the output so far, or the errors, as JSON lines to a stream, such as `Writable.toWeb(createWriteStream(…))`
   * in Node. The number of lines. The stream is closed at the end, and aborted if an error is thrown.
   *
   * Throws what `output` throws, and the stream's errors.
   * @param {string} batchId
   * @param {WritableStream<Uint8Array>} target
   * @param {{ errors?: boolean, signal?: AbortSignal | null }} [options]
   * @returns {Promise<number>}
   */
  async download(batchId, target, { errors = false, signal } = {}) {
    const writer = target.getWriter();
    let count = 0;
    try {
      for await (const line of this.#lines(batchId, errors ? "errors" : "output", signal)) {
        await writer.ready;
        const whole = new Uint8Array(line.length + 1);
        whole.set(line);
        whole[line.length] = LF;
        writer.write(whole).catch(() => {}); // told by ready and close
        count++;
      }
      await writer.close();
    } catch (error) {
      await writer.abort(error).catch(() => {});
      throw error;
    }
    return count;
  }

  // ------------------------------------------------------------------------------------------------ parts

  /**
   * @param {string} batchId
   * @param {"pause" | "resume" | "cancel"} what
   * @param {Signal} [options]
   * @returns {Promise<BatchStatus>}
   */
  async #change(batchId, what, { signal } = {}) {
    return (await this.#http.read(BatchChanged, "POST", `${path(batchId)}/${what}`, { signal })).status;
  }

  /**
   * The body of the response to an upload, which is repeated for the client's timeout of waiting in all.
   * @param {Items} items
   * @param {Record<string, string>} query
   * @param {Record<string, string>} headers
   * @param {AbortSignal} signal
   */
  async #uploaded(items, query, headers, signal) {
    const again = items instanceof Blob || Array.isArray(items) || items instanceof Set;
    let waited = 0;
    for (let failures = 1; ; failures++) {
      let wait;
      try {
        return await this.#upload(items, query, headers, signal);
      } catch (error) {
        if (!(error instanceof ServiceUnavailable)) throw error;
        wait = Math.max(this.#http.backoff(failures), error.retryAfter ?? 0);
        waited += wait;
        if (!again || waited >= this.#http.timeout) throw error;
      }
      await sleep(wait, signal);
    }
  }

  /**
   * @param {Items} items
   * @param {Record<string, string>} query
   * @param {Record<string, string>} headers
   * @param {AbortSignal} signal
   */
  async #upload(items, query, headers, signal) {
    const silence = this.#http.silence + (items instanceof Blob ? (items.size / SLOWEST) * 1000 : 0);
    const limit = new TimeLimit(silence, signal, () => new ServiceUnavailable("the service took too long for the upload"));
    const source = new Source(items, () => limit.renew());
    try {
      const init = { method: "POST", headers, body: await source.body(), duplex: /** @type {const} */ ("half") };
      const connection = await this.#http.open("/api/batches", query, init, limit.signal, Infinity);
      try {
        const body = await this.#http.body(connection);
        if (!connection.response.ok) throw failure(connection.response, body, CALLS_REPEATED);
        return body;
      } finally {
        connection.close();
      }
    } catch (error) {
      throw source.error ?? error;
    } finally {
      limit.close();
    }
  }

  /**
   * The lines of an output. After a broken connection those up to the last one are skipped. Only new lines show that it
   * goes on: a service that breaks off at the same line for the client's patience does not.
   * @param {string} batchId
   * @param {"output" | "errors"} which
   * @param {AbortSignal | null | undefined} signal
   * @returns {AsyncGenerator<Uint8Array, void, void>}
   */
  async *#lines(batchId, which, signal) {
    const where = `${path(batchId)}/${which}`;
    /** @type {Uint8Array | null} */
    let last = null;
    let failures = 0;
    let receivedAt = now();
    for (;;) {
      let wait;
      try {
        let skipping = last && idOf(last);
        for await (const line of this.#connection(where, signal)) {
          if (skipping === null) {
            [last, failures] = [line, 0];
            yield line;
            receivedAt = now();
          } else if (idOf(line) === skipping) skipping = null;
        }
        if (skipping === null) return;
        throw new StreamBroken("the last line before the connection broke is not there any more; read again");
      } catch (error) {
        if (!(error instanceof ServiceUnavailable) || now() - receivedAt >= this.#patience) throw error;
        wait = Math.max(this.#http.backoff(failures), error.retryAfter ?? 0);
      }
      failures++;
      await sleep(Math.min(wait, Math.max(this.#patience - (now() - receivedAt), 0)), signal);
    }
  }

  /**
   * The lines of one response, without their ends.
   * @param {string} where
   * @param {AbortSignal | null | undefined} signal
   * @returns {AsyncGenerator<Uint8Array, void, void>}
   */
  async *#connection(where, signal) {
    const connection = await this.#http.open(where, undefined, { method: "GET" }, signal);
    try {
      const { response } = connection;
      if (response.status !== 200) {
        throw failure(response, await this.#http.body(connection, MAX_PROBLEM_BYTES), STREAMS_REPEATED);
      }
      refuseCompressed(response);
      /** @type {Uint8Array[]} */
      let rest = [];
      let size = 0;
      for (let piece; (piece = await connection.read()); ) {
        let from = 0;
        for (let end; (end = piece.indexOf(LF, from)) >= 0; from = end + 1) {
          rest.push(piece.subarray(from, end));
          yield joined(rest, size + end - from);
          [rest, size] = [[], 0];
        }
        rest.push(piece.subarray(from));
        this.#http.check((size += piece.length - from));
      }
      if (size) throw new ServiceUnavailable("the output was cut");
    } finally {
      connection.close();
    }
  }
}

/** The items of one upload. `error` is what reading them threw: fetch does not pass it on. */
class Source {
  /** @type {unknown} */
  error = undefined;
  #items;
  #onSent;

  /**
   * @param {Items} items
   * @param {() => void} onSent called when items are sent, as far as that can be seen
   */
  constructor(items, onSent) {
    this.#items = items;
    this.#onSent = onSent;
  }

  /** @returns {Promise<Blob | ReadableStream<Uint8Array>>} */
  async body() {
    const items = this.#items;
    if (items instanceof Blob) return items;
    const pieces = isStream(items) ? piecesOfStream(items) : piecesOfItems(items);
    return IN_NODE ? this.#stream(pieces) : collected(pieces);
  }

  /** @param {AsyncGenerator<Uint8Array, void, void>} pieces */
  #stream(pieces) {
    return new ReadableStream({
      pull: async (controller) => {
        try {
          this.#onSent();
          const { done, value } = await pieces.next();
          this.#onSent();
          if (done) controller.close();
          else controller.enqueue(value);
        } catch (error) {
          this.error = error;
          controller.error(error);
        }
      },
      cancel: async () => void (await pieces.return()),
    });
  }
}

/** @param {AsyncIterable<Uint8Array>} pieces */
async function collected(pieces) {
  const found = [];
  for await (const piece of pieces) found.push(/** @type {Uint8Array<ArrayBuffer>} */ (piece));
  return new Blob(found);
}

/**
 * @param {ReadableStream<Uint8Array>} stream
 * @returns {AsyncGenerator<Uint8Array, void, void>}
 */
async function* piecesOfStream(stream) {
  const reader = stream.getReader();
  try {
    for (let read; !(read = await reader.read()).done; ) yield read.value;
  } finally {
    await reader.cancel().catch(() => {}); // nobody reads the rest; what failed was thrown
    reader.releaseLock();
  }
}

/**
 * @param {Iterable<Item> | AsyncIterable<Item>} items
 * @returns {AsyncGenerator<Uint8Array, void, void>}
 */
async function* piecesOfItems(items) {
  /** @type {Uint8Array[]} */
  let lines = [];
  let [size, number] = [0, 0];
  const all = { [Symbol.asyncIterator]: () => /** @type {AsyncIterator<Item>} */ (iteratorOf(items)) };
  for await (const item of all) {
    const line = numbered(item, ++number);
    lines.push(line);
    size += line.length;
    if (size < PIECE) continue;
    yield joined(lines, size);
    [lines, size] = [[], 0];
  }
  if (size) yield joined(lines, size);
}

/**
 * @param {Item} item
 * @param {number} number from 1
 */
function numbered(item, number) {
  try {
    return itemLine(item);
  } catch (error) {
    if (!(error instanceof InvalidRequest)) throw error;
    throw new InvalidRequest(
      error.problems.map(({ pointer, message }) => ({ pointer: `/lines/${number}${pointer}`, message })),
    );
  }
}

/**
 * The settings of a batch as parameters of the URL. Throws InvalidRequest.
 * @param {Omit<BatchOptions, "idempotencyKey" | "timeout" | "signal">} settings
 * @returns {Record<string, string>}
 */
function settingsQuery(settings) {
  const found = given({ ...settings, deadline: settings.deadline && timeText(settings.deadline) });
  const query = Object.fromEntries(
    Object.entries(found).map(([name, value]) => [name, typeof value === "string" ? value : jsonText(value)]),
  );
  const size = String(new URLSearchParams(query)).length;
  if (size > LONGEST_QUERY) {
    const why = `all settings may have ${LONGEST_QUERY} bytes in the URL of an upload, not ${size}`;
    throw new InvalidRequest([{ pointer: "", message: `${why}; put long defaults into the items` }]);
  }
  return query;
}

/**
 * @param {any} items
 * @returns {items is ReadableStream<Uint8Array>}
 */
const isStream = (items) => typeof items.getReader === "function";

/** @param {any} items */
const isIterable = (items) => Symbol.iterator in items || Symbol.asyncIterator in items;

/**
 * The id in a line of output; null if it has none.
 * @param {Uint8Array} line
 * @returns {string | null}
 */
const idOf = (line) => parseJson(line)?.id ?? null;

/**
 * The path of a batch. Throws BatchNotFound for a text that cannot be an id of a batch.
 * @param {string} batchId
 */
function path(batchId) {
  if (!/^[A-Za-z0-9_-]{1,128}$/.test(batchId)) throw new BatchNotFound();
  return `/api/batches/${batchId}`;
}
