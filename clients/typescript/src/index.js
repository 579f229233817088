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
/** @typedef {import("./stream.js").Token} Token */
/** @typedef {import("./watch.js").JobEventMap} JobEventMap */
/** @typedef {import("./watch.js").TerminalEvent} TerminalEvent */
/** @typedef {import("./webhooks.js").VerifyOptions} VerifyOptions */
/** @typedef {import("./webhooks.js").WebhookBody} WebhookBody */
/** @typedef {import("./webhooks.js").WebhookHeaders} WebhookHeaders */
