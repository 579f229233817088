// Time limits: signals that are aborted when a time is over, and waits that a signal ends. Times are in milliseconds.

const LONGEST_TIMER = 2 ** 31 - 1; // setTimeout fires at once for more

/** The time on a clock that is never set back. */
export const now = () => performance.now();

/** The error of an operation that took longer than its `timeout`: the one that `AbortSignal.timeout` makes. */
export function timeoutError() {
  return new DOMException("The operation took longer than its timeout", "TimeoutError");
}

/**
 * A signal that is aborted with the reason of `outer`, or with `reason()` once nobody has called `renew` for `ms`.
 * Close it when the work is over.
 */
export class TimeLimit {
  #controller = new AbortController();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  #since = now();
  #ms;
  #reason;
  #outer;
  #paused = false;
  #follow = () => this.#controller.abort(this.#outer?.reason);

  /**
   * @param {number} ms
   * @param {AbortSignal | null | undefined} outer
   * @param {() => Error} [reason]
   */
  constructor(ms, outer, reason = timeoutError) {
    this.#ms = ms;
    this.#reason = reason;
    this.#outer = outer;
    if (outer?.aborted) this.#follow();
    else {
      outer?.addEventListener("abort", this.#follow, { once: true });
      this.#arm(ms);
    }
  }

  get signal() {
    return this.#controller.signal;
  }

  /** The time begins anew. */
  renew() {
    this.#since = now();
    this.#paused = false;
  }

  /** The time stands still until it begins anew. */
  pause() {
    this.#paused = true;
  }

  /**
   * Abort the signal now.
   * @param {unknown} reason
   */
  end(reason) {
    this.close();
    this.#controller.abort(reason);
  }

  close() {
    clearTimeout(this.#timer);
    this.#outer?.removeEventListener("abort", this.#follow);
  }

  /** @param {number} ms */
  #arm(ms) {
    this.#timer = setTimeout(() => {
      const left = this.#paused ? this.#ms : this.#ms - (now() - this.#since);
      if (left > 0) this.#arm(left);
      else this.#controller.abort(this.#reason());
    }, Math.min(Math.max(ms, 0), LONGEST_TIMER));
  }
}

/**
 * The result of a promise, or a rejection with the signal's reason if that comes first.
 * @template T
 * @param {Promise<T>} promise
 * @param {AbortSignal} signal
 * @returns {Promise<T>}
 */
export function unlessAborted(promise, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) {
      promise.catch(() => {}); // nobody asks for it any more
      return abort();
    }
    signal.addEventListener("abort", abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

/**
 * Wait. Rejects with the signal's reason if it is aborted meanwhile.
 * @param {number} ms
 * @param {AbortSignal | null} [signal]
 */
export async function sleep(ms, signal) {
  const limit = new TimeLimit(ms, signal);
  try {
    await new Promise((resolve) => {
      if (limit.signal.aborted) resolve(null);
      else limit.signal.addEventListener("abort", resolve, { once: true });
    });
  } finally {
    limit.close();
  }
  signal?.throwIfAborted();
}

/**
 * The result of `work`, which gets a signal that is aborted after `ms` or by `signal`. Rejects with a `TimeoutError`
 * or with the signal's reason.
 * @template T
 * @param {number} ms
 * @param {AbortSignal | null | undefined} signal
 * @param {(signal: AbortSignal) => Promise<T>} work
 * @param {() => Error} [reason]
 * @returns {Promise<T>}
 */
export async function within(ms, signal, work, reason) {
  const limit = new TimeLimit(ms, signal, reason);
  try {
    limit.signal.throwIfAborted();
    return await work(limit.signal);
  } finally {
    limit.close();
  }
}
