/**
 * The path and query of the feed. Throws RangeError for an unknown type.
 * @param {readonly FeedEventType[]} [types]
 */
export function feedPath(types?: readonly FeedEventType[]): string;
/**
 * The events of the feed, each once and in order, over any number of connections.
 *
 * `lastEventId` is the reader's place, which the service names before the first event already.
 */
export class FeedEvents {
    /**
     * Throws StreamBroken if `lastEventId` is not an id of the feed.
     * @param {string} lastEventId
     * @param {number} limit
     */
    constructor(lastEventId: string, limit: number);
    lastEventId: string;
    /** Begin to read a new connection, which continues after `lastEventId`. An incomplete event is dropped. */
    connect(): void;
    /**
     * The ids and events that this piece of the connection completes; events of unknown names are skipped.
     *
     * Throws StreamBroken, after which a new connection may help, and ResponseTooLarge.
     * @param {Uint8Array} chunk
     * @returns {Generator<[string, FeedEvent], void>}
     */
    feed(chunk: Uint8Array): Generator<[string, FeedEvent], void>;
    /** False: the feed has no end. */
    ends(): boolean;
    #private;
}
export type FeedEvent = import("../types/contracts.js").FeedEvent;
export type FeedEventType = import("../types/contracts.js").FeedEventType;
