/** Most bytes of an error's body. */
export const MAX_PROBLEM_BYTES: number;
export namespace STREAMS_REPEATED {
    function has(status: number): boolean;
}
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
export class Stream<E> {
    /**
     * @param {import("./calls.js").Http} http
     * @param {string} path
     * @param {Events<E>} events
     * @param {StreamLimits} limits
     */
    constructor(http: import("./calls.js").Http, path: string, events: Events<E>, limits: StreamLimits);
    /** The id of the last event that the loop received: with it a later `stream` goes on. @type {string} */
    lastEventId: string;
    /** Close the connection; a loop over the events ends. What is streamed continues. */
    close(): void;
    /** @returns {AsyncGenerator<E, void, void>} */
    [Symbol.asyncIterator](): AsyncGenerator<E, void, void>;
    #private;
}
/**
 * The events of one stream over several connections, from their bytes.
 */
export type Events<E> = {
    /**
     * the id of the last event that the reader has
     */
    lastEventId: string;
    connect: () => void;
    /**
     * throws StreamBroken, ResponseTooLarge
     */
    feed: (chunk: Uint8Array) => Iterable<[string, E]>;
    ends: (event: E) => boolean;
};
/**
 * A stream token, or a function that gets one for each connection: a token is checked when connecting, and expires.
 */
export type Token = string | (() => string | Promise<string>);
/**
 * Called with true when a connection is open, and with false when it is lost and another one will be tried.
 */
export type OnConnection = (connected: boolean) => unknown;
export type StreamLimits = {
    /**
     * milliseconds without a byte from the service, over all connections
     */
    patience: number;
    /**
     * milliseconds in all
     */
    timeout: number;
    signal?: AbortSignal | null | undefined;
    token?: Token | undefined;
    onConnection?: OnConnection | undefined;
};
