/**
 * A client of the service at `baseUrl`, for Node and browsers.
 *
 * The client may repeat every call without harm: calls that start something carry an idempotency key. Methods throw
 * ServiceUnavailable once the time is up, Unauthorized, ApiError, and the errors that they name.
 */
export class ChatJobs {
    /**
     * Throws ConfigurationError.
     * @param {string} baseUrl
     * @param {ClientOptions} [options]
     */
    constructor(baseUrl: string, options?: ClientOptions);
    /** The calls on batches. */
    batches: BatchCalls;
    /** The calls on schedules. */
    schedules: Schedules;
    /**
     * Start a job; it is durable once this returns. Options are the fields of a request, too (`{ model, metadata }`).
     *
     * Throws InvalidRequest, IdempotencyMismatch, JobIdConflict, WebhookUrlRefused.
     * @param {Prompt} prompt
     * @param {ChatFields & Keyed & Signal} [options]
     * @returns {Promise<JobAccepted>}
     */
    submit(prompt: Prompt, { idempotencyKey, signal, ...fields }?: ChatFields & Keyed & Signal): Promise<JobAccepted>;
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
    reply(jobId: string, prompt: Prompt, options?: Omit<ChatFields, "previousJobId"> & Keyed & Signal): Promise<JobAccepted>;
    /**
     * The job as it is now, with partial text while it runs. Throws JobNotFound.
     * @param {string} jobId
     * @param {Signal} [options]
     * @returns {Promise<Job>}
     */
    get(jobId: string, { signal }?: Signal): Promise<Job>;
    /**
     * What was asked. Throws JobNotFound, ContentDeleted.
     * @param {string} jobId
     * @param {Signal} [options]
     * @returns {Promise<ChatRequest>}
     */
    request(jobId: string, { signal }?: Signal): Promise<ChatRequest>;
    /**
     * The job once it has ended, with any terminal status. Throws JobNotFound, a `TimeoutError` (DOMException) and what
     * `stream` throws.
     * @param {string} jobId
     * @param {Limited} [options]
     * @returns {Promise<Job>}
     */
    wait(jobId: string, { timeout, signal }?: Limited): Promise<Job>;
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
    stream(jobId: string, { lastEventId, timeout, signal, token, onConnection }?: StreamOptions): Stream<StreamEvent>;
    /**
     * The whole text of the answer once it is complete, or as long as a limit allowed.
     *
     * Throws JobFailed if there is no answer, JobNotFound, ContentDeleted, a `TimeoutError`, ResponseTooLarge and
     * StreamBroken.
     * @param {string} jobId
     * @param {Limited & { token?: Token }} [options]
     * @returns {Promise<string>}
     */
    answer(jobId: string, options?: Limited & {
        token?: Token;
    }): Promise<string>;
    /**
     * `submit` and `wait`: the job once it has ended. Throws what they throw.
     * @param {Prompt} prompt
     * @param {ChatFields & Keyed & Limited} [options]
     * @returns {Promise<Job>}
     */
    ask(prompt: Prompt, { timeout, ...options }?: ChatFields & Keyed & Limited): Promise<Job>;
    /**
     * A job's events for handlers: `jobs.watch(jobId).on("chat:chunk", ({ content }) => …)`. See JobWatch.
     * @param {string} jobId
     * @param {StreamOptions} [options]
     * @returns {JobWatch}
     */
    watch(jobId: string, options?: StreamOptions): JobWatch;
    /**
     * `submit` and `watch`: starts a job, whose events handlers get: `jobs.chat("Hi").on("chat:chunk", …)`.
     * @param {Prompt} prompt
     * @param {ChatFields & Keyed & Limited} [options]
     * @returns {JobWatch}
     */
    chat(prompt: Prompt, { timeout, signal, ...options }?: ChatFields & Keyed & Limited): JobWatch;
    /**
     * Cancel a job, durably; its status now. A second call does the same. Throws JobNotFound, JobFinished.
     * @param {string} jobId
     * @param {Signal} [options]
     * @returns {Promise<JobStatus>}
     */
    cancel(jobId: string, { signal }?: Signal): Promise<JobStatus>;
    /**
     * Delete the texts and deliveries of a finished job. A second call does the same. Throws JobNotFound, JobRunning.
     * @param {string} jobId
     * @param {Signal} [options]
     * @returns {Promise<void>}
     */
    delete(jobId: string, { signal }?: Signal): Promise<void>;
    /**
     * Start a new job with the request of this one and the fields given; null unsets a field.
     *
     * Throws JobNotFound, ContentDeleted, and what `submit` throws.
     * @param {string} jobId
     * @param {Overrides & Keyed & Signal} [options]
     * @returns {Promise<JobAccepted>}
     */
    replay(jobId: string, { idempotencyKey, signal, ...overrides }?: Overrides & Keyed & Signal): Promise<JobAccepted>;
    /**
     * Let a job that failed or was cancelled go on from its text: the same job, whose streams go on.
     *
     * Throws JobNotFound, ContentDeleted, JobFinished, NothingToResume, and JobRunning: also if it is an earlier try of
     * this call that has resumed the job.
     * @param {string} jobId
     * @param {Signal} [options]
     * @returns {Promise<JobAccepted>}
     */
    resume(jobId: string, { signal }?: Signal): Promise<JobAccepted>;
    /**
     * A token for this job's event stream only, valid for 15 minutes: for a browser that has no API key. See `stream`.
     *
     * Throws JobNotFound.
     * @param {string} jobId
     * @param {Signal} [options]
     * @returns {Promise<StreamToken>}
     */
    streamToken(jobId: string, { signal }?: Signal): Promise<StreamToken>;
    /**
     * Jobs without their texts, newest first, read in pages of `pageSize`. Throws InvalidRequest.
     * @param {JobFilter & { pageSize?: number, signal?: AbortSignal | null }} [options]
     * @returns {AsyncGenerator<Job, void, void>}
     */
    list({ pageSize, signal, ...filter }?: JobFilter & {
        pageSize?: number;
        signal?: AbortSignal | null;
    }): AsyncGenerator<Job, void, void>;
    /**
     * One page of `list`, at most `limit` jobs; a page's `nextCursor` is the `cursor` of the next one. For user interfaces.
     *
     * Throws InvalidRequest.
     * @param {JobFilter & { limit?: number, cursor?: string | null, signal?: AbortSignal | null }} [options]
     * @returns {Promise<JobPage>}
     */
    page({ search, metadata, since, until, limit, signal, ...filter }?: JobFilter & {
        limit?: number;
        cursor?: string | null;
        signal?: AbortSignal | null;
    }): Promise<JobPage>;
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
    map(prompts: Iterable<Prompt> | AsyncIterable<Prompt>, { concurrency, onProgress, idempotencyPrefix: prefix, timeout, signal, ...fields }?: ChatFields & Limited & {
        concurrency?: number;
        onProgress?: (progress: Progress) => unknown;
        idempotencyPrefix?: string;
    }): AsyncGenerator<Outcome, void, void>;
    /**
     * Start a replay of all jobs that match the filter (`status`, `since`, …): a batch that has one new job for each.
     *
     * With a `canary` so many run first, and the others unless more than the part `maxErrorRate` of them fails (0.5).
     * Throws InvalidRequest, IdempotencyMismatch, WebhookUrlRefused.
     * @param {ReplayChoice & Keyed & Signal & { canary?: number, maxErrorRate?: number, overrides?: Overrides, name?: string, concurrency?: number, webhook?: string | import("../types/contracts.js").BatchWebhook }} options
     * @returns {Promise<Batch>}
     */
    replayAll({ canary, maxErrorRate, overrides, name, concurrency, webhook, idempotencyKey, signal, ...filter }: ReplayChoice & Keyed & Signal & {
        canary?: number;
        maxErrorRate?: number;
        overrides?: Overrides;
        name?: string;
        concurrency?: number;
        webhook?: string | import("../types/contracts.js").BatchWebhook;
    }): Promise<Batch>;
    /**
     * What `replayAll` would do now: how many jobs, which ones first, and about how many tokens. Throws InvalidRequest.
     * @param {ReplayChoice & Signal & { overrides?: Overrides }} options
     * @returns {Promise<ReplayEstimate>}
     */
    estimateReplay({ overrides, signal, ...filter }: ReplayChoice & Signal & {
        overrides?: Overrides;
    }): Promise<ReplayEstimate>;
    /**
     * The job's deliveries with all their tries. Throws JobNotFound.
     * @param {string} jobId
     * @param {Signal} [options]
     * @returns {Promise<Delivery[]>}
     */
    deliveries(jobId: string, options?: Signal): Promise<Delivery[]>;
    /**
     * Make a delivery, or all of a job's, again now: same body, same `webhook-id`. The number of deliveries.
     *
     * Throws JobNotFound, DeliveryNotFound, ContentDeleted.
     * @param {string} jobId
     * @param {string | null} [deliveryId]
     * @param {Signal} [options]
     * @returns {Promise<number>}
     */
    redeliver(jobId: string, deliveryId?: string | null, { signal }?: Signal): Promise<number>;
    /**
     * Make the deliveries of events between two times again, up to 10,000 in a call. Without `until`, until now.
     *
     * Throws InvalidRequest.
     * @param {Date | string} since
     * @param {{ until?: Date | string, status?: "pending" | "delivered" | "failed", url?: string, signal?: AbortSignal | null }} [options]
     * @returns {Promise<Redelivering>}
     */
    redeliverAll(since: Date | string, { until, status, url, signal }?: {
        until?: Date | string;
        status?: "pending" | "delivered" | "failed";
        url?: string;
        signal?: AbortSignal | null;
    }): Promise<Redelivering>;
    /**
     * Send a signed `webhook.test` from the service to a URL. Throws WebhookUrlRefused.
     * @param {string} url
     * @param {Signal} [options]
     * @returns {Promise<WebhookTest>}
     */
    testWebhook(url: string, { signal }?: Signal): Promise<WebhookTest>;
    /**
     * The health of deliveries per URL: the disabled ones first, then those that fail.
     * @param {Signal} [options]
     * @returns {Promise<Endpoint[]>}
     */
    endpoints({ signal }?: Signal): Promise<Endpoint[]>;
    /**
     * Enable deliveries to a disabled URL again. Throws EndpointNotFound.
     * @param {string} url
     * @param {Signal} [options]
     * @returns {Promise<Endpoint>}
     */
    enableEndpoint(url: string, { signal }?: Signal): Promise<Endpoint>;
    /**
     * Have the webhooks of all jobs and batches sent to a URL, too; without `events`, all of them.
     *
     * The same URL again changes what is given. `secret` signs in place of the tenant's; the one before signs beside it
     * for 24 hours. Throws InvalidRequest, WebhookUrlRefused, TooManyEndpoints.
     * @param {string} url
     * @param {{ events?: readonly EndpointEvent[], secret?: string, signal?: AbortSignal | null }} [options]
     * @returns {Promise<Endpoint>}
     */
    addEndpoint(url: string, { events, secret, signal }?: {
        events?: readonly EndpointEvent[];
        secret?: string;
        signal?: AbortSignal | null;
    }): Promise<Endpoint>;
    /**
     * Send the webhooks of all jobs to this URL no longer. Throws EndpointNotFound, also for a second call.
     * @param {string} url
     * @param {Signal} [options]
     * @returns {Promise<void>}
     */
    deleteEndpoint(url: string, { signal }?: Signal): Promise<void>;
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
    listen({ after, types, timeout, signal, onConnection }?: Limited & {
        after?: string | number | null;
        types?: readonly FeedEventType[];
        onConnection?: OnConnection;
    }): Stream<FeedEvent>;
    /**
     * The lanes by name: their limits, and who uses them; with an API key, as far as its tenant does.
     * @param {Signal} [options]
     * @returns {Promise<Lane[]>}
     */
    lanes({ signal }?: Signal): Promise<Lane[]>;
    /**
     * Begin a pause of a lane, of a tenant, or of everything: no call of the model starts until it ends.
     *
     * With an API key, `tenant` must be the key's own (ApiError `operators_only`). Throws InvalidRequest.
     * @param {{ lane?: string, tenant?: string, reason?: string, signal?: AbortSignal | null }} [options]
     * @returns {Promise<Pause>}
     */
    pause({ lane, tenant, reason, signal }?: {
        lane?: string;
        tenant?: string;
        reason?: string;
        signal?: AbortSignal | null;
    }): Promise<Pause>;
    /**
     * The pauses that concern the caller's jobs, oldest first.
     * @param {Signal} [options]
     * @returns {Promise<Pause[]>}
     */
    pauses({ signal }?: Signal): Promise<Pause[]>;
    /**
     * End a pause: the jobs that waited for its end start, at their lane's pace. Throws PauseNotFound.
     * @param {string} pauseId
     * @param {Signal} [options]
     * @returns {Promise<void>}
     */
    endPause(pauseId: string, { signal }?: Signal): Promise<void>;
    #private;
}
export type Batch = import("../types/contracts.js").Batch;
export type ChatRequest = import("../types/contracts.js").ChatRequest;
export type Delivery = import("../types/contracts.js").Delivery;
export type Endpoint = import("../types/contracts.js").Endpoint;
export type FeedEvent = import("../types/contracts.js").FeedEvent;
export type FeedEventType = import("../types/contracts.js").FeedEventType;
export type Job = import("../types/contracts.js").Job;
export type JobAccepted = import("../types/contracts.js").JobAccepted;
export type JobPage = import("../types/contracts.js").JobPage;
export type JobStatus = import("../types/contracts.js").JobStatus;
export type Lane = import("../types/contracts.js").Lane;
export type Pause = import("../types/contracts.js").Pause;
export type Redelivering = import("../types/contracts.js").Redelivering;
export type ReplayEstimate = import("../types/contracts.js").ReplayEstimate;
export type StreamEvent = import("../types/contracts.js").StreamEvent;
export type StreamToken = import("../types/contracts.js").StreamToken;
export type WebhookTest = import("../types/contracts.js").WebhookTest;
export type Outcome = import("./map.js").Outcome;
export type Progress = import("./map.js").Progress;
export type ChatFields = import("./prompts.js").ChatFields;
export type Prompt = import("./prompts.js").Prompt;
export type OnConnection = import("./stream.js").OnConnection;
export type Token = import("./stream.js").Token;
export type EndpointEvent = NonNullable<Endpoint["events"]>[number];
/**
 * `signal`: aborting it ends the call, which throws the signal's reason.
 */
export type Signal = {
    signal?: AbortSignal | null;
};
/**
 * `timeout`: milliseconds in all, a day unless given.
 */
export type Limited = {
    timeout?: number;
    signal?: AbortSignal | null;
};
/**
 * `idempotencyKey`: the same key with the same request is the same job; without one, a new key makes repetitions safe.
 */
export type Keyed = {
    idempotencyKey?: string;
};
/**
 * `lastEventId`: the id of the last event that the reader has. `token`: from `streamToken`, in place of the API key.
 */
export type StreamOptions = Limited & {
    lastEventId?: string;
    token?: Token;
    onConnection?: OnConnection;
};
/**
 * The jobs that a replay asks for again: those that match all that is given.
 */
export type ReplayChoice = Omit<import("../types/contracts.js").ReplayFilterInput, "since" | "until"> & {
    since?: Date | string | null;
    until?: Date | string | null;
};
/**
 * fields that change; null unsets one
 */
export type Overrides = Partial<{ [K in keyof ChatRequest]: ChatRequest[K] | null; }>;
/**
 * `search`: words of prompt or answer, all of which have to be there. `errorCode`: of a failed job. `replayOf`: the id of
 * the job that was replayed. `thread`: that of the first job of a conversation.
 */
export type JobFilter = {
    status?: import("../types/contracts.js").JobStatus | undefined;
    model?: string | undefined;
    metadata?: Record<string, string> | undefined;
    search?: string | undefined;
    errorCode?: string | undefined;
    replayOf?: string | undefined;
    thread?: string | undefined;
    batchId?: string | undefined;
    scheduleId?: string | undefined;
    since?: string | Date | undefined;
    until?: string | Date | undefined;
};
/**
 * Times are in milliseconds.
 */
export type ClientOptions = {
    apiKey?: string | null | undefined;
    /**
     * for a call with all its repetitions; 60,000 unless given
     */
    timeout?: number | undefined;
    /**
     * how long a stream waits for a byte, over all its connections; 300,000
     */
    patience?: number | undefined;
    /**
     * without a byte after which a connection counts as dead; 45,000 (the service sends
     * something every 15,000)
     */
    silence?: number | undefined;
    /**
     * of a response; 64 MiB
     */
    maxResponseBytes?: number | undefined;
    /**
     * of an event of a stream; 16 MiB
     */
    maxEventBytes?: number | undefined;
    /**
     * in place of the global one
     */
    fetch?: typeof fetch | undefined;
    /**
     * the waits between repetitions
     */
    backoff?: import("./calls.js").Backoff | undefined;
};
import { BatchCalls } from "./batches.js";
import { Schedules } from "./schedules.js";
import { Stream } from "./stream.js";
import { JobWatch } from "./watch.js";
