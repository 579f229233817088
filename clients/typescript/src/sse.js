// Server-sent events: parsing, and the events of a job or batch over several connections. No input or output.
//
// Source of the format: the HTML standard, https://html.spec.whatwg.org/multipage/server-sent-events.html.

import { joined } from "./calls.js";
import { decode } from "./decode.js";
import { ResponseTooLarge, StreamBroken } from "./errors.js";
import * as shapes from "./shapes.js";

/** @typedef {import("../types/contracts.js").StreamEvent} StreamEvent */
/** @typedef {import("../types/contracts.js").BatchProgress} BatchProgress */

/** Most bytes of one event. */
export const MAX_EVENT_BYTES = 16 * 1024 * 1024;

const [LF, CR] = [10, 13];
const BOM = [0xef, 0xbb, 0xbf];
// Each line by itself: line ends are ASCII, so they never lie inside a character.
const UTF8 = new TextDecoder("utf-8", { ignoreBOM: true });

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
  lastEventId = "";
  /** The time to wait before the next connection, in milliseconds; null until the server sends it. @type {number | null} */
  retry = null;
  #limit;
  /** @type {Uint8Array[]} */
  #line = [];
  #length = 0;
  #first = true;
  #afterCr = false;
  #event = "";
  /** @type {string[]} */
  #data = [];
  #size = 0;

  /** @param {number} [limit] */
  constructor(limit = MAX_EVENT_BYTES) {
    this.#limit = limit;
  }

  /**
   * The events that this piece completes. Iterate to the end before the next piece. Throws ResponseTooLarge.
   * @param {Uint8Array} chunk
   * @returns {Generator<ServerEvent, void>}
   */
  *feed(chunk) {
    for (const line of this.#lines(chunk)) {
      if (line.length) this.#take(line);
      else {
        const event = this.#dispatched();
        if (event) yield event;
      }
    }
  }

  /**
   * The complete lines, without their ends.
   * @param {Uint8Array} chunk
   * @returns {Generator<Uint8Array, void>}
   */
  *#lines(chunk) {
    let from = this.#afterCr && chunk[0] === LF ? 1 : 0;
    if (chunk.length) this.#afterCr = chunk[chunk.length - 1] === CR;
    let [lf, cr] = [chunk.indexOf(LF, from), chunk.indexOf(CR, from)];
    while (from < chunk.length) {
      const end = lf < 0 || cr < 0 ? Math.max(lf, cr) : Math.min(lf, cr);
      this.#add(chunk.subarray(from, end < 0 ? chunk.length : end));
      if (end < 0) return;
      yield this.#completed();
      from = end + (end === cr && lf === cr + 1 ? 2 : 1);
      if (lf >= 0 && lf < from) lf = chunk.indexOf(LF, from);
      if (cr >= 0 && cr < from) cr = chunk.indexOf(CR, from);
    }
  }

  /** @param {Uint8Array} piece */
  #add(piece) {
    this.#length += piece.length;
    if (this.#size + this.#length > this.#limit) {
      throw new ResponseTooLarge(`an event of the stream has more than ${this.#limit} bytes`);
    }
    if (piece.length) this.#line.push(piece.slice()); // a copy: the buffer is the server's next piece
  }

  #completed() {
    const line = joined(this.#line, this.#length);
    [this.#line, this.#length] = [[], 0];
    if (!this.#first) return line;
    this.#first = false;
    return BOM.every((byte, at) => line[at] === byte) ? line.subarray(BOM.length) : line;
  }

  /** @param {Uint8Array} line */
  #take(line) {
    const text = UTF8.decode(line);
    const colon = text.indexOf(":");
    const name = colon < 0 ? text : text.slice(0, colon);
    const value = colon < 0 ? "" : text.slice(text[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "data") {
      this.#data.push(value);
      this.#size += line.length - "data:".length + 1;
    } else if (name === "event") this.#event = value;
    else if (name === "id" && !value.includes("\0")) this.lastEventId = value;
    else if (name === "retry" && /^[0-9]{1,15}$/.test(value)) this.retry = Number(value);
  }

  /** The event that a blank line completes; null if there was no data. */
  #dispatched() {
    const [event, data] = [this.#event || "message", this.#data];
    [this.#event, this.#data, this.#size] = ["", [], 0];
    return data.length ? { event, id: this.lastEventId, data: data.join("\n") } : null;
  }
}

/** A place in a job's text: `position` characters (Unicode code points) of the text of an `epoch` lie before it. */
class Place {
  /**
   * @param {number} epoch
   * @param {number} position
   */
  constructor(epoch, position) {
    this.epoch = epoch;
    this.position = position;
  }

  /**
   * The place in an event's id, `<epoch>.<position>` with `.end` on a terminal one. Throws StreamBroken.
   * @param {string} eventId
   */
  static of(eventId) {
    const found = /^([0-9]{1,9})\.([0-9]{1,15})(\.end)?$/.exec(eventId);
    if (!found || Number(found[1]) === 0) throw new StreamBroken("an event's id is not one of a job's stream");
    return new Place(Number(found[1]), Number(found[2]));
  }

  /** @param {Place} other */
  is(other) {
    return this.epoch === other.epoch && this.position === other.position;
  }
}

/** @type {Record<string, import("./decode.js").Shape<any>>} */
const EVENTS = {
  start: shapes.StartEvent,
  chunk: shapes.ChunkEvent,
  reset: shapes.ResetEvent,
  complete: shapes.CompleteEvent,
  error: shapes.ErrorEvent,
  cancelled: shapes.CancelledEvent,
};
const TERMINAL = new Set(["complete", "error", "cancelled"]);
const BATCH_EVENTS = new Set(["progress", "complete", "cancelled", "error"]);
const BATCH_ENDS = new Set(["completed", "cancelled", "failed"]);

/**
 * The events of a job's stream, each once and without a gap, over any number of connections.
 *
 * Ids make this possible: a chunk's id is the place after its text, so the place before its text must be the reader's.
 */
export class JobEvents {
  /** @type {Place | null} */
  #place;
  #limit;
  #parser;

  /**
   * Throws StreamBroken if `lastEventId` is not an id of a job's stream.
   * @param {string} lastEventId the id of the last event that the reader has
   * @param {number} limit
   */
  constructor(lastEventId, limit) {
    this.lastEventId = lastEventId;
    this.#place = lastEventId ? Place.of(lastEventId) : null;
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
   * A `queued` event has no id of its own: it comes with that of the event before.
   * Throws StreamBroken, after which a new connection may help, and ResponseTooLarge.
   * @param {Uint8Array} chunk
   * @returns {Generator<[string, StreamEvent], void>}
   */
  *feed(chunk) {
    for (const { event: name, id, data } of this.#parser.feed(chunk)) {
      if (name === "queued") {
        yield [this.lastEventId, readEvent(name, shapes.QueuedEvent, data)]; // it is at no place of the text
        continue;
      }
      if (!id) continue; // it is no part of the job's text
      const event = Object.hasOwn(EVENTS, name) ? readEvent(name, EVENTS[name], data) : null;
      if (this.#moved(Place.of(id), event)) {
        this.lastEventId = id;
        if (event) yield [id, event];
      }
    }
  }

  /**
   * Whether an event is the terminal one.
   * @param {StreamEvent} event
   */
  ends(event) {
    return TERMINAL.has(event.type);
  }

  /**
   * Move to an event's place; false if the reader has the event already. Throws StreamBroken.
   * @param {Place} to
   * @param {StreamEvent | null} event
   */
  #moved(to, event) {
    const here = this.#place;
    if (here !== null) {
      if (event === null && !here.is(to)) return false; // of an unknown name; if it had text, the next event shows the gap
      if (event?.type === "start") return false;
      if (event?.type === "chunk" && !here.is(new Place(to.epoch, to.position - characters(event.content)))) {
        throw new StreamBroken("a piece of the text is missing or comes twice");
      }
      if (event && TERMINAL.has(event.type) && !here.is(to)) throw new StreamBroken("the end of the text is missing");
    }
    this.#place = to;
    return true;
  }
}

/** The states of a batch, over any number of connections; each begins with the state as it is then. */
export class BatchEvents {
  #limit;
  #parser;
  #last = "";

  /**
   * Throws StreamBroken if `lastEventId` is not an id of a batch's stream.
   * @param {string} lastEventId the id of the last state that the reader has
   * @param {number} limit
   */
  constructor(lastEventId, limit) {
    if (lastEventId) Place.of(lastEventId);
    this.lastEventId = lastEventId;
    this.#limit = limit;
    this.#parser = new Parser(limit);
  }

  /** Begin to read a new connection. An incomplete event is dropped. */
  connect() {
    this.#parser = new Parser(this.#limit);
  }

  /**
   * The ids and states that this piece of the connection completes, without those that the reader has.
   *
   * Throws StreamBroken, after which a new connection may help, and ResponseTooLarge.
   * @param {Uint8Array} chunk
   * @returns {Generator<[string, BatchProgress], void>}
   */
  *feed(chunk) {
    for (const { event: name, id, data } of this.#parser.feed(chunk)) {
      if (!BATCH_EVENTS.has(name)) continue;
      const state = readData(shapes.BatchProgress, data);
      if (id) this.lastEventId = id;
      const same = JSON.stringify(state);
      if (same === this.#last) continue;
      this.#last = same;
      yield [this.lastEventId, state];
    }
  }

  /**
   * Whether a state is the last one.
   * @param {BatchProgress} state
   */
  ends(state) {
    return BATCH_ENDS.has(state.status);
  }
}

/**
 * The number of characters of a text, which are Unicode code points.
 * @param {string} text
 */
function characters(text) {
  return text.length - (text.match(/[\ud800-\udbff][\udc00-\udfff]/g)?.length ?? 0);
}

/**
 * @param {string} type
 * @param {import("./decode.js").Shape<any>} shape
 * @param {string} data
 * @returns {any}
 */
function readEvent(type, shape, data) {
  return { type, ...readData(shape, data) };
}

/**
 * An event from the JSON of its data. Throws StreamBroken.
 * @template T
 * @param {import("./decode.js").Shape<T>} shape
 * @param {string} data
 * @returns {T}
 */
function readData(shape, data) {
  const found = decode(shape, data);
  if (found === undefined) throw new StreamBroken(`a ${shape.title} is not what it should be`);
  return found;
}
