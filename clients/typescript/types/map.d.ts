/**
 * The exception that says why a job that has ended has no answer; null if it has one.
 * @param {Job} job
 */
export function unsuccessful(job: Job): JobFailed | null;
/**
 * The exception for a job's error.
 * @param {import("../types/contracts.js").JobError} error
 */
export function failed({ message, code, retryable, cause }: import("../types/contracts.js").JobError): JobFailed;
/**
 * @template P
 * @param {Iterable<P> | AsyncIterable<P>} items
 * @returns {Iterator<P> | AsyncIterator<P>}
 */
export function iteratorOf<P>(items: Iterable<P> | AsyncIterable<P>): Iterator<P> | AsyncIterator<P>;
/** @template P */
export class Mapping<P> {
    /**
     * @param {(prompt: P, key: string | undefined, signal: AbortSignal) => Promise<Job>} ask
     * @param {Iterable<P> | AsyncIterable<P>} prompts
     * @param {{ concurrency: number, onProgress?: (progress: Progress) => unknown, prefix?: string }} options
     */
    constructor(ask: (prompt: P, key: string | undefined, signal: AbortSignal) => Promise<Job>, prompts: Iterable<P> | AsyncIterable<P>, { concurrency, onProgress, prefix }: {
        concurrency: number;
        onProgress?: (progress: Progress) => unknown;
        prefix?: string;
    });
    /**
     * The outcomes in the order of the prompts. Throws what iterating over the prompts throws, and the signal's reason.
     * @param {AbortSignal | null | undefined} signal
     * @returns {AsyncGenerator<Outcome, void, void>}
     */
    outcomes(signal: AbortSignal | null | undefined): AsyncGenerator<Outcome, void, void>;
    #private;
}
export type Job = import("../types/contracts.js").Job;
/**
 * The number of prompts of `map` that are done, and of those that failed, which are among them. `total` is null if the
 * prompts have no length.
 */
export type Progress = {
    done: number;
    failed: number;
    total: number | null;
};
/**
 * The outcome of prompt number `index` of `map`, from 0. `error` says why there is no answer, and is null if there is
 * one; `job` is null unless the job has ended; `content` is the text of the answer, null if there is none.
 */
export type Outcome = {
    index: number;
    job: Job | null;
    error: ChatJobsError | null;
    content: string | null;
};
import { JobFailed } from "./errors.js";
import { ChatJobsError } from "./errors.js";
