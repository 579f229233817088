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
export function verifyWebhook(body: WebhookBody, headers: WebhookHeaders, secrets: string | readonly string[], options?: VerifyOptions): Promise<WebhookEvent>;
/**
 * `verifyWebhook` for a URL that gets the webhooks of batches, too.
 * @param {WebhookBody} body
 * @param {WebhookHeaders} headers
 * @param {string | readonly string[]} secrets
 * @param {VerifyOptions} [options]
 * @returns {Promise<WebhookEvent | BatchWebhookEvent>}
 */
export function verifyAnyWebhook(body: WebhookBody, headers: WebhookHeaders, secrets: string | readonly string[], options?: VerifyOptions): Promise<WebhookEvent | BatchWebhookEvent>;
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
export function verifyLegacyWebhook(body: WebhookBody, headers: WebhookHeaders, secrets: string | readonly string[]): Promise<WebhookEvent>;
export type WebhookEvent = import("../types/contracts.js").WebhookEvent;
export type BatchWebhookEvent = import("../types/contracts.js").BatchWebhookEvent;
/**
 * The body as it was received: its bytes, or their text.
 */
export type WebhookBody = Uint8Array | ArrayBuffer | string;
/**
 * The headers as they were received, in any case: a `Headers`, or an object such as `request.headers` in Node.
 */
export type WebhookHeaders = Headers | Readonly<Record<string, string | readonly string[] | undefined>>;
/**
 * `now`: the receiver's time. `tolerance`: the largest difference of `webhook-timestamp` from it, in milliseconds; five
 * minutes unless given.
 */
export type VerifyOptions = {
    now?: Date;
    tolerance?: number;
};
