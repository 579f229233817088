/**
 * Milliseconds to wait, at least 0, finite but not clamped; null if the header is missing or unusable.
 *
 * A date counts from the response's own `Date`, because this machine's clock may differ from the server's; without
 * one, from `here` (milliseconds since 1970). A past date gives 0.
 * @param {Headers} headers
 * @param {number} here
 * @returns {number | null}
 */
export function retryAfter(headers: Headers, here: number): number | null;
