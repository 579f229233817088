/** @typedef {import("../types/contracts.js").StreamEvent} StreamEvent */
/** @typedef {import("../types/contracts.js").BatchProgress} BatchProgress */
/** Most bytes of one event. */
export const MAX_EVENT_BYTES: number;
/**
 * One event that was read: its name (`message` if it has none), the last id received, and its data.
 * @typedef {{ event: string, id: string, data: string }} ServerEvent
 */
/**
 * A parser of a stream of bytes, which may be cut into pieces anywhere.
 *
 * Memory is bounded: an event, or a line, over `limit` bytes throws ResponseTooLarge.
 */
export class Parser {
    /** @param {number} [limit] */
    constructor(limit?: number);
    lastEventId: string;
    /** The time to wait before the next connection, in milliseconds; null until the server sends it. @type {number | null} */
    retry: number | null;
    /**
     * The events that this piece completes. Iterate to the end before the next piece. Throws ResponseTooLarge.
     * @param {Uint8Array} chunk
     * @returns {Generator<ServerEvent, void>}
     */
    feed(chunk: Uint8Array): Generator<ServerEvent, void>;
    #private;
}
/**
 * The events of a job's stream, each once and without a gap, over any number of connections.
 *
 * Ids make this possible: a chunk's id is the place after its text, so the place before its text must be the reader's.
 */
export class JobEvents {
    /**
     * Throws StreamBroken if `lastEventId` is not an id of a job's stream.
     * @param {string} lastEventId the id of the last event that the reader has
     * @param {number} limit
     */
    constructor(lastEventId: string, limit: number);
    lastEventId: string;
    /** Begin to read a new connection, which continues after `lastEventId`. An incomplete event is dropped. */
    connect(): void;
    /**
     * The ids and events that this piece of the connection completes; events of unknown names are skipped.
     *
     * A `queued` event has no id of its own: it comes with that of the event before.
     * Throws StreamBroken, after which a new connection may help, and ResponseTooLarge.
     * @param {Uint8Array} chunk
     * @returns {Generator<[string, StreamEvent], void>}
     */
    feed(chunk: Uint8Array): Generator<[string, StreamEvent], void>;
    /**
     * Whether an event is the terminal one.
     * @param {StreamEvent} event
     */
    ends(event: StreamEvent): boolean;
    #private;
}
/** The states of a batch, over any number of connections; each begins with the state as it is then. */
export class BatchEvents {
    /**
     * Throws StreamBroken if `lastEventId` is not an id of a batch's stream.
     * @param {string} lastEventId the id of the last state that the reader has
     * @param {number} limit
     */
    constructor(lastEventId: string, limit: number);
    lastEventId: string;
    /** Begin to read a new connection. An incomplete event is dropped. */
    connect(): void;
    /**
     * The ids and states that this piece of the connection completes, without those that the reader has.
     *
     * Throws StreamBroken, after which a new connection may help, and ResponseTooLarge.
     * @param {Uint8Array} chunk
     * @returns {Generator<[string, BatchProgress], void>}
     */
    feed(chunk: Uint8Array): Generator<[string, BatchProgress], void>;
    /**
     * Whether a state is the last one.
     * @param {BatchProgress} state
     */
    ends(state: BatchProgress): boolean;
    #private;
}
export type StreamEvent = import("../types/contracts.js").StreamEvent;
export type BatchProgress = import("../types/contracts.js").BatchProgress;
/**
 * One event that was read: its name (`message` if it has none), the last id received, and its data.
 */
export type ServerEvent = {
    event: string;
    id: string;
    data: string;
};
