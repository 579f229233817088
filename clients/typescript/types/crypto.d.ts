/** A new key, at random. */
export function newKey(): Promise<string>;
/**
 * The SHA-256 of the UTF-8 bytes of a text, in hexadecimal digits.
 * @param {string} text
 */
export function sha256(text: string): Promise<string>;
/**
 * The HMAC-SHA256 of some bytes.
 * @param {Uint8Array<ArrayBuffer>} key
 * @param {Uint8Array<ArrayBuffer>} bytes
 */
export function hmac(key: Uint8Array<ArrayBuffer>, bytes: Uint8Array<ArrayBuffer>): Promise<Uint8Array<ArrayBuffer>>;
export function hex(bytes: Uint8Array): string;
