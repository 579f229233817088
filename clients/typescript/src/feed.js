// The feed of all jobs' events, over several connections. No input or output.

import { decode } from "./decode.js";
import { StreamBroken } from "./errors.js";
import * as shapes from "./shapes.js";
import { Parser } from "./sse.js";

/** @typedef {import("../types/contracts.js").FeedEvent} FeedEvent */
/** @typedef {import("../types/contracts.js").FeedEventType} FeedEventType */

const FEED = "/api/events";
const FEED_ID = /^[0-9]{1,18}$/;
/** @type {readonly string[]} */
const NAMES = shapes.FeedEventType.words;

/**
 * The path and query of the feed. Throws RangeError for an unknown type.
 * @param {readonly FeedEventType[]} [types]
 */
export function feedPath(types) {
  if (types === undefined) return FEED;
  for (const type of types) if (!NAMES.includes(type)) throw new RangeError(`the types of events are ${NAMES.join(", ")}`);
  return `${FEED}?${new URLSearchParams({ types: types.join(",") })}`;
}

/**
 * The events of the feed, each once and in order, over any number of connections.
 *
 * `lastEventId` is the reader's place, which the service names before the first event already.
 */
export class FeedEvents {
  #limit;
  #parser;

  /**
   * Throws StreamBroken if `lastEventId` is not an id of the feed.
   * @param {string} lastEventId
   * @param {number} limit
   */
  constructor(lastEventId, limit) {
    if (lastEventId && !FEED_ID.test(lastEventId)) throw new StreamBroken("this is not an id of the feed of all jobs");
    this.lastEventId = lastEventId;
    this.#limit = limit;
    this.#parser = new Parser(limit);
  }

  /** Begin to read a new connection, which continues after `lastEventId`. An incomplete event is dropped. */
  connect() {
    this.#parser = new Parser(this.#limit);
  }

  /**
   * The ids and events that this piece of the connection completes; events of unknown names are skipped.
   *
   * Throws StreamBroken, after which a new connection may help, and ResponseTooLarge.
   * @param {Uint8Array} chunk
   * @returns {Generator<[string, FeedEvent], void>}
   */
  *feed(chunk) {
    for (const { event: name, id, data } of this.#parser.feed(chunk)) {
      if (!FEED_ID.test(id)) throw new StreamBroken("an event's id is not one of the feed of all jobs");
      if (this.lastEventId && BigInt(id) <= BigInt(this.lastEventId)) continue; // the reader has it
      const event = NAMES.includes(name) ? decode(shapes.FeedEvent, data) : null;
      if (event === undefined) throw new StreamBroken("a FeedEvent is not what it should be"); // it is asked for again
      this.lastEventId = id;
      if (event) yield [id, event];
    }
  }

  /** False: the feed has no end. */
  ends() {
    return false;
  }
}
