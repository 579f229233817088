// The JavaScript client of the chat-job service, for Node and browsers: the twin of the Python package's client.

export { ChatJobs } from "./client.js";
export * from "./errors.js";
export { Stream } from "./stream.js";
export { JobWatch } from "./watch.js";
export { verifyAnyWebhook, verifyLegacyWebhook, verifyWebhook } from "./webhooks.js";

/** @typedef {import("./batches.js").BatchOptions} BatchOptions */
/** @typedef {import("./batches.js").Items} Items */
/** @typedef {import("./calls.js").Backoff} Backoff */
/** @typedef {import("./client.js").ClientOptions} ClientOptions */
/** @typedef {import("./client.js").JobFilter} JobFilter */
/** @typedef {import("./client.js").Overrides} Overrides */
/** @typedef {import("./client.js").ReplayChoice} ReplayChoice */
/** @typedef {import("./client.js").StreamOptions} StreamOptions */
/** @typedef {import("./map.js").Outcome} Outcome */
/** @typedef {import("./map.js").Progress} Progress */
/** @typedef {import("./prompts.js").ChatFields} ChatFields */
/** @typedef {import("./prompts.js").Item} Item */
/** @typedef {import("./prompts.js").Prompt} Prompt */
/** @typedef {import("./schedules.js").ScheduleOptions} ScheduleOptions */
/** @typedef {import("./stream.js").OnConnection} OnConnection */
/** @typedef {import("./stream.js").Token} Token */
/** @typedef {import("./watch.js").JobEventMap} JobEventMap */
/** @typedef {import("./watch.js").TerminalEvent} TerminalEvent */
/** @typedef {import("./webhooks.js").VerifyOptions} VerifyOptions */
/** @typedef {import("./webhooks.js").WebhookBody} WebhookBody */
/** @typedef {import("./webhooks.js").WebhookHeaders} WebhookHeaders */

/** @typedef {import("../types/contracts.js").Batch} Batch */
/** @typedef {import("../types/contracts.js").BatchAccepted} BatchAccepted */
/** @typedef {import("../types/contracts.js").BatchItem} BatchItem */
/** @typedef {import("../types/contracts.js").BatchProgress} BatchProgress */
/** @typedef {import("../types/contracts.js").BatchRequest} BatchRequest */
/** @typedef {import("../types/contracts.js").BatchStatus} BatchStatus */
/** @typedef {import("../types/contracts.js").BatchWebhook} BatchWebhook */
/** @typedef {import("../types/contracts.js").BatchWebhookEvent} BatchWebhookEvent */
/** @typedef {import("../types/contracts.js").CancelledEvent} CancelledEvent */
/** @typedef {import("../types/contracts.js").ChatRequest} ChatRequest */
/** @typedef {import("../types/contracts.js").ChunkEvent} ChunkEvent */
/** @typedef {import("../types/contracts.js").CompleteEvent} CompleteEvent */
/** @typedef {import("../types/contracts.js").Delivery} Delivery */
/** @typedef {import("../types/contracts.js").Endpoint} Endpoint */
/** @typedef {import("../types/contracts.js").ErrorEvent} ErrorEvent */
/** @typedef {import("../types/contracts.js").FeedEvent} FeedEvent */
/** @typedef {import("../types/contracts.js").FeedEventType} FeedEventType */
/** @typedef {import("../types/contracts.js").Job} Job */
/** @typedef {import("../types/contracts.js").JobAccepted} JobAccepted */
/** @typedef {import("../types/contracts.js").JobError} JobError */
/** @typedef {import("../types/contracts.js").JobStatus} JobStatus */
/** @typedef {import("../types/contracts.js").Lane} Lane */
/** @typedef {import("../types/contracts.js").Message} Message */
/** @typedef {import("../types/contracts.js").OutputLine} OutputLine */
/** @typedef {import("../types/contracts.js").Pause} Pause */
/** @typedef {import("../types/contracts.js").QueuedEvent} QueuedEvent */
/** @typedef {import("../types/contracts.js").Redelivering} Redelivering */
/** @typedef {import("../types/contracts.js").ReplayEstimate} ReplayEstimate */
/** @typedef {import("../types/contracts.js").ResetEvent} ResetEvent */
/** @typedef {import("../types/contracts.js").Schedule} Schedule */
/** @typedef {import("../types/contracts.js").ScheduleOverlap} ScheduleOverlap */
/** @typedef {import("../types/contracts.js").StartEvent} StartEvent */
/** @typedef {import("../types/contracts.js").StreamEvent} StreamEvent */
/** @typedef {import("../types/contracts.js").StreamToken} StreamToken */
/** @typedef {import("../types/contracts.js").Usage} Usage */
/** @typedef {import("../types/contracts.js").WebhookEvent} WebhookEvent */
/** @typedef {import("../types/contracts.js").WebhookTest} WebhookTest */
