// A job's events for handlers, in the manner of an event emitter.

/** @typedef {import("../types/contracts.js").StreamEvent} StreamEvent */
/** @typedef {import("../types/contracts.js").JobAccepted} JobAccepted */

/** @template T @typedef {Extract<StreamEvent, { type: T }>} EventOf */

/**
 * The events that handlers are called with, by name.
 *
 * `chat:queued`: the job waits for the model's rate limit. `chat:start`: once, also after reconnects. `chat:chunk`: a
 * piece of the answer. `chat:reset`: drop the text so far, the answer starts over. `chat:complete`: the answer is
 * complete, or as long as a limit allows. `chat:error`: the job has failed for good. `chat:cancelled`: it was cancelled.
 * @typedef {{ [E in StreamEvent as `chat:${E["type"]}`]: E }} JobEventMap
 */
/** @typedef {EventOf<"complete" | "error" | "cancelled">} TerminalEvent */

const CLOSED = new DOMException("The watch was closed", "AbortError");
const NAMES = ["queued", "start", "chunk", "reset", "complete", "error", "cancelled"].map((type) => `chat:${type}`);

/**
 * A job whose events are read while this is open; handlers are called with them in their order.
 *
 * `finished` settles when that ends. An error that a handler throws is not swallowed: it ends the reading, and
 * `finished` is rejected with it. Like any promise that is rejected, it is reported if nobody handles it.
 */
export class JobWatch {
  /** @type {Map<string, Set<(event: any) => unknown>>} */
  #handlers = new Map(NAMES.map((name) => [name, new Set()]));
  #closing = new AbortController();
  /** @type {string | null} */
  #jobId;
  #cancel;

  /** The job, once the service has accepted it. Rejected as `finished` is, and then not reported. @type {Promise<string>} */
  accepted;
  /**
   * The terminal event; null if the watch was closed before, or began after it. Rejected with what `stream` throws (trouble with the
   * connection is no event until patience is over), with the errors of `submit` after `chat`, and with what a handler
   * throws.
   * @type {Promise<TerminalEvent | null>}
   */
  finished;

  /**
   * @param {string | ((signal: AbortSignal) => Promise<JobAccepted>)} job an id, or what starts the job
   * @param {(jobId: string, signal: AbortSignal) => AsyncIterable<StreamEvent>} stream
   * @param {(jobId: string) => Promise<import("../types/contracts.js").JobStatus>} cancel
   * @param {AbortSignal | null} [outer] ends the reading with its reason
   */
  constructor(job, stream, cancel, outer) {
    const { signal } = this.#closing;
    const follow = () => this.#closing.abort(outer?.reason);
    if (outer?.aborted) follow();
    outer?.addEventListener("abort", follow, { once: true });
    this.#cancel = cancel;
    this.#jobId = typeof job === "string" ? job : null;
    this.accepted = typeof job === "string" ? Promise.resolve(job) : job(signal).then((found) => (this.#jobId = found.jobId));
    this.accepted.catch(() => {}); // `finished` is rejected, too
    this.finished = this.#read(stream, signal).finally(() => outer?.removeEventListener("abort", follow));
  }

  /** The id of the job; null until the service has accepted it. */
  get jobId() {
    return this.#jobId;
  }

  /**
   * Call a handler with every event of a name.
   * @template {keyof JobEventMap} K
   * @param {K} name
   * @param {(event: JobEventMap[K]) => unknown} handler
   * @returns {this}
   */
  on(name, handler) {
    this.#of(name).add(handler);
    return this;
  }

  /**
   * Call a handler with the next event of a name only.
   * @template {keyof JobEventMap} K
   * @param {K} name
   * @param {(event: JobEventMap[K]) => unknown} handler
   * @returns {this}
   */
  once(name, handler) {
    const handlers = this.#of(name);
    const first = Object.assign(
      (/** @type {JobEventMap[K]} */ event) => {
        handlers.delete(first);
        return handler(event);
      },
      { handler },
    );
    handlers.add(first);
    return this;
  }

  /**
   * Call a handler no more.
   * @template {keyof JobEventMap} K
   * @param {K} name
   * @param {(event: JobEventMap[K]) => unknown} handler
   * @returns {this}
   */
  off(name, handler) {
    const handlers = this.#of(name);
    for (const one of handlers) {
      if (one === handler || /** @type {any} */ (one).handler === handler) handlers.delete(one);
    }
    return this;
  }

  /** Read no more; the job continues. `finished` is then null. */
  close() {
    this.#closing.abort(CLOSED);
  }

  /** Cancel the job, durably; its status now. Waits until the job is accepted. Throws what `cancel` throws. */
  async cancel() {
    return this.#cancel(await this.accepted);
  }

  /** @param {string} name */
  #of(name) {
    const handlers = this.#handlers.get(name);
    if (!handlers) throw new TypeError(`there is no event of this name; there are ${NAMES.join(", ")}`);
    return handlers;
  }

  /**
   * @param {(jobId: string, signal: AbortSignal) => AsyncIterable<StreamEvent>} stream
   * @param {AbortSignal} signal
   * @returns {Promise<TerminalEvent | null>}
   */
  async #read(stream, signal) {
    try {
      for await (const event of stream(await this.accepted, signal)) {
        signal.throwIfAborted(); // closed while this event was on its way
        for (const handler of [...this.#of(`chat:${event.type}`)]) handler(event);
        if (event.type === "complete" || event.type === "error" || event.type === "cancelled") return event;
      }
    } catch (error) {
      if (error === CLOSED) return null;
      throw error;
    }
    return null; // the reader had the terminal event already (`lastEventId`)
  }
}
