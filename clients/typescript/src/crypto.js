// WebCrypto, of browsers and of Node.

import { ConfigurationError } from "./errors.js";

const NODES_MODULE = "node:crypto"; // no literal in the import, so that bundlers for browsers leave it alone

/** @returns {Promise<Crypto>} */
async function webCrypto() {
  // Node 18 has it in a module only.
  return globalThis.crypto ?? (await import(/* webpackIgnore: true */ /* @vite-ignore */ NODES_MODULE)).webcrypto;
}

/** @returns {Promise<SubtleCrypto>} */
async function subtle() {
  const found = (await webCrypto()).subtle;
  if (!found) throw new ConfigurationError("the browser has no WebCrypto on this page; serve it over https");
  return found;
}

/**
 * Bytes in hexadecimal digits.
 * @param {Uint8Array} bytes
 */
export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** A new key, at random. */
export async function newKey() {
  return hex((await webCrypto()).getRandomValues(new Uint8Array(16)));
}

/**
 * The SHA-256 of the UTF-8 bytes of a text, in hexadecimal digits.
 * @param {string} text
 */
export async function sha256(text) {
  const digest = await (await subtle()).digest("SHA-256", new TextEncoder().encode(text));
  return hex(new Uint8Array(digest));
}

/**
 * The HMAC-SHA256 of some bytes.
 * @param {Uint8Array<ArrayBuffer>} key
 * @param {Uint8Array<ArrayBuffer>} bytes
 */
export async function hmac(key, bytes) {
  const signer = await subtle();
  const imported = await signer.importKey("raw", key, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return new Uint8Array(await signer.sign("HMAC", imported, bytes));
}
