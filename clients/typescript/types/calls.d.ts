/**
 * @param {unknown} error
 * @returns {string}
 */
export function told(error: unknown): string;
/**
 * @param {Uint8Array[]} pieces
 * @param {number} size
 */
export function joined(pieces: Uint8Array[], size: number): Uint8Array<ArrayBufferLike>;
/**
 * A value of `shape` from a document of the service. Throws ApiError for any other document.
 * @template T
 * @param {import("./decode.js").Shape<T>} shape
 * @param {Uint8Array} document
 * @returns {T}
 */
export function known<T>(shape: import("./decode.js").Shape<T>, document: Uint8Array): T;
/**
 * A browser unpacks what it asked for by itself, and its answers are counted unpacked; in Node nobody asked for it.
 * @param {Response} response
 */
export function refuseCompressed(response: Response): void;
/**
 * The exception for an error response (RFC 9457): ServiceUnavailable if its status is in `repeated`.
 * @param {Response} response
 * @param {Uint8Array} body
 * @param {{ has(status: number): boolean }} repeated
 * @returns {InstanceType<typeof ChatJobsError>}
 */
export function failure(response: Response, body: Uint8Array, repeated: {
    has(status: number): boolean;
}): InstanceType<typeof ChatJobsError>;
/** HTTP statuses after which a call is repeated. */
export const CALLS_REPEATED: Set<number>;
/** Whether this runs in Node (or in what imitates it), not in a browser. */
export const IN_NODE: boolean;
/**
 * Milliseconds to wait, at random so that clients do not call together: up to 250, doubled per failure, at most 10 s.
 * @type {Backoff}
 */
export const exponential: Backoff;
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
    /**
     * @param {string} baseUrl
     * @param {HttpOptions} options
     */
    constructor(baseUrl: string, options: HttpOptions);
    timeout: number;
    silence: number;
    maxResponseBytes: number;
    backoff: Backoff;
    /**
     * The response of a call as a value of `shape`. Throws ApiError for another response, too.
     * @template T
     * @param {import("./decode.js").Shape<T>} shape
     * @param {string} method
     * @param {string} path
     * @param {CallOptions} [options]
     * @returns {Promise<T>}
     */
    read<T>(shape: import("./decode.js").Shape<T>, method: string, path: string, options?: CallOptions): Promise<T>;
    /**
     * The body of a successful response. Only calls that may be made twice are made here.
     *
     * Throws ServiceUnavailable once the time is up, ResponseTooLarge, ApiError and the service's errors.
     * @param {string} method
     * @param {string} path
     * @param {CallOptions} [options]
     * @returns {Promise<Uint8Array>}
     */
    call(method: string, path: string, { query, body, key, signal }?: CallOptions): Promise<Uint8Array>;
    /**
     * The connection of a request whose response has begun; close it. Throws ServiceUnavailable.
     * @param {string} path
     * @param {Record<string, string> | undefined} query
     * @param {Init} init `Authorization: ""` sends no key
     * @param {AbortSignal | null | undefined} signal
     * @param {number} [silence]
     */
    open(path: string, query: Record<string, string> | undefined, init: Init, signal: AbortSignal | null | undefined, silence?: number): Promise<Connection>;
    /**
     * The whole body of a response, at most `limit` bytes.
     *
     * Throws ResponseTooLarge, ServiceUnavailable, and ApiError for a compressed response, which was not asked for.
     * @param {Connection} connection
     * @param {number} [limit]
     */
    body(connection: Connection, limit?: number): Promise<Uint8Array<ArrayBufferLike>>;
    /**
     * Throws ResponseTooLarge if `size` is over `limit` bytes.
     * @param {number} size
     * @param {number} [limit]
     */
    check(size: number, limit?: number): void;
    #private;
}
/** A request and its response, read piece by piece. `close` it. */
export class Connection {
    /**
     * @param {typeof globalThis.fetch} fetch
     * @param {string} url
     * @param {RequestInit} init
     * @param {number} silence
     * @param {AbortSignal | null | undefined} signal
     */
    static open(fetch: typeof globalThis.fetch, url: string, init: RequestInit, silence: number, signal: AbortSignal | null | undefined): Promise<Connection>;
    /**
     * @param {number} silence
     * @param {AbortSignal | null | undefined} signal
     */
    constructor(silence: number, signal: AbortSignal | null | undefined);
    /** @type {Response} */
    response: Response;
    /** The next bytes; null at the end. Throws ServiceUnavailable. */
    read(): Promise<Uint8Array<ArrayBufferLike> | null>;
    /** Hang up. */
    close(): void;
    #private;
}
/**
 * Milliseconds to wait after a number of failures in a row; 0 failures: the connection had worked until it broke.
 */
export type Backoff = (failures: number) => number;
export type CallOptions = {
    query?: Record<string, string> | undefined;
    /**
     * JSON
     */
    body?: Uint8Array<ArrayBufferLike> | undefined;
    /**
     * the idempotency key
     */
    key?: string | undefined;
    signal?: AbortSignal | null | undefined;
};
export type Init = Omit<RequestInit, "headers"> & {
    headers?: Record<string, string>;
    duplex?: "half";
};
export type HttpOptions = {
    apiKey?: string | null | undefined;
    /**
     * for a call with all its repetitions
     */
    timeout: number;
    /**
     * without a byte after which a connection counts as dead
     */
    silence: number;
    maxResponseBytes: number;
    backoff: Backoff;
    fetch?: typeof fetch | undefined;
};
declare const ChatJobsError: typeof errors.ChatJobsError;
import * as errors from "./errors.js";
export {};
