/** The error of an operation that took longer than its `timeout`: the one that `AbortSignal.timeout` makes. */
export function timeoutError(): DOMException;
/**
 * The result of a promise, or a rejection with the signal's reason if that comes first.
 * @template T
 * @param {Promise<T>} promise
 * @param {AbortSignal} signal
 * @returns {Promise<T>}
 */
export function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T>;
/**
 * Wait. Rejects with the signal's reason if it is aborted meanwhile.
 * @param {number} ms
 * @param {AbortSignal | null} [signal]
 */
export function sleep(ms: number, signal?: AbortSignal | null): Promise<void>;
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
export function within<T>(ms: number, signal: AbortSignal | null | undefined, work: (signal: AbortSignal) => Promise<T>, reason?: () => Error): Promise<T>;
export function now(): number;
/**
 * A signal that is aborted with the reason of `outer`, or with `reason()` once nobody has called `renew` for `ms`.
 * Close it when the work is over.
 */
export class TimeLimit {
    /**
     * @param {number} ms
     * @param {AbortSignal | null | undefined} outer
     * @param {() => Error} [reason]
     */
    constructor(ms: number, outer: AbortSignal | null | undefined, reason?: () => Error);
    get signal(): AbortSignal;
    /** The time begins anew. */
    renew(): void;
    /** The time stands still until it begins anew. */
    pause(): void;
    /**
     * Abort the signal now.
     * @param {unknown} reason
     */
    end(reason: unknown): void;
    close(): void;
    #private;
}
