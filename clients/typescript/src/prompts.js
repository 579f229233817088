// What callers give as prompts, requests and items of a batch, as JSON of the wire.

import { hasLoneSurrogate } from "./decode.js";
import { InvalidRequest } from "./errors.js";

/** @typedef {import("../types/contracts.js").ChatRequest} ChatRequest */
/** @typedef {import("../types/contracts.js").BatchItem} BatchItem */

/**
 * The fields of a request beside its messages, under their names on the wire (`max_tokens`, `jobId`, `startAt`).
 * A time may be a Date.
 * @typedef {Omit<ChatRequest, "messages" | "startAt"> & { startAt?: Date | string | null }} ChatFields
 */
/**
 * The prompt of a job: the text of a user message, messages, or a whole request.
 * @typedef {string | readonly import("../types/contracts.js").Message[] | ChatRequest} Prompt
 */
/**
 * An item of a batch: a prompt, an item as it stands in a batch file (with `body`), or a pair of the `custom_id` and a
 * prompt.
 * @typedef {Prompt | BatchItem | readonly [customId: string, prompt: Prompt]} Item
 */

const ENCODER = new TextEncoder();
const NOT_JSON = "has a value that JSON does not have";

/**
 * A request as JSON: only the fields that were given. Throws InvalidRequest.
 * @param {Prompt} prompt
 * @param {object} fields
 */
export function requestBody(prompt, fields) {
  return jsonBytes({ ...promptFields(prompt), ...fields });
}

/**
 * An item of a batch as a line of JSON, with its end. The service checks the request. Throws InvalidRequest.
 * @param {Item} item
 */
export function itemLine(item) {
  return ENCODER.encode(`${jsonText(itemFields(item))}\n`);
}

/** @param {Item} item */
function itemFields(item) {
  if (isPair(item)) return { custom_id: item[0], body: promptFields(item[1]) };
  return typeof item === "object" && "body" in item ? item : { body: promptFields(item) };
}

/**
 * Messages are objects, so that a text at the beginning of a pair tells the two apart.
 * @param {Item} item
 * @returns {item is readonly [string, Prompt]}
 */
function isPair(item) {
  return Array.isArray(item) && item.length === 2 && typeof item[0] === "string";
}

/**
 * The fields of a request that a prompt sets.
 * @param {Prompt} prompt
 * @returns {object}
 */
function promptFields(prompt) {
  if (typeof prompt === "string") return { messages: [{ role: "user", content: prompt }] };
  if (Array.isArray(prompt)) return { messages: prompt };
  if (typeof prompt === "object" && prompt !== null) return prompt;
  throw new TypeError("a prompt is a text, a list of messages, or a request");
}

/**
 * JSON in UTF-8; undefined fields are left out. Throws InvalidRequest for what JSON (RFC 8259) does not have: NaN,
 * Infinity, lone surrogates, functions, symbols, BigInt, circles.
 * @param {unknown} value
 * @returns {Uint8Array}
 */
export function jsonBytes(value) {
  return ENCODER.encode(jsonText(value));
}

/**
 * @param {unknown} value
 * @returns {string}
 */
export function jsonText(value) {
  let text;
  try {
    text = JSON.stringify(value, refuseOdd);
  } catch (error) {
    if (error instanceof InvalidRequest) throw error;
    throw notJson(); // a circle, a BigInt, or a Date that is none
  }
  // JSON.stringify escapes lone surrogates, and nothing else that begins like this.
  if (/\\ud[89a-f]/.test(text) && hasLoneSurrogate(JSON.parse(text))) throw notJson();
  return text;
}

/**
 * @this {any}
 * @param {string} name
 * @param {unknown} value
 */
function refuseOdd(name, value) {
  const given = this[name];
  if (given instanceof Date && Number.isNaN(given.getTime())) throw notJson();
  const odd = typeof value === "number" ? !Number.isFinite(value) : ["function", "symbol"].includes(typeof value);
  if (odd || (value === undefined && Array.isArray(this))) throw notJson();
  return value;
}

const notJson = () => new InvalidRequest([{ pointer: "", message: NOT_JSON }]);

/**
 * The fields of an object that were given: neither undefined nor null.
 * @param {Record<string, unknown>} fields
 * @returns {Record<string, any>}
 */
export function given(fields) {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined && value !== null));
}

/**
 * A time as text, RFC 3339. Throws InvalidRequest for a Date that is none.
 * @param {Date | string} moment
 */
export function timeText(moment) {
  if (typeof moment === "string") return moment;
  if (Number.isNaN(moment.getTime())) throw notJson();
  return moment.toISOString();
}
