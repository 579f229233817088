// Lists that the service gives in pages.

import { ApiError } from "./errors.js";

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
export async function* inPages(read, name) {
  const seen = new Set();
  for (let cursor = null; ; ) {
    const page = await read(cursor);
    yield* page[name];
    cursor = page.nextCursor;
    if (cursor === null) return;
    if (seen.has(cursor)) throw new ApiError("the pages of the list go round in circles");
    seen.add(cursor);
  }
}
