// Verifying webhooks, with WebCrypto. No network, no environment.
//
// The rules are those of the Standard Webhooks specification 1.0.0 (https://www.standardwebhooks.com), symmetric
// scheme: HMAC-SHA256 over `<id>.<timestamp>.<body>`, sent as `v1,<base64>`, several separated by spaces while secrets
// rotate.

import { hex, hmac } from "./crypto.js";
import { decode, hasLoneSurrogate, parseJson } from "./decode.js";
import { InvalidSecret, InvalidSignature } from "./errors.js";
import * as shapes from "./shapes.js";

/** @typedef {import("../types/contracts.js").WebhookEvent} WebhookEvent */
/** @typedef {import("../types/contracts.js").BatchWebhookEvent} BatchWebhookEvent */

/**
 * The body as it was received: its bytes, or their text.
 * @typedef {Uint8Array | ArrayBuffer | string} WebhookBody
 */
/**
 * The headers as they were received, in any case: a `Headers`, or an object such as `request.headers` in Node.
 * @typedef {Headers | Readonly<Record<string, string | readonly string[] | undefined>>} WebhookHeaders
 */
/**
 * `now`: the receiver's time. `tolerance`: the largest difference of `webhook-timestamp` from it, in milliseconds; five
 * minutes unless given.
 * @typedef {{ now?: Date, tolerance?: number }} VerifyOptions
 */

const TOLERANCE = 5 * 60 * 1000;
const SECRET_PREFIX = "whsec_";
const ENCODER = new TextEncoder();

/**
 * The event in `body`, if one of `secrets` signed it within `tolerance` of `now`.
 *
 * Of the two timestamps only `webhook-timestamp` is signed and checked. Use `webhook-id` to drop a second delivery of
 * the same event. Throws InvalidSignature for any fault of the message, InvalidSecret, and RangeError if `now` is no
 * time.
 * @param {WebhookBody} body
 * @param {WebhookHeaders} headers
 * @param {string | readonly string[]} secrets
 * @param {VerifyOptions} [options]
 * @returns {Promise<WebhookEvent>}
 */
export async function verifyWebhook(body, headers, secrets, options) {
  return event(shapes.WebhookEvent, await authentic(body, headers, secrets, options));
}

/**
 * `verifyWebhook` for a URL that gets the webhooks of batches, too.
 * @param {WebhookBody} body
 * @param {WebhookHeaders} headers
 * @param {string | readonly string[]} secrets
 * @param {VerifyOptions} [options]
 * @returns {Promise<WebhookEvent | BatchWebhookEvent>}
 */
export async function verifyAnyWebhook(body, headers, secrets, options) {
  const bytes = await authentic(body, headers, secrets, options);
  const ofBatch = String(parseJson(bytes)?.event ?? "").startsWith("batch.");
  return ofBatch ? event(shapes.BatchWebhookEvent, bytes) : event(shapes.WebhookEvent, bytes);
}

/**
 * The event in `body`, if one of `secrets` made its `x-webhook-signature` (hex HMAC-SHA256 of the body).
 *
 * For receivers that read only the headers `x-webhook-*`. Their signature has no time: a recorded message verifies for
 * ever, so prefer `verifyWebhook`. Throws InvalidSignature and InvalidSecret.
 * @param {WebhookBody} body
 * @param {WebhookHeaders} headers
 * @param {string | readonly string[]} secrets
 * @returns {Promise<WebhookEvent>}
 */
export async function verifyLegacyWebhook(body, headers, secrets) {
  const keys = keysOf(secrets);
  const bytes = bytesOf(body);
  const offered = header(headers, "x-webhook-signature");
  const mine = await Promise.all(keys.map(async (key) => hex(await hmac(key, bytes))));
  if (!mine.some((one) => same(one, offered))) {
    throw new InvalidSignature("x-webhook-signature does not match; check the secret and the raw body");
  }
  return event(shapes.WebhookEvent, bytes);
}

/**
 * The bytes of a body whose signature is valid.
 * @param {WebhookBody} body
 * @param {WebhookHeaders} headers
 * @param {string | readonly string[]} secrets
 * @param {VerifyOptions} [options]
 */
async function authentic(body, headers, secrets, { now = new Date(), tolerance = TOLERANCE } = {}) {
  if (Number.isNaN(now.getTime())) throw new RangeError("now must be a time");
  const keys = keysOf(secrets);
  const webhookId = header(headers, "webhook-id");
  const seconds = fresh(header(headers, "webhook-timestamp"), now.getTime(), tolerance);
  const offered = header(headers, "webhook-signature").split(" ");
  const bytes = bytesOf(body);
  if (!isUtf8(bytes) || hasLoneSurrogate(webhookId)) throw new InvalidSignature("the body or the webhook-id is not UTF-8");
  const head = ENCODER.encode(`${webhookId}.${seconds}.`);
  const message = new Uint8Array(head.length + bytes.length);
  message.set(head);
  message.set(bytes, head.length);
  const mine = await Promise.all(keys.map(async (key) => `v1,${base64(await hmac(key, message))}`));
  if (!mine.some((one) => offered.some((theirs) => same(one, theirs)))) {
    throw new InvalidSignature("no v1 signature in webhook-signature matches; check the secret and the raw body");
  }
  return bytes;
}

// ---------------------------------------------------------------------------------------------- secrets

/**
 * The HMAC keys of one or more secrets, in their order. Throws InvalidSecret.
 * @param {string | readonly string[]} secrets
 */
function keysOf(secrets) {
  const keys = (typeof secrets === "string" ? [secrets] : secrets).map(keyOf);
  if (!keys.length) throw new InvalidSecret("there is no webhook secret");
  return keys;
}

/**
 * The HMAC key of a secret: `whsec_…` is base64 as in the specification, any other text its UTF-8 bytes.
 * @param {string} secret
 */
function keyOf(secret) {
  if (typeof secret !== "string" || hasLoneSurrogate(secret)) throw new InvalidSecret();
  const key = secret.startsWith(SECRET_PREFIX) ? fromBase64(secret.slice(SECRET_PREFIX.length)) : ENCODER.encode(secret);
  if (!key.length) throw new InvalidSecret();
  return key;
}

/**
 * The bytes of a base64 text. Padding may be missing, as in the specification's libraries; other characters may not be
 * there. Throws InvalidSecret.
 * @param {string} text
 */
function fromBase64(text) {
  const bare = text.replace(/=+$/, "");
  if (!/^[A-Za-z0-9+/]*$/.test(bare) || bare.length % 4 === 1) throw new InvalidSecret();
  return Uint8Array.from(atob(bare), (character) => character.charCodeAt(0));
}

/** @param {Uint8Array} bytes */
const base64 = (bytes) => btoa(String.fromCharCode(...bytes));

/**
 * Whether two signatures are equal, as sent (decoded, several spellings of one would match) and in constant time.
 * @param {string} mine
 * @param {string} theirs
 */
function same(mine, theirs) {
  let difference = mine.length ^ theirs.length;
  for (let at = 0; at < mine.length; at++) difference |= mine.charCodeAt(at) ^ (theirs.charCodeAt(at) || 0);
  return difference === 0;
}

// ---------------------------------------------------------------------------------- headers, time, event

/**
 * @param {WebhookHeaders} headers
 * @param {string} name in lower case
 * @returns {string}
 */
function header(headers, name) {
  const entries = headers instanceof Headers ? [...headers] : Object.entries(headers);
  const found = entries.findLast(([given]) => given.toLowerCase() === name)?.[1];
  const value = typeof found === "string" ? found : found?.[0];
  if (!value) throw new InvalidSignature(`the header ${name} is missing`);
  return value;
}

/**
 * `webhook-timestamp`, if it is within `tolerance` of `here`: digits without a leading zero. Throws InvalidSignature.
 * @param {string} timestamp
 * @param {number} here
 * @param {number} tolerance
 */
function fresh(timestamp, here, tolerance) {
  if (!/^[1-9][0-9]{0,10}$/.test(timestamp)) throw new InvalidSignature("webhook-timestamp is not a time in unix seconds");
  const age = here - Number(timestamp) * 1000;
  if (!(Math.abs(age) <= tolerance)) {
    throw new InvalidSignature(`webhook-timestamp is too ${age > 0 ? "old" : "new"}; check this machine's clock`);
  }
  return timestamp;
}

/**
 * @param {WebhookBody} body
 * @returns {Uint8Array<ArrayBuffer>}
 */
function bytesOf(body) {
  if (typeof body === "string") return ENCODER.encode(body);
  if (body instanceof ArrayBuffer || body instanceof Uint8Array) return new Uint8Array(body);
  throw new TypeError("the body must be the bytes as they were received, or their text; not parsed JSON");
}

/** @param {Uint8Array} bytes */
function isUtf8(bytes) {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    return true;
  } catch {
    return false;
  }
}

/**
 * The event in a body whose signature is valid; fields of a newer service are dropped. Throws InvalidSignature.
 * @template T
 * @param {import("./decode.js").Shape<T>} shape
 * @param {Uint8Array} bytes
 * @returns {T}
 */
function event(shape, bytes) {
  const found = decode(shape, bytes);
  if (found === undefined) {
    throw new InvalidSignature("the signature is valid, but the body is not an event that this version knows");
  }
  return found;
}
