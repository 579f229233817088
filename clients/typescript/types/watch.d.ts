/**
 * A job whose events are read while this is open; handlers are called with them in their order.
 *
 * `finished` settles when that ends. An error that a handler throws is not swallowed: it ends the reading, and
 * `finished` is rejected with it. Like any promise that is rejected, it is reported if nobody handles it.
 */
export class JobWatch {
    /**
     * @param {string | ((signal: AbortSignal) => Promise<JobAccepted>)} job an id, or what starts the job
     * @param {(jobId: string, signal: AbortSignal) => AsyncIterable<StreamEvent>} stream
     * @param {(jobId: string) => Promise<import("../types/contracts.js").JobStatus>} cancel
     * @param {AbortSignal | null} [outer] ends the reading with its reason
     */
    constructor(job: string | ((signal: AbortSignal) => Promise<JobAccepted>), stream: (jobId: string, signal: AbortSignal) => AsyncIterable<StreamEvent>, cancel: (jobId: string) => Promise<import("../types/contracts.js").JobStatus>, outer?: AbortSignal | null);
    /** The job, once the service has accepted it. Rejected as `finished` is, and then not reported. @type {Promise<string>} */
    accepted: Promise<string>;
    /**
     * The terminal event; null if the watch was closed before, or began after it. Rejected with what `stream` throws (trouble with the
     * connection is no event until patience is over), with the errors of `submit` after `chat`, and with what a handler
     * throws.
     * @type {Promise<TerminalEvent | null>}
     */
    finished: Promise<TerminalEvent | null>;
    /** The id of the job; null until the service has accepted it. */
    get jobId(): string | null;
    /**
     * Call a handler with every event of a name.
     * @template {keyof JobEventMap} K
     * @param {K} name
     * @param {(event: JobEventMap[K]) => unknown} handler
     * @returns {this}
     */
    on<K extends keyof JobEventMap>(name: K, handler: (event: JobEventMap[K]) => unknown): this;
    /**
     * Call a handler with the next event of a name only.
     * @template {keyof JobEventMap} K
     * @param {K} name
     * @param {(event: JobEventMap[K]) => unknown} handler
     * @returns {this}
     */
    once<K extends keyof JobEventMap>(name: K, handler: (event: JobEventMap[K]) => unknown): this;
    /**
     * Call a handler no more.
     * @template {keyof JobEventMap} K
     * @param {K} name
     * @param {(event: JobEventMap[K]) => unknown} handler
     * @returns {this}
     */
    off<K extends keyof JobEventMap>(name: K, handler: (event: JobEventMap[K]) => unknown): this;
    /** Read no more; the job continues. `finished` is then null. */
    close(): void;
    /** Cancel the job, durably; its status now. Waits until the job is accepted. Throws what `cancel` throws. */
    cancel(): Promise<import("../types/contracts.js").JobStatus>;
    #private;
}
export type StreamEvent = import("../types/contracts.js").StreamEvent;
export type JobAccepted = import("../types/contracts.js").JobAccepted;
export type EventOf<T> = Extract<StreamEvent, {
    type: T;
}>;
/**
 * The events that handlers are called with, by name.
 *
 * `chat:queued`: the job waits for the model's rate limit. `chat:start`: once, also after reconnects. `chat:chunk`: a
 * piece of the answer. `chat:reset`: drop the text so far, the answer starts over. `chat:complete`: the answer is
 * complete, or as long as a limit allows. `chat:error`: the job has failed for good. `chat:cancelled`: it was cancelled.
 */
export type JobEventMap = { [E in StreamEvent as `chat:${E["type"]}`]: E; };
export type TerminalEvent = EventOf<"complete" | "error" | "cancelled">;
