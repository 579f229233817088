/**
 * A request as JSON: only the fields that were given. Throws InvalidRequest.
 * @param {Prompt} prompt
 * @param {object} fields
 */
export function requestBody(prompt: Prompt, fields: object): Uint8Array<ArrayBufferLike>;
/**
 * An item of a batch as a line of JSON, with its end. The service checks the request. Throws InvalidRequest.
 * @param {Item} item
 */
export function itemLine(item: Item): Uint8Array<ArrayBuffer>;
/**
 * JSON in UTF-8; undefined fields are left out. Throws InvalidRequest for what JSON (RFC 8259) does not have: NaN,
 * Infinity, lone surrogates, functions, symbols, BigInt, circles.
 * @param {unknown} value
 * @returns {Uint8Array}
 */
export function jsonBytes(value: unknown): Uint8Array;
/**
 * @param {unknown} value
 * @returns {string}
 */
export function jsonText(value: unknown): string;
/**
 * The fields of an object that were given: neither undefined nor null.
 * @param {Record<string, unknown>} fields
 * @returns {Record<string, any>}
 */
export function given(fields: Record<string, unknown>): Record<string, any>;
/**
 * A time as text, RFC 3339. Throws InvalidRequest for a Date that is none.
 * @param {Date | string} moment
 */
export function timeText(moment: Date | string): string;
export type ChatRequest = import("../types/contracts.js").ChatRequest;
export type BatchItem = import("../types/contracts.js").BatchItem;
/**
 * The fields of a request beside its messages, under their names on the wire (`max_tokens`, `jobId`, `startAt`).
 * A time may be a Date.
 */
export type ChatFields = Omit<ChatRequest, "messages" | "startAt"> & {
    startAt?: Date | string | null;
};
/**
 * The prompt of a job: the text of a user message, messages, or a whole request.
 */
export type Prompt = string | readonly import("../types/contracts.js").Message[] | ChatRequest;
/**
 * An item of a batch: a prompt, an item as it stands in a batch file (with `body`), or a pair of the `custom_id` and a
 * prompt.
 */
export type Item = Prompt | BatchItem | readonly [customId: string, prompt: Prompt];
