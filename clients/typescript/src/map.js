// One run of ChatJobs.map: a feeder starts jobs, whose outcomes come in the order of their prompts.

import { ChatJobsError, JobFailed, ServiceUnavailable } from "./errors.js";
import { unlessAborted } from "./timing.js";

/** @typedef {import("../types/contracts.js").Job} Job */

/**
 * The number of prompts of `map` that are done, and of those that failed, which are among them. `total` is null if the
 * prompts have no length.
 * @typedef {{ done: number, failed: number, total: number | null }} Progress
 */
/**
 * The outcome of prompt number `index` of `map`, from 0. `error` says why there is no answer, and is null if there is
 * one; `job` is null unless the job has ended; `content` is the text of the answer, null if there is none.
 * @typedef {object} Outcome
 * @property {number} index
 * @property {Job | null} job
 * @property {ChatJobsError | null} error
 * @property {string | null} content
 */

/** A number of places, for which callers wait in line. */
class Places {
  #free;
  /** @type {(() => void)[]} */
  #waiting = [];

  /** @param {number} free */
  constructor(free) {
    this.#free = free;
  }

  /** @param {AbortSignal} signal */
  async acquire(signal) {
    if (this.#free > 0) return void this.#free--;
    await unlessAborted(new Promise((resolve) => this.#waiting.push(() => resolve(null))), signal);
  }

  release() {
    const next = this.#waiting.shift();
    if (next) next();
    else this.#free++;
  }
}

/** @template P */
export class Mapping {
  #ask;
  #prompts;
  #progress;
  #prefix;
  #running;
  /** A slow job delays the outcomes after it, but not their jobs, as long as so many fit. */
  #kept;
  /** @type {Promise<Outcome>[]} */
  #outcomes = [];
  #fed = false;
  #wake = () => {};
  #stop = new AbortController();
  #total;
  #done = 0;
  #failed = 0;

  /**
   * @param {(prompt: P, key: string | undefined, signal: AbortSignal) => Promise<Job>} ask
   * @param {Iterable<P> | AsyncIterable<P>} prompts
   * @param {{ concurrency: number, onProgress?: (progress: Progress) => unknown, prefix?: string }} options
   */
  constructor(ask, prompts, { concurrency, onProgress, prefix }) {
    this.#ask = ask;
    this.#prompts = prompts;
    this.#progress = onProgress;
    this.#prefix = prefix;
    this.#running = new Places(concurrency);
    this.#kept = new Places(10 * concurrency);
    this.#total = Array.isArray(prompts) ? prompts.length : prompts instanceof Set ? prompts.size : null;
  }

  /**
   * The outcomes in the order of the prompts. Throws what iterating over the prompts throws, and the signal's reason.
   * @param {AbortSignal | null | undefined} signal
   * @returns {AsyncGenerator<Outcome, void, void>}
   */
  async *outcomes(signal) {
    const follow = () => this.#stop.abort(signal?.reason);
    signal?.throwIfAborted();
    signal?.addEventListener("abort", follow, { once: true });
    const feeding = this.#feed();
    feeding.catch(() => {}); // told below
    try {
      for (;;) {
        const next = this.#outcomes.shift();
        if (next) {
          yield await unlessAborted(next, this.#stop.signal);
          this.#kept.release();
        } else if (this.#fed) break;
        else await unlessAborted(new Promise((resolve) => (this.#wake = () => resolve(null))), this.#stop.signal);
      }
      await feeding; // throws what the prompts threw
    } finally {
      signal?.removeEventListener("abort", follow);
      this.#stop.abort(new DOMException("The outcomes are no longer wanted", "AbortError"));
    }
  }

  async #feed() {
    const { signal } = this.#stop;
    const iterator = iteratorOf(this.#prompts);
    let exhausted = false;
    try {
      for (let index = 0; ; index++) {
        const { done, value } = await unlessAborted(Promise.resolve(iterator.next()), signal);
        exhausted = Boolean(done);
        if (exhausted) return;
        await this.#kept.acquire(signal);
        await this.#running.acquire(signal);
        const outcome = this.#run(index, value);
        outcome.catch(() => {}); // told when its turn comes
        this.#outcomes.push(outcome);
        this.#wake();
      }
    } finally {
      this.#fed = true;
      this.#wake();
      // Not awaited: an iterator that waits for its next prompt ends only after that.
      if (!exhausted) Promise.resolve(iterator.return?.()).catch(() => {});
    }
  }

  /**
   * @param {number} index
   * @param {P} prompt
   */
  async #run(index, prompt) {
    let outcome;
    try {
      outcome = await this.#outcome(index, prompt);
    } finally {
      this.#running.release();
    }
    this.#done++;
    if (outcome.error) this.#failed++;
    this.#progress?.({ done: this.#done, failed: this.#failed, total: this.#total });
    return outcome;
  }

  /**
   * @param {number} index
   * @param {P} prompt
   * @returns {Promise<Outcome>}
   */
  async #outcome(index, prompt) {
    const key = this.#prefix === undefined ? undefined : `${this.#prefix}-${index}`;
    try {
      const job = await this.#ask(prompt, key, this.#stop.signal);
      const error = unsuccessful(job);
      return { index, job, error, content: error ? null : job.content };
    } catch (error) {
      return { index, job: null, error: ofOne(error), content: null };
    }
  }
}

/**
 * The error of one prompt; any other one is thrown, and ends the whole.
 * @param {unknown} error
 */
function ofOne(error) {
  if (error instanceof ChatJobsError) return error;
  if (error instanceof DOMException && error.name === "TimeoutError") {
    return new ServiceUnavailable("the job did not end in time", { reason: "timeout" });
  }
  throw error;
}

/**
 * The exception that says why a job that has ended has no answer; null if it has one.
 * @param {Job} job
 */
export function unsuccessful(job) {
  if (job.status === "completed" || job.status === "incomplete") return null;
  return job.error ? failed(job.error) : new JobFailed(`The job was ${job.status}`, { reason: job.status });
}

/**
 * The exception for a job's error.
 * @param {import("../types/contracts.js").JobError} error
 */
export function failed({ message, code, retryable, cause }) {
  return new JobFailed(message, { reason: code, retryable, cause: cause?.code ?? null });
}

/**
 * @template P
 * @param {Iterable<P> | AsyncIterable<P>} items
 * @returns {Iterator<P> | AsyncIterator<P>}
 */
export function iteratorOf(items) {
  const found = /** @type {any} */ (items);
  return found[Symbol.asyncIterator]?.() ?? found[Symbol.iterator]();
}
