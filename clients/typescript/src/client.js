// ChatJobs: the client of the service. It starts jobs, reads them and streams their answers.

import { BatchCalls } from "./batches.js";
import { Http, exponential } from "./calls.js";
import { newKey, sha256 } from "./crypto.js";
import { anything, object, record, string } from "./decode.js";
import * as errors from "./errors.js";
import { FeedEvents, feedPath } from "./feed.js";
import { Mapping, failed } from "./map.js";
import { inPages } from "./pages.js";
import { given, jsonBytes, requestBody, timeText } from "./prompts.js";
import { Schedules } from "./schedules.js";
import * as shapes from "./shapes.js";
import { JobEvents, MAX_EVENT_BYTES } from "./sse.js";
import { Stream } from "./stream.js";
import { within } from "./timing.js";
import { JobWatch } from "./watch.js";

/** @typedef {import("../types/contracts.js").Batch} Batch */
/** @typedef {import("../types/contracts.js").ChatRequest} ChatRequest */
/** @typedef {import("../types/contracts.js").Delivery} Delivery */
/** @typedef {import("../types/contracts.js").Endpoint} Endpoint */
/** @typedef {import("../types/contracts.js").FeedEvent} FeedEvent */
/** @typedef {import("../types/contracts.js").FeedEventType} FeedEventType */
/** @typedef {import("../types/contracts.js").Job} Job */
/** @typedef {import("../types/contracts.js").JobAccepted} JobAccepted */
/** @typedef {import("../types/contracts.js").JobPage} JobPage */
/** @typedef {import("../types/contracts.js").JobStatus} JobStatus */
/** @typedef {import("../types/contracts.js").Lane} Lane */
/** @typedef {import("../types/contracts.js").Pause} Pause */
/** @typedef {import("../types/contracts.js").Redelivering} Redelivering */
/** @typedef {import("../types/contracts.js").ReplayEstimate} ReplayEstimate */
/** @typedef {import("../types/contracts.js").StreamEvent} StreamEvent */
/** @typedef {import("../types/contracts.js").StreamToken} StreamToken */
/** @typedef {import("../types/contracts.js").WebhookTest} WebhookTest */
/** @typedef {import("./map.js").Outcome} Outcome */
/** @typedef {import("./map.js").Progress} Progress */
/** @typedef {import("./prompts.js").ChatFields} ChatFields */
/** @typedef {import("./prompts.js").Prompt} Prompt */
/** @typedef {import("./stream.js").OnConnection} OnConnection */
/** @typedef {import("./stream.js").Token} Token */
/** @typedef {NonNullable<Endpoint["events"]>[number]} EndpointEvent */

/**
 * `signal`: aborting it ends the call, which throws the signal's reason.
 * @typedef {{ signal?: AbortSignal | null }} Signal
 */
/**
 * `timeout`: milliseconds in all, a day unless given.
 * @typedef {{ timeout?: number, signal?: AbortSignal | null }} Limited
 */
/**
 * `idempotencyKey`: the same key with the same request is the same job; without one, a new key makes repetitions safe.
 * @typedef {{ idempotencyKey?: string }} Keyed
 */
/**
 * `lastEventId`: the id of the last event that the reader has. `token`: from `streamToken`, in place of the API key.
 * @typedef {Limited & { lastEventId?: string, token?: Token, onConnection?: OnConnection }} StreamOptions
 */
/**
 * The jobs that a replay asks for again: those that match all that is given.
 * @typedef {Omit<import("../types/contracts.js").ReplayFilterInput, "since" | "until"> & { since?: Date | string | null, until?: Date | string | null }} ReplayChoice
 */
/** @typedef {Partial<{ [K in keyof ChatRequest]: ChatRequest[K] | null }>} Overrides fields that change; null unsets one */
/**
 * `search`: words of prompt or answer, all of which have to be there. `errorCode`: of a failed job. `replayOf`: the id of
 * the job that was replayed. `thread`: that of the first job of a conversation.
 * @typedef {object} JobFilter
 * @property {JobStatus} [status]
 * @property {string} [model]
 * @property {Record<string, string>} [metadata]
 * @property {string} [search]
 * @property {string} [errorCode]
 * @property {string} [replayOf]
 * @property {string} [thread]
 * @property {string} [batchId]
 * @property {string} [scheduleId]
 * @property {Date | string} [since]
 * @property {Date | string} [until]
 */
/**
 * Times are in milliseconds.
 * @typedef {object} ClientOptions
 * @property {string | null} [apiKey]
 * @property {number} [timeout] for a call with all its repetitions; 60,000 unless given
 * @property {number} [patience] how long a stream waits for a byte, over all its connections; 300,000
 * @property {number} [silence] without a byte after which a connection counts as dead; 45,000 (the service sends
 *   something every 15,000)
 * @property {number} [maxResponseBytes] of a response; 64 MiB
 * @property {number} [maxEventBytes] of an event of a stream; 16 MiB
 * @property {typeof globalThis.fetch} [fetch] in place of the global one
 * @property {import("./calls.js").Backoff} [backoff] the waits between repetitions
 */

/** In milliseconds. */
const DAY = 24 * 3600 * 1000;
const MAX_CONCURRENCY = 1_000;
const JobCancelled = object("job's status", { jobId: string, status: shapes.JobStatus });
/** The service gives it as it was sent. @type {import("./decode.js").Shape<any>} */
const Asked = Object.assign(record(anything), { title: "ChatRequest" });

/**
 * A client of the service at `baseUrl`, for Node and browsers.
 *
 * The client may repeat every call without harm: calls that start something carry an idempotency key. Methods throw
 * ServiceUnavailable once the time is up, Unauthorized, ApiError, and the errors that they name.
 */
export class ChatJobs {
  #http;
  #patience;
  #maxEventBytes;

  /**
   * Throws ConfigurationError.
   * @param {string} baseUrl
   * @param {ClientOptions} [options]
   */
  constructor(baseUrl, options = {}) {
    const { apiKey, timeout = 60_000, patience = 300_000, silence = 45_000, fetch, backoff = exponential } = options;
    const { maxResponseBytes = 64 * 1024 * 1024, maxEventBytes = MAX_EVENT_BYTES } = options;
    this.#http = new Http(baseUrl, { apiKey, timeout, silence, maxResponseBytes, backoff, fetch });
    this.#patience = patience;
    this.#maxEventBytes = maxEventBytes;
    /** The calls on batches. */
    this.batches = new BatchCalls(this.#http, { patience, maxEventBytes });
    /** The calls on schedules. */
    this.schedules = new Schedules(this.#http);
  }

  // ----------------------------------------------------------------------------------------------- one job

  /**
   * Start a job; it is durable once this returns. Options are the fields of a request, too (`{ model, metadata }`).
   *
   * Throws InvalidRequest, IdempotencyMismatch, JobIdConflict, WebhookUrlRefused.
   * @param {Prompt} prompt
   * @param {ChatFields & Keyed & Signal} [options]
   * @returns {Promise<JobAccepted>}
   */
  async submit(prompt, { idempotencyKey, signal, ...fields } = {}) {
    const body = requestBody(prompt, fields);
    const key = idempotencyKey ?? (await newKey());
    return this.#http.read(shapes.JobAccepted, "POST", "/api/jobs", { body, key, signal });
  }

  /**
   * Start the next job of a conversation: with the messages of a job that has ended, its answer, and `prompt`.
   *
   * The model is that of the job, unless options or a whole request as `prompt` name another; nothing else is taken
   * over. Throws JobNotFound, JobRunning while the job has not ended, ContentDeleted, InvalidRequest for a job without
   * text, and what `submit` throws.
   * @param {string} jobId
   * @param {Prompt} prompt
   * @param {Omit<ChatFields, "previousJobId"> & Keyed & Signal} [options]
   * @returns {Promise<JobAccepted>}
   */
  async reply(jobId, prompt, options = {}) {
    const { model } = await this.get(jobId, { signal: options.signal });
    const taken = model && !(typeof prompt === "object" && "model" in prompt) ? { model } : {};
    return this.submit(prompt, { previousJobId: jobId, ...taken, ...options });
  }

  /**
   * The job as it is now, with partial text while it runs. Throws JobNotFound.
   * @param {string} jobId
   * @param {Signal} [options]
   * @returns {Promise<Job>}
   */
  async get(jobId, { signal } = {}) {
    return this.#http.read(shapes.Job, "GET", path(jobId), { signal });
  }

  /**
   * What was asked. Throws JobNotFound, ContentDeleted.
   * @param {string} jobId
   * @param {Signal} [options]
   * @returns {Promise<ChatRequest>}
   */
  async request(jobId, { signal } = {}) {
    return this.#http.read(Asked, "GET", `${path(jobId)}/request`, { signal });
  }

  /**
   * The job once it has ended, with any terminal status. Throws JobNotFound, a `TimeoutError` (DOMException) and what
   * `stream` throws.
   * @param {string} jobId
   * @param {Limited} [options]
   * @returns {Promise<Job>}
   */
  async wait(jobId, { timeout = DAY, signal } = {}) {
    return within(timeout, signal, async (inner) => {
      for (;;) {
        const job = await this.get(jobId, { signal: inner });
        if (job.status !== "queued" && job.status !== "in_progress") return job;
        try {
          for await (const _ of this.stream(jobId, { timeout: Infinity, signal: inner }));
        } catch (error) {
          if (!(error instanceof errors.ContentDeleted)) throw error; // it ended and was deleted meanwhile
        }
      }
    });
  }

  /**
   * The events of a job from the beginning, or after `lastEventId`, to its terminal one.
   *
   * A broken connection is opened again and the stream continues where it was: no event is lost or comes twice.
   * `timeout` is for the whole stream. Throws StreamBroken if `lastEventId` is not an event's id; iterating throws
   * JobNotFound, ContentDeleted, a `TimeoutError` (DOMException), StreamBroken and ResponseTooLarge.
   * @param {string} jobId
   * @param {StreamOptions} [options]
   * @returns {Stream<StreamEvent>}
   */
  stream(jobId, { lastEventId = "", timeout = DAY, signal, token, onConnection } = {}) {
    const events = new JobEvents(lastEventId, this.#maxEventBytes);
    const limits = { patience: this.#patience, timeout, signal, token, onConnection };
    return new Stream(this.#http, `${path(jobId)}/events`, events, limits);
  }

  /**
   * The whole text of the answer once it is complete, or as long as a limit allowed.
   *
   * Throws JobFailed if there is no answer, JobNotFound, ContentDeleted, a `TimeoutError`, ResponseTooLarge and
   * StreamBroken.
   * @param {string} jobId
   * @param {Limited & { token?: Token }} [options]
   * @returns {Promise<string>}
   */
  async answer(jobId, options) {
    /** @type {string[]} */
    let pieces = [];
    let size = 0;
    for await (const event of this.stream(jobId, options)) {
      if (event.type === "chunk" && event.channel === "content") {
        pieces.push(event.content);
        this.#http.check((size += event.content.length));
      } else if (event.type === "reset") [pieces, size] = [[], 0];
      else if (event.type === "complete") return checked(pieces.join(""), event.sha256);
      else if (event.type === "error") throw failed(event);
      else if (event.type === "cancelled") throw new errors.JobFailed("The job was cancelled", { reason: "cancelled" });
    }
    throw new errors.StreamBroken();
  }

  /**
   * `submit` and `wait`: the job once it has ended. Throws what they throw.
   * @param {Prompt} prompt
   * @param {ChatFields & Keyed & Limited} [options]
   * @returns {Promise<Job>}
   */
  async ask(prompt, { timeout, ...options } = {}) {
    const { jobId } = await this.submit(prompt, options);
    return this.wait(jobId, { timeout, signal: options.signal });
  }

  /**
   * A job's events for handlers: `jobs.watch(jobId).on("chat:chunk", ({ content }) => …)`. See JobWatch.
   * @param {string} jobId
   * @param {StreamOptions} [options]
   * @returns {JobWatch}
   */
  watch(jobId, options) {
    return this.#watch(jobId, options);
  }

  /**
   * `submit` and `watch`: starts a job, whose events handlers get: `jobs.chat("Hi").on("chat:chunk", …)`.
   * @param {Prompt} prompt
   * @param {ChatFields & Keyed & Limited} [options]
   * @returns {JobWatch}
   */
  chat(prompt, { timeout, signal, ...options } = {}) {
    const start = (/** @type {AbortSignal} */ inner) => this.submit(prompt, { ...options, signal: inner });
    return this.#watch(start, { timeout, signal });
  }

  /**
   * Cancel a job, durably; its status now. A second call does the same. Throws JobNotFound, JobFinished.
   * @param {string} jobId
   * @param {Signal} [options]
   * @returns {Promise<JobStatus>}
   */
  async cancel(jobId, { signal } = {}) {
    return (await this.#http.read(JobCancelled, "POST", `${path(jobId)}/cancel`, { signal })).status;
  }

  /**
   * Delete the texts and deliveries of a finished job. A second call does the same. Throws JobNotFound, JobRunning.
   * @param {string} jobId
   * @param {Signal} [options]
   * @returns {Promise<void>}
   */
  async delete(jobId, { signal } = {}) {
    try {
      await this.#http.call("DELETE", path(jobId), { signal });
    } catch (error) {
      if (!(error instanceof errors.ContentDeleted)) throw error;
    }
  }

  /**
   * Start a new job with the request of this one and the fields given; null unsets a field.
   *
   * Throws JobNotFound, ContentDeleted, and what `submit` throws.
   * @param {string} jobId
   * @param {Overrides & Keyed & Signal} [options]
   * @returns {Promise<JobAccepted>}
   */
  async replay(jobId, { idempotencyKey, signal, ...overrides } = {}) {
    const body = Object.keys(overrides).length ? jsonBytes(overrides) : undefined;
    const where = `${path(jobId)}/replay`;
    const key = idempotencyKey ?? (await newKey());
    return this.#http.read(shapes.JobAccepted, "POST", where, { body, key, signal });
  }

  /**
   * Let a job that failed or was cancelled go on from its text: the same job, whose streams go on.
   *
   * Throws JobNotFound, ContentDeleted, JobFinished, NothingToResume, and JobRunning: also if it is an earlier try of
   * this call that has resumed the job.
   * @param {string} jobId
   * @param {Signal} [options]
   * @returns {Promise<JobAccepted>}
   */
  async resume(jobId, { signal } = {}) {
    return this.#http.read(shapes.JobAccepted, "POST", `${path(jobId)}/resume`, { signal });
  }

  /**
   * A token for this job's event stream only, valid for 15 minutes: for a browser that has no API key. See `stream`.
   *
   * Throws JobNotFound.
   * @param {string} jobId
   * @param {Signal} [options]
   * @returns {Promise<StreamToken>}
   */
  async streamToken(jobId, { signal } = {}) {
    return this.#http.read(shapes.StreamToken, "POST", `${path(jobId)}/stream-token`, { signal });
  }

  // --------------------------------------------------------------------------------------------- many jobs

  /**
   * Jobs without their texts, newest first, read in pages of `pageSize`. Throws InvalidRequest.
   * @param {JobFilter & { pageSize?: number, signal?: AbortSignal | null }} [options]
   * @returns {AsyncGenerator<Job, void, void>}
   */
  async *list({ pageSize = 100, signal, ...filter } = {}) {
    yield* inPages((cursor) => this.page({ ...filter, limit: pageSize, cursor, signal }), "jobs");
  }

  /**
   * One page of `list`, at most `limit` jobs; a page's `nextCursor` is the `cursor` of the next one. For user interfaces.
   *
   * Throws InvalidRequest.
   * @param {JobFilter & { limit?: number, cursor?: string | null, signal?: AbortSignal | null }} [options]
   * @returns {Promise<JobPage>}
   */
  async page({ search, metadata = {}, since, until, limit = 100, signal, ...filter } = {}) {
    const labels = Object.entries(metadata).map(([key, value]) => [`metadata.${key}`, value]);
    const times = { since: since && timeText(since), until: until && timeText(until) };
    const query = { ...given({ ...filter, ...times, q: search, limit: String(limit) }), ...Object.fromEntries(labels) };
    return this.#http.read(shapes.JobPage, "GET", "/api/jobs", { query, signal });
  }

  /**
   * A job for each of many prompts, `concurrency` (10) at a time; outcomes come in the order of the prompts.
   *
   * An error is the outcome of its prompt and does not affect the others. About ten times `concurrency` prompts are in
   * memory, whatever their number. Other options are fields of every job. With an `idempotencyPrefix` a script that is
   * run again gets the jobs of its first run (prompt number n has the key `<prefix>-<n>`). `timeout` is for one prompt,
   * after which its outcome is an error, while the job continues. Leaving the loop early ends the waiting: jobs that
   * were started continue. Throws TypeError for a single prompt, RangeError for a `concurrency` out of range.
   * @param {Iterable<Prompt> | AsyncIterable<Prompt>} prompts
   * @param {ChatFields & Limited & { concurrency?: number, onProgress?: (progress: Progress) => unknown, idempotencyPrefix?: string }} [options]
   * @returns {AsyncGenerator<Outcome, void, void>}
   */
  map(prompts, { concurrency = 10, onProgress, idempotencyPrefix: prefix, timeout, signal, ...fields } = {}) {
    if (typeof prompts !== "object" || !(Symbol.iterator in prompts || Symbol.asyncIterator in prompts)) {
      throw new TypeError("prompts are several: put a single one in an array");
    }
    if (!(Number.isInteger(concurrency) && concurrency >= 1 && concurrency <= MAX_CONCURRENCY)) {
      throw new RangeError(`concurrency must lie between 1 and ${MAX_CONCURRENCY}`);
    }
    /** @type {(prompt: Prompt, key: string | undefined, inner: AbortSignal) => Promise<Job>} */
    const ask = (prompt, idempotencyKey, inner) =>
      this.ask(prompt, { ...fields, idempotencyKey, timeout, signal: inner });
    return new Mapping(ask, prompts, { concurrency, onProgress, prefix }).outcomes(signal);
  }

  /**
   * Start a replay of all jobs that match the filter (`status`, `since`, …): a batch that has one new job for each.
   *
   * With a `canary` so many run first, and the others unless more than the part `maxErrorRate` of them fails (0.5).
   * Throws InvalidRequest, IdempotencyMismatch, WebhookUrlRefused.
   * @param {ReplayChoice & Keyed & Signal & { canary?: number, maxErrorRate?: number, overrides?: Overrides, name?: string, concurrency?: number, webhook?: string | import("../types/contracts.js").BatchWebhook }} options
   * @returns {Promise<Batch>}
   */
  async replayAll({ canary, maxErrorRate, overrides = {}, name, concurrency, webhook, idempotencyKey, signal, ...filter }) {
    const settings = given({ canary, maxErrorRate, name, concurrency, webhook });
    const body = jsonBytes({ ...settings, filter, overrides });
    const key = idempotencyKey ?? (await newKey());
    return this.#http.read(shapes.Batch, "POST", "/api/replays", { body, key, signal });
  }

  /**
   * What `replayAll` would do now: how many jobs, which ones first, and about how many tokens. Throws InvalidRequest.
   * @param {ReplayChoice & Signal & { overrides?: Overrides }} options
   * @returns {Promise<ReplayEstimate>}
   */
  async estimateReplay({ overrides = {}, signal, ...filter }) {
    const body = jsonBytes({ filter, overrides, dryRun: true });
    return this.#http.read(shapes.ReplayEstimate, "POST", "/api/replays", { body, signal });
  }

  // ---------------------------------------------------------------------------------------------- webhooks

  /**
   * The job's deliveries with all their tries. Throws JobNotFound.
   * @param {string} jobId
   * @param {Signal} [options]
   * @returns {Promise<Delivery[]>}
   */
  async deliveries(jobId, options) {
    return (await this.get(jobId, options)).deliveries;
  }

  /**
   * Make a delivery, or all of a job's, again now: same body, same `webhook-id`. The number of deliveries.
   *
   * Throws JobNotFound, DeliveryNotFound, ContentDeleted.
   * @param {string} jobId
   * @param {string | null} [deliveryId]
   * @param {Signal} [options]
   * @returns {Promise<number>}
   */
  async redeliver(jobId, deliveryId = null, { signal } = {}) {
    if (deliveryId !== null && !/^[A-Za-z0-9_.-]{1,64}$/.test(deliveryId)) throw new errors.DeliveryNotFound();
    const which = deliveryId === null ? "" : `/deliveries/${deliveryId}`;
    return (await this.#http.read(shapes.Redelivering, "POST", `${path(jobId)}${which}/redeliver`, { signal })).count;
  }

  /**
   * Make the deliveries of events between two times again, up to 10,000 in a call. Without `until`, until now.
   *
   * Throws InvalidRequest.
   * @param {Date | string} since
   * @param {{ until?: Date | string, status?: "pending" | "delivered" | "failed", url?: string, signal?: AbortSignal | null }} [options]
   * @returns {Promise<Redelivering>}
   */
  async redeliverAll(since, { until, status = "failed", url, signal } = {}) {
    const body = jsonBytes(given({ since: timeText(since), until, status, url }));
    return this.#http.read(shapes.Redelivering, "POST", "/api/redeliveries", { body, signal });
  }

  /**
   * Send a signed `webhook.test` from the service to a URL. Throws WebhookUrlRefused.
   * @param {string} url
   * @param {Signal} [options]
   * @returns {Promise<WebhookTest>}
   */
  async testWebhook(url, { signal } = {}) {
    return this.#http.read(shapes.WebhookTest, "POST", "/api/webhooks/test", { body: jsonBytes({ url }), signal });
  }

  /**
   * The health of deliveries per URL: the disabled ones first, then those that fail.
   * @param {Signal} [options]
   * @returns {Promise<Endpoint[]>}
   */
  async endpoints({ signal } = {}) {
    return (await this.#http.read(shapes.EndpointList, "GET", "/api/endpoints", { signal })).endpoints;
  }

  /**
   * Enable deliveries to a disabled URL again. Throws EndpointNotFound.
   * @param {string} url
   * @param {Signal} [options]
   * @returns {Promise<Endpoint>}
   */
  async enableEndpoint(url, { signal } = {}) {
    return this.#http.read(shapes.Endpoint, "POST", "/api/endpoints/enable", { body: jsonBytes({ url }), signal });
  }

  /**
   * Have the webhooks of all jobs and batches sent to a URL, too; without `events`, all of them.
   *
   * The same URL again changes what is given. `secret` signs in place of the tenant's; the one before signs beside it
   * for 24 hours. Throws InvalidRequest, WebhookUrlRefused, TooManyEndpoints.
   * @param {string} url
   * @param {{ events?: readonly EndpointEvent[], secret?: string, signal?: AbortSignal | null }} [options]
   * @returns {Promise<Endpoint>}
   */
  async addEndpoint(url, { events, secret, signal } = {}) {
    const body = jsonBytes(given({ events, secret, url }));
    return this.#http.read(shapes.Endpoint, "POST", "/api/endpoints", { body, signal });
  }

  /**
   * Send the webhooks of all jobs to this URL no longer. Throws EndpointNotFound, also for a second call.
   * @param {string} url
   * @param {Signal} [options]
   * @returns {Promise<void>}
   */
  async deleteEndpoint(url, { signal } = {}) {
    await this.#http.call("DELETE", "/api/endpoints", { body: jsonBytes({ url }), signal });
  }

  /**
   * What happens to all jobs from now on, or after the event with the id `after` (0: from the oldest one that is kept):
   * created, started, ended. `types`: only these.
   *
   * Store an event's `id` once it is processed, and give it to go on in another process: within 30 days nothing is
   * missed and nothing comes twice. A broken connection is opened again. `timeout` is for the whole stream, which has no
   * end otherwise. Throws StreamBroken if `after` is not an id, RangeError for an unknown type; iterating throws
   * EventsExpired, ServiceUnavailable, a `TimeoutError` (DOMException), StreamBroken and ResponseTooLarge.
   * @param {Limited & { after?: string | number | null, types?: readonly FeedEventType[], onConnection?: OnConnection }} [options]
   * @returns {Stream<FeedEvent>}
   */
  listen({ after, types, timeout = Infinity, signal, onConnection } = {}) {
    const events = new FeedEvents(String(after ?? ""), this.#maxEventBytes);
    return new Stream(this.#http, feedPath(types), events, { patience: this.#patience, timeout, signal, onConnection });
  }

  // -------------------------------------------------------------------------------------------------- pace

  /**
   * The lanes by name: their limits, and who uses them; with an API key, as far as its tenant does.
   * @param {Signal} [options]
   * @returns {Promise<Lane[]>}
   */
  async lanes({ signal } = {}) {
    return (await this.#http.read(shapes.LaneList, "GET", "/api/lanes", { signal })).lanes;
  }

  /**
   * Begin a pause of a lane, of a tenant, or of everything: no call of the model starts until it ends.
   *
   * With an API key, `tenant` must be the key's own (ApiError `operators_only`). Throws InvalidRequest.
   * @param {{ lane?: string, tenant?: string, reason?: string, signal?: AbortSignal | null }} [options]
   * @returns {Promise<Pause>}
   */
  async pause({ lane, tenant, reason = "", signal } = {}) {
    const body = jsonBytes(given({ lane, tenant, reason }));
    return this.#http.read(shapes.Pause, "POST", "/api/pauses", { body, signal });
  }

  /**
   * The pauses that concern the caller's jobs, oldest first.
   * @param {Signal} [options]
   * @returns {Promise<Pause[]>}
   */
  async pauses({ signal } = {}) {
    return (await this.#http.read(shapes.PauseList, "GET", "/api/pauses", { signal })).pauses;
  }

  /**
   * End a pause: the jobs that waited for its end start, at their lane's pace. Throws PauseNotFound.
   * @param {string} pauseId
   * @param {Signal} [options]
   * @returns {Promise<void>}
   */
  async endPause(pauseId, { signal } = {}) {
    if (!/^[A-Za-z0-9_-]{1,64}$/.test(pauseId)) throw new errors.PauseNotFound();
    await this.#http.call("DELETE", `/api/pauses/${pauseId}`, { signal });
  }

  // ------------------------------------------------------------------------------------------------- parts

  /**
   * @param {string | ((signal: AbortSignal) => Promise<JobAccepted>)} job
   * @param {StreamOptions} [options]
   */
  #watch(job, { signal, ...options } = {}) {
    return new JobWatch(
      job,
      (jobId, inner) => this.stream(jobId, { ...options, signal: inner }),
      (jobId) => this.cancel(jobId),
      signal,
    );
  }
}

/**
 * The text, if it is the one that the service has stored. Throws StreamBroken if not.
 * @param {string} text
 * @param {string} expected
 */
async function checked(text, expected) {
  if ((await sha256(text)) === expected) return text;
  throw new errors.StreamBroken("the text is not the one that was stored; read the job");
}

/**
 * The path of a job. Throws JobNotFound for a text that cannot be an id of a job.
 * @param {string} jobId
 */
function path(jobId) {
  if (!/^[A-Za-z0-9_-]{1,128}$/.test(jobId)) throw new errors.JobNotFound();
  return `/api/jobs/${jobId}`;
}
