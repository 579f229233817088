/**
 * An object. `open`: fields that are unknown here are kept.
 * @param {string} title
 * @param {Record<string, Shape<any> | Field>} fields
 * @param {boolean} [open]
 * @returns {Shape<any>}
 */
export function object(title: string, fields: Record<string, Shape<any> | Field>, open?: boolean): Shape<any>;
/**
 * The JSON value in a document; undefined if it is none, in UTF-8 and without lone surrogates.
 * @param {string | Uint8Array} document
 * @returns {any}
 */
export function parseJson(document: string | Uint8Array): any;
/**
 * Whether a text in a JSON value has half of a surrogate pair, which no UTF-8 has.
 * @param {unknown} value
 * @returns {boolean}
 */
export function hasLoneSurrogate(value: unknown): boolean;
/**
 * A value of a shape from a JSON document; undefined for any other document.
 * @template T
 * @param {Shape<T>} shape
 * @param {string | Uint8Array} document
 * @returns {T | undefined}
 */
export function decode<T>(shape: Shape<T>, document: string | Uint8Array): T | undefined;
/** @type {Shape<string>} */
export const string: Shape<string>;
/** @type {Shape<number>} */
export const integer: Shape<number>;
/** @type {Shape<number>} */
export const number: Shape<number>;
/** @type {Shape<boolean>} */
export const boolean: Shape<boolean>;
/** @type {Shape<any>} */
export const anything: Shape<any>;
/** A time as in RFC 3339, as text. @type {Shape<string>} */
export const time: Shape<string>;
export function nullable<T>(shape: Shape<T>): Shape<T | null>;
export function word<T extends string>(...words: T[]): Shape<T> & {
    words: readonly T[];
};
export function list<T>(shape: Shape<T>): Shape<T[]>;
export function record<T>(shape: Shape<T>): Shape<Record<string, T>>;
export function either(...shapes: Shape<any>[]): Shape<any>;
export function usually(shape: Shape<any>, absent: () => any): Field;
export function optional(shape: Shape<any>): Field;
/**
 * A check of a decoded JSON value; returns it, or throws Mismatch.
 */
export type Shape<T> = ((value: any) => T) & {
    title?: string;
};
export type Field = {
    shape: Shape<any>;
    absent?: () => any;
    left_out?: boolean;
};
