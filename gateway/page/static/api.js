// The service, by its JavaScript client (clients/typescript), which signs in by the cookie of the session: it sends no
// key, and a browser sends the cookie to its own origin. What only the page reads stands here, on the client's parts.

import { CALLS_REPEATED, Http, exponential, failure } from "./client/calls.js";
import { newKey } from "./client/crypto.js";
import { anything, decode, list, object, parseJson, record, usually } from "./client/decode.js";
import { ChatJobs, InvalidRequest, JobNotFound, ServiceUnavailable, Stream, StreamBroken } from "./client/index.js";
import { jsonBytes } from "./client/prompts.js";
import * as shapes from "./client/shapes.js";
import { MAX_EVENT_BYTES, Parser } from "./client/sse.js";

export * from "./client/errors.js";
export { newKey };

const SESSION = "/api/session";
/** Dispatches `signed-out` after a 401; the page then shows the sign-in. */
export const signedOut = new EventTarget();

/** `fetch`; the forms of the API reference use it as it is. */
export async function watchedFetch(url, init) {
  const response = await fetch(url, init);
  if (response.status === 401 && new URL(url).pathname !== SESSION) signedOut.dispatchEvent(new Event("signed-out"));
  return response;
}

// A call is made once: whoever looks at the page sees at once that it has failed, and what is polled is called anyhow.
const CALLS = { timeout: 30_000, backoff: () => Infinity, fetch: watchedFetch };
const STREAMS = { patience: Infinity, backoff: exponential, fetch: watchedFetch };
const LIMITS = { silence: 45_000, maxResponseBytes: 64 * 1024 * 1024 };

/** The client for calls. */
export const jobs = new ChatJobs(location.origin, CALLS);
/** The client for streams, which connect again for as long as the page is open. */
export const streams = new ChatJobs(location.origin, STREAMS);
const http = new Http(location.origin, { ...LIMITS, ...CALLS });
const streamingHttp = new Http(location.origin, { ...LIMITS, ...STREAMS, timeout: Infinity });

// ------------------------------------------------------------------------------------------------------ errors

/** Whether the service did not answer at all. */
export const isAway = (error) => error instanceof ServiceUnavailable && error.status === null;
/** Whether the same call may succeed later. */
export const isPassing = (error) => error instanceof ServiceUnavailable || error.status >= 500;
/** Whether there is no such job; an id that is malformed is not valid. */
export const isNoJob = (error) => error instanceof JobNotFound || error instanceof InvalidRequest;

// ------------------------------------------------------------------------------------------- what the page alone reads

const anObject = (title) => object(title, {}, true);
const Session = anObject("session");
const Stats = anObject("figures");
const OpenApi = anObject("API description");

export const session = () => http.read(Session, "GET", SESSION);
export const signOut = () => http.call("DELETE", SESSION);
export const stats = (window) => http.read(Stats, "GET", "/api/stats", { query: { window } });
export const settings = () => http.read(anObject("settings"), "GET", "/api/settings");
export const keys = () => http.read(object("keys", { keys: list(anObject("key")) }), "GET", "/api/keys").then((found) => found.keys);
export const addKey = (fields) => http.read(anObject("new key"), "POST", "/api/keys", { body: jsonBytes(fields) });
export const changeKey = (id, fields) => http.read(anObject("key"), "PATCH", `/api/keys/${encodeURIComponent(id)}`, { body: jsonBytes(fields) });
export const revokeKey = (id) => http.call("DELETE", `/api/keys/${encodeURIComponent(id)}`);
export const secrets = () => http.read(object("secrets", { secrets: list(anObject("secret")) }, true), "GET", "/api/secrets");
export const rotateSecret = () => http.read(anObject("new secret"), "POST", "/api/secrets");
export const setLimits = (lane, limits) => http.read(anObject("limits"), "PUT", `/api/lanes/${encodeURIComponent(lane)}/limits`, { body: jsonBytes(limits) });
export const openApi = () => http.read(OpenApi, "GET", "/openapi.json");
/** Throws what `jobs.request` throws, though without a code: the response has no body. */
export const lookForRequest = (jobId) => http.call("HEAD", `/api/jobs/${jobId}/request`);

/** Exchange a key for the cookie. The error for a key that is refused has the service's code as its `reason`. */
export async function signIn(key) {
  const init = { method: "POST", headers: { "Content-Type": "application/json" }, body: jsonBytes({ key }) };
  const connection = await http.open(SESSION, undefined, init, null, CALLS.timeout);
  try {
    const body = await http.body(connection);
    if (connection.response.ok) return;
    throw Object.assign(failure(connection.response, body, CALLS_REPEATED), { reason: parseJson(body)?.code });
  } finally {
    connection.close();
  }
}

// -------------------------------------------------------------------------------------------------------- the feed

const FEED_EVENTS = {
  hello: object("feed's first event", { counts: record(anything) }),
  jobs: object("feed's event", { counts: record(anything), jobs: list(shapes.Job), more: usually(anything, () => false) }),
};

/** The events of the feed of all jobs, over any number of connections. */
class FeedEvents {
  #parser = new Parser(MAX_EVENT_BYTES);

  constructor(lastEventId) {
    this.lastEventId = lastEventId;
  }

  connect() {
    this.#parser = new Parser(MAX_EVENT_BYTES);
  }

  *feed(chunk) {
    for (const { event: type, id, data } of this.#parser.feed(chunk)) {
      if (!Object.hasOwn(FEED_EVENTS, type)) continue;
      const event = decode(FEED_EVENTS[type], data);
      if (event === undefined) throw new StreamBroken();
      if (id) this.lastEventId = id;
      yield [this.lastEventId, { type, ...event }];
    }
  }

  ends() {
    return false;
  }
}

/** The feed of all jobs: `hello` with the counts by status, then `jobs` that have changed. */
export function feed({ lastEventId = "", ...options }) {
  return new Stream(streamingHttp, "/api/feed", new FeedEvents(lastEventId), { patience: Infinity, ...options });
}
