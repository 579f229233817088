/** The calls on batches. Methods throw what ChatJobs throws, and the errors that they name. */
export class BatchCalls {
    /**
     * @param {import("./calls.js").Http} http
     * @param {{ patience: number, maxEventBytes: number }} limits
     */
    constructor(http: import("./calls.js").Http, { patience, maxEventBytes }: {
        patience: number;
        maxEventBytes: number;
    });
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
    submit(items: Items, { idempotencyKey, timeout, signal, ...settings }?: BatchOptions): Promise<BatchAccepted>;
    /**
     * The batch as it is now. Throws BatchNotFound.
     * @param {string} batchId
     * @param {Signal} [options]
     * @returns {Promise<Batch>}
     */
    get(batchId: string, { signal }?: Signal): Promise<Batch>;
    /**
     * Batches, newest first, read in pages of `pageSize`. Throws InvalidRequest.
     * @param {{ status?: BatchStatus, since?: Date | string, pageSize?: number, signal?: AbortSignal | null }} [options]
     * @returns {AsyncGenerator<Batch, void, void>}
     */
    list({ pageSize, signal, ...filter }?: {
        status?: BatchStatus;
        since?: Date | string;
        pageSize?: number;
        signal?: AbortSignal | null;
    }): AsyncGenerator<Batch, void, void>;
    /**
     * One page of `list`, at most `limit` batches; a page's `nextCursor` is the `cursor` of the next one. For user
     * interfaces. Throws InvalidRequest.
     * @param {{ status?: BatchStatus, since?: Date | string, limit?: number, cursor?: string | null, signal?: AbortSignal | null }} [options]
     * @returns {Promise<BatchPage>}
     */
    page({ status, since, limit, cursor, signal }?: {
        status?: BatchStatus;
        since?: Date | string;
        limit?: number;
        cursor?: string | null;
        signal?: AbortSignal | null;
    }): Promise<BatchPage>;
    /**
     * Let no further item begin, durably; those that run finish. The status now. Throws BatchNotFound, BatchFinished.
     * @param {string} batchId
     * @param {Signal} [options]
     */
    pause(batchId: string, options?: Signal): Promise<import("../types/contracts.js").BatchStatus>;
    /**
     * Let items begin again, durably. The status now. Throws BatchNotFound, BatchFinished.
     * @param {string} batchId
     * @param {Signal} [options]
     */
    resume(batchId: string, options?: Signal): Promise<import("../types/contracts.js").BatchStatus>;
    /**
     * Cancel all items that have not ended, durably. The status now, which may not be the last one yet.
     *
     * Throws BatchNotFound, BatchFinished.
     * @param {string} batchId
     * @param {Signal} [options]
     */
    cancel(batchId: string, options?: Signal): Promise<import("../types/contracts.js").BatchStatus>;
    /**
     * The batch once it has ended, with any terminal status.
     *
     * `timeout` is in milliseconds. Throws BatchNotFound, a `TimeoutError` and what `watch` throws.
     * @param {string} batchId
     * @param {{ timeout?: number, signal?: AbortSignal | null }} [options]
     * @returns {Promise<Batch>}
     */
    wait(batchId: string, { timeout, signal }?: {
        timeout?: number;
        signal?: AbortSignal | null;
    }): Promise<Batch>;
    /**
     * The states of a batch, from the one it has now to its terminal one, at most two per second.
     *
     * A broken connection is opened again. `timeout` is in milliseconds, for the whole stream. Throws StreamBroken if
     * `lastEventId` is not an event's id; iterating throws BatchNotFound, a `TimeoutError`, StreamBroken.
     * @param {string} batchId
     * @param {{ lastEventId?: string, timeout?: number, signal?: AbortSignal | null, onConnection?: import("./stream.js").OnConnection }} [options]
     * @returns {Stream<BatchProgress>}
     */
    watch(batchId: string, { lastEventId, timeout, signal, onConnection }?: {
        lastEventId?: string;
        timeout?: number;
        signal?: AbortSignal | null;
        onConnection?: import("./stream.js").OnConnection;
    }): Stream<BatchProgress>;
    /**
     * The answers so far, in the order of the items.
     *
     * A broken connection is opened again, and the lines go on where they were. Throws BatchNotFound, ResponseTooLarge,
     * StreamBroken.
     * @param {string} batchId
     * @param {Signal} [options]
     * @returns {AsyncGenerator<OutputLine, void, void>}
     */
    output(batchId: string, { signal }?: Signal): AsyncGenerator<OutputLine, void, void>;
    /**
     * The items that have ended without an answer, in their order; otherwise as `output`.
     * @param {string} batchId
     * @param {Signal} [options]
     * @returns {AsyncGenerator<OutputLine, void, void>}
     */
    errors(batchId: string, { signal }?: Signal): AsyncGenerator<OutputLine, void, void>;
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
    download(batchId: string, target: WritableStream<Uint8Array>, { errors, signal }?: {
        errors?: boolean;
        signal?: AbortSignal | null;
    }): Promise<number>;
    #private;
}
export type Batch = import("../types/contracts.js").Batch;
export type BatchAccepted = import("../types/contracts.js").BatchAccepted;
export type BatchPage = import("../types/contracts.js").BatchPage;
export type BatchProgress = import("../types/contracts.js").BatchProgress;
export type BatchStatus = import("../types/contracts.js").BatchStatus;
export type OutputLine = import("../types/contracts.js").OutputLine;
export type Item = import("./prompts.js").Item;
export type Signal = {
    signal?: AbortSignal | null;
};
/**
 * The items of a batch: a file with an item in each line (a Blob, such as a browser's File or what `fs.openAsBlob`
 * gives, or a stream of its bytes), or items.
 */
export type Items = Blob | ReadableStream<Uint8Array> | Iterable<Item> | AsyncIterable<Item>;
export type BatchOptions = {
    name?: string | undefined;
    /**
     * a URL, or one with the events wanted
     */
    webhook?: string | import("../types/contracts.js").BatchWebhook | undefined;
    concurrency?: number | undefined;
    lane?: "live" | "batch" | undefined;
    deadline?: string | Date | undefined;
    /**
     * fields of a request for items that lack them
     */
    defaults?: import("./prompts.js").ChatFields | undefined;
    idempotencyKey?: string | undefined;
    /**
     * milliseconds for everything
     */
    timeout?: number | undefined;
    signal?: AbortSignal | null | undefined;
};
import { Stream } from "./stream.js";
