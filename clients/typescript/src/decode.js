// Documents of the service to values, as pydantic reads them in the Python client: a field of the wrong type is an
// error, a missing one gets its default, an unknown one (of a newer service) is dropped. shapes.js is made of these.

/** A value is not what a shape wants. */
class Mismatch extends Error {}

/**
 * A check of a decoded JSON value; returns it, or throws Mismatch.
 * @template T
 * @typedef {((value: any) => T) & { title?: string }} Shape
 */

/** @returns {never} */
function refuse() {
  throw new Mismatch("not the value that was expected");
}

/** @type {Shape<string>} */
export const string = (value) => (typeof value === "string" ? value : refuse());
/** @type {Shape<number>} */
export const integer = (value) => (Number.isInteger(value) ? value : refuse());
/** @type {Shape<number>} */
export const number = (value) => (typeof value === "number" ? value : refuse());
/** @type {Shape<boolean>} */
export const boolean = (value) => (typeof value === "boolean" ? value : refuse());
/** @type {Shape<any>} */
export const anything = (value) => value;

const TIME = /^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?([Zz]|[+-]\d\d:?\d\d)$/;
/** A time as in RFC 3339, as text. @type {Shape<string>} */
export const time = (value) => (TIME.test(string(value)) && !Number.isNaN(Date.parse(value)) ? value : refuse());

/**
 * @template T
 * @param {Shape<T>} shape
 * @returns {Shape<T | null>}
 */
export const nullable = (shape) => (value) => (value === null ? null : shape(value));

/**
 * @template {string} T
 * @param {...T} words
 * @returns {Shape<T> & { words: readonly T[] }}
 */
export const word = (...words) =>
  Object.assign((/** @type {any} */ value) => (words.includes(value) ? value : refuse()), { words });

/**
 * @template T
 * @param {Shape<T>} shape
 * @returns {Shape<T[]>}
 */
export const list = (shape) => (value) => (Array.isArray(value) ? value.map((one) => shape(one)) : refuse());

/**
 * @template T
 * @param {Shape<T>} shape
 * @returns {Shape<Record<string, T>>}
 */
export const record = (shape) => (value) =>
  Object.fromEntries(Object.entries(plainObject(value)).map(([name, one]) => [name, shape(one)]));

/**
 * The first of several shapes that accepts the value.
 * @param {...Shape<any>} shapes
 * @returns {Shape<any>}
 */
export const either =
  (...shapes) =>
  (value) => {
    for (const shape of shapes) {
      try {
        return shape(value);
      } catch (error) {
        if (!(error instanceof Mismatch)) throw error;
      }
    }
    return refuse();
  };

/** @typedef {{ shape: Shape<any>, absent?: () => any, left_out?: boolean }} Field */

/**
 * A field that gets a default if it is missing.
 * @param {Shape<any>} shape
 * @param {() => any} absent
 * @returns {Field}
 */
export const usually = (shape, absent) => ({ shape, absent });

/**
 * A field that may be missing, and then stays so.
 * @param {Shape<any>} shape
 * @returns {Field}
 */
export const optional = (shape) => ({ shape, left_out: true });

/**
 * An object. `open`: fields that are unknown here are kept.
 * @param {string} title
 * @param {Record<string, Shape<any> | Field>} fields
 * @param {boolean} [open]
 * @returns {Shape<any>}
 */
export function object(title, fields, open = false) {
  const known = Object.entries(fields).map(([name, given]) => {
    /** @type {[string, Field]} */
    const entry = [name, typeof given === "function" ? { shape: given } : given];
    return entry;
  });
  /** @type {Shape<any>} */
  const shape = (value) => {
    const given = plainObject(value);
    /** @type {Record<string, any>} */
    const found = open ? { ...given } : {};
    for (const [name, { shape: inner, absent, left_out }] of known) {
      if (Object.hasOwn(given, name)) found[name] = inner(given[name]);
      else if (absent) found[name] = absent();
      else if (!left_out) refuse();
    }
    return found;
  };
  shape.title = title;
  return shape;
}

/**
 * @param {unknown} value
 * @returns {Record<string, any>}
 */
function plainObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? value : refuse();
}

const UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const SURROGATE_ESCAPE = /\\u[dD][89a-fA-F]/;

/**
 * The JSON value in a document; undefined if it is none, in UTF-8 and without lone surrogates.
 * @param {string | Uint8Array} document
 * @returns {any}
 */
export function parseJson(document) {
  try {
    const text = typeof document === "string" ? document : UTF8.decode(document);
    const value = JSON.parse(text);
    return SURROGATE_ESCAPE.test(text) && hasLoneSurrogate(value) ? undefined : value;
  } catch {
    return undefined;
  }
}

/**
 * Whether a text in a JSON value has half of a surrogate pair, which no UTF-8 has.
 * @param {unknown} value
 * @returns {boolean}
 */
export function hasLoneSurrogate(value) {
  if (typeof value === "string") return /\p{Surrogate}/u.test(value);
  if (typeof value !== "object" || value === null) return false;
  return Object.entries(value).some(([name, one]) => hasLoneSurrogate(name) || hasLoneSurrogate(one));
}

/**
 * A value of a shape from a JSON document; undefined for any other document.
 * @template T
 * @param {Shape<T>} shape
 * @param {string | Uint8Array} document
 * @returns {T | undefined}
 */
export function decode(shape, document) {
  const value = parseJson(document);
  if (value === undefined) return undefined;
  try {
    return shape(value);
  } catch (error) {
    if (error instanceof Mismatch) return undefined;
    throw error;
  }
}
