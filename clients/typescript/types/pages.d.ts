/**
 * What all pages have under a name, in their order. `read` gives the page that a cursor leads to.
 *
 * Throws what `read` throws, and ApiError if a cursor leads back.
 * @template {string} K
 * @template T
 * @param {(cursor: string | null) => Promise<{ nextCursor: string | null } & { [N in K]: T[] }>} read
 * @param {K} name
 * @returns {AsyncGenerator<T, void, void>}
 */
export function inPages<K extends string, T>(read: (cursor: string | null) => Promise<{
    nextCursor: string | null;
} & { [N in K]: T[]; }>, name: K): AsyncGenerator<T, void, void>;
