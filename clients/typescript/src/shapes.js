// Made by tests/clients/generated.py from the contracts of the Python package (chatjobs/contracts/).

import {
  anything, boolean, either, integer, list, nullable, number, object, optional, record, string, time, usually,
  word,
} from "./decode.js";

/** @type {import("./decode.js").Shape<import("../types/contracts.js").Usage>} */
export const Usage = object("Usage", {
  prompt_tokens: usually(integer, () => 0),
  completion_tokens: usually(integer, () => 0),
  total_tokens: usually(integer, () => 0),
}, true);
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Attempt>} */
export const Attempt = object("Attempt", {
  number: integer,
  startedAt: time,
  endedAt: usually(nullable(time), () => null),
  outcome: usually(nullable(string), () => null),
  httpStatus: usually(nullable(integer), () => null),
  usage: usually(nullable(Usage), () => null),
  estimated: usually(boolean, () => false),
  firstTokenMs: usually(nullable(integer), () => null),
  tokensPerSecond: usually(nullable(number), () => null),
  model: usually(nullable(string), () => null),
  epoch: usually(nullable(integer), () => null),
});
export const BatchStatus = word("queued", "in_progress", "paused", "completed", "cancelled", "failed");
/** @type {import("./decode.js").Shape<import("../types/contracts.js").BatchCounts>} */
export const BatchCounts = object("BatchCounts", {
  total: integer,
  queued: usually(integer, () => 0),
  running: usually(integer, () => 0),
  completed: usually(integer, () => 0),
  failed: usually(integer, () => 0),
  cancelled: usually(integer, () => 0),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").ErrorCause>} */
export const ErrorCause = object("ErrorCause", {
  code: string,
  message: string,
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").JobError>} */
export const JobError = object("JobError", {
  code: string,
  message: string,
  retryable: usually(boolean, () => false),
  cause: optional(nullable(ErrorCause)),
});
export const JobStatus = word("queued", "in_progress", "completed", "failed", "cancelled", "incomplete");
/** @type {import("./decode.js").Shape<import("../types/contracts.js").ReplayFilter>} */
export const ReplayFilter = object("ReplayFilter", {
  status: usually(nullable(JobStatus), () => null),
  errorCode: usually(nullable(string), () => null),
  model: usually(nullable(string), () => null),
  metadata: usually(record(string), () => ({})),
  since: usually(nullable(time), () => null),
  until: usually(nullable(time), () => null),
  batchId: usually(nullable(string), () => null),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Batch>} */
export const Batch = object("Batch", {
  batchId: string,
  name: usually(nullable(string), () => null),
  status: BatchStatus,
  revision: usually(integer, () => 1),
  createdAt: time,
  startedAt: usually(nullable(time), () => null),
  completedAt: usually(nullable(time), () => null),
  counts: BatchCounts,
  usage: usually(nullable(Usage), () => null),
  ratePerSecond: usually(nullable(number), () => null),
  expectedEndAt: usually(nullable(time), () => null),
  scheduleId: usually(nullable(string), () => null),
  concurrency: usually(nullable(integer), () => null),
  lane: usually(word("live", "batch"), () => "live"),
  deadline: usually(nullable(time), () => null),
  error: usually(nullable(JobError), () => null),
  errorsByCode: usually(record(integer), () => ({})),
  temporalUrl: usually(nullable(string), () => null),
  kind: usually(word("batch", "replay"), () => "batch"),
  filter: optional(nullable(ReplayFilter)),
  overrides: optional(nullable(record(anything))),
  canary: optional(nullable(integer)),
  maxErrorRate: optional(nullable(number)),
  phase: optional(nullable(word("canary", "rest"))),
  stopped: optional(nullable(string)),
  skipped: optional(nullable(integer)),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").BatchAccepted>} */
export const BatchAccepted = object("BatchAccepted", {
  batchId: string,
  status: BatchStatus,
  statusUrl: string,
  eventsUrl: string,
  outputUrl: string,
  errorsUrl: string,
});
export const BatchEventType = word("batch.completed", "batch.cancelled", "batch.failed");
/** @type {import("./decode.js").Shape<import("../types/contracts.js").BatchOutcome>} */
export const BatchOutcome = object("BatchOutcome", {
  batchId: string,
  name: usually(nullable(string), () => null),
  status: BatchStatus,
  revision: usually(integer, () => 1),
  counts: BatchCounts,
  usage: usually(nullable(Usage), () => null),
  ratePerSecond: usually(nullable(number), () => null),
  expectedEndAt: usually(nullable(time), () => null),
  error: usually(nullable(JobError), () => null),
  completedAt: usually(nullable(time), () => null),
  statusUrl: string,
  outputUrl: string,
  errorsUrl: string,
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").BatchPage>} */
export const BatchPage = object("BatchPage", {
  batches: list(Batch),
  nextCursor: usually(nullable(string), () => null),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").BatchProgress>} */
export const BatchProgress = object("BatchProgress", {
  batchId: string,
  name: usually(nullable(string), () => null),
  status: BatchStatus,
  revision: usually(integer, () => 1),
  counts: BatchCounts,
  usage: usually(nullable(Usage), () => null),
  ratePerSecond: usually(nullable(number), () => null),
  expectedEndAt: usually(nullable(time), () => null),
  error: usually(nullable(JobError), () => null),
  completedAt: usually(nullable(time), () => null),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").BatchWebhookEvent>} */
export const BatchWebhookEvent = object("BatchWebhookEvent", {
  event: BatchEventType,
  timestamp: time,
  data: BatchOutcome,
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").CancelledEvent>} */
export const CancelledEvent = object("CancelledEvent", {
  status: usually(word("cancelled"), () => "cancelled"),
  usage: usually(nullable(Usage), () => null),
  sha256: string,
});
export const Channel = word("content", "reasoning");
/** @type {import("./decode.js").Shape<import("../types/contracts.js").ChunkEvent>} */
export const ChunkEvent = object("ChunkEvent", {
  content: string,
  channel: Channel,
  index: integer,
  tokenCount: integer,
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").FunctionCall>} */
export const FunctionCall = object("FunctionCall", {
  name: string,
  arguments: either(string, record(anything)),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").ToolCall>} */
export const ToolCall = object("ToolCall", {
  id: usually(string, () => "null"),
  type: usually(string, () => "function"),
  function: FunctionCall,
  index: usually(integer, () => 0),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").CompleteEvent>} */
export const CompleteEvent = object("CompleteEvent", {
  status: word("completed", "incomplete"),
  totalTokens: usually(nullable(integer), () => null),
  usage: usually(nullable(Usage), () => null),
  finishReason: usually(nullable(string), () => null),
  toolCalls: usually(nullable(list(ToolCall)), () => null),
  sha256: string,
});
export const WebhookEventType = word("chat.completed", "chat.failed", "chat.cancelled", "chat.incomplete");
/** @type {import("./decode.js").Shape<import("../types/contracts.js").DeliveryTry>} */
export const DeliveryTry = object("DeliveryTry", {
  number: integer,
  startedAt: time,
  statusCode: usually(nullable(integer), () => null),
  latencyMs: integer,
  error: usually(nullable(string), () => null),
  response: usually(nullable(string), () => null),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Delivery>} */
export const Delivery = object("Delivery", {
  id: string,
  event: WebhookEventType,
  url: string,
  status: word("pending", "delivered", "failed"),
  createdAt: time,
  nextTryAt: usually(nullable(time), () => null),
  deliveredAt: usually(nullable(time), () => null),
  tries: usually(list(DeliveryTry), () => []),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Endpoint>} */
export const Endpoint = object("Endpoint", {
  url: string,
  status: word("ok", "failing", "disabled"),
  failingSince: usually(nullable(time), () => null),
  failures: integer,
  successes: integer,
  lastSuccessAt: usually(nullable(time), () => null),
  lastFailureAt: usually(nullable(time), () => null),
  lastError: usually(nullable(string), () => null),
  disabledAt: usually(nullable(time), () => null),
  disabledReason: usually(nullable(string), () => null),
  events: usually(nullable(list(either(WebhookEventType, BatchEventType))), () => null),
  ownSecret: usually(boolean, () => false),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").EndpointList>} */
export const EndpointList = object("EndpointList", {
  endpoints: list(Endpoint),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").ErrorEvent>} */
export const ErrorEvent = object("ErrorEvent", {
  code: string,
  message: string,
  retryable: boolean,
  cause: optional(nullable(ErrorCause)),
});
export const FeedEventType = word("chat.created", "chat.started", "chat.completed", "chat.failed", "chat.cancelled", "chat.incomplete");
/** @type {import("./decode.js").Shape<import("../types/contracts.js").FeedEvent>} */
export const FeedEvent = object("FeedEvent", {
  id: string,
  event: FeedEventType,
  timestamp: time,
  jobId: string,
  requestId: string,
  status: JobStatus,
  model: string,
  metadata: usually(record(string), () => ({})),
  revision: usually(integer, () => 1),
  batchId: optional(nullable(string)),
  replayOf: optional(nullable(string)),
  scheduleId: optional(nullable(string)),
  thread: optional(nullable(string)),
  errorCode: optional(nullable(string)),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").PlacedPart>} */
export const PlacedPart = object("PlacedPart", {
  position: integer,
  part: record(anything),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").TextOrigin>} */
export const TextOrigin = object("TextOrigin", {
  start: integer,
  end: integer,
  attempt: integer,
  model: string,
  seam: usually(nullable(word("confirmed", "unconfirmed")), () => null),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").QueuePlace>} */
export const QueuePlace = object("QueuePlace", {
  position: integer,
  expectedStartAt: usually(nullable(time), () => null),
  reason: usually(word("rate_limit", "at_once", "paused", "model_down"), () => "rate_limit"),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Job>} */
export const Job = object("Job", {
  jobId: string,
  requestId: string,
  status: JobStatus,
  model: string,
  createdAt: time,
  startAt: optional(nullable(time)),
  startedAt: usually(nullable(time), () => null),
  completedAt: usually(nullable(time), () => null),
  content: usually(nullable(string), () => null),
  reasoning: usually(nullable(string), () => null),
  toolCalls: usually(nullable(list(ToolCall)), () => null),
  finishReason: usually(nullable(string), () => null),
  usage: usually(nullable(Usage), () => null),
  usageEstimated: usually(boolean, () => false),
  error: usually(nullable(JobError), () => null),
  epoch: usually(integer, () => 1),
  position: usually(integer, () => 0),
  sha256: usually(nullable(string), () => null),
  metadata: usually(record(string), () => ({})),
  replayOf: usually(nullable(string), () => null),
  previousJobId: usually(nullable(string), () => null),
  thread: usually(nullable(string), () => null),
  batchId: usually(nullable(string), () => null),
  scheduleId: usually(nullable(string), () => null),
  temporalUrl: usually(nullable(string), () => null),
  deletedAt: optional(nullable(time)),
  contentParts: optional(nullable(list(PlacedPart))),
  contentOmitted: optional(boolean),
  statusUrl: optional(nullable(string)),
  attempts: usually(list(Attempt), () => []),
  deliveries: usually(list(Delivery), () => []),
  provenance: optional(list(TextOrigin)),
  wastedTokens: optional(nullable(integer)),
  replays: usually(list(string), () => []),
  preview: optional(nullable(string)),
  queue: optional(nullable(QueuePlace)),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").JobAccepted>} */
export const JobAccepted = object("JobAccepted", {
  jobId: string,
  requestId: string,
  status: JobStatus,
  statusUrl: string,
  eventsUrl: string,
  cancelUrl: string,
  temporalUrl: string,
  replayOf: usually(nullable(string), () => null),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").JobPage>} */
export const JobPage = object("JobPage", {
  jobs: list(Job),
  nextCursor: usually(nullable(string), () => null),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").LaneWaiting>} */
export const LaneWaiting = object("LaneWaiting", {
  tenant: string,
  priority: integer,
  count: integer,
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Pause>} */
export const Pause = object("Pause", {
  pauseId: string,
  lane: usually(nullable(string), () => null),
  tenant: usually(nullable(string), () => null),
  reason: string,
  pausedAt: time,
  pausedBy: string,
  mayResume: usually(boolean, () => true),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Lane>} */
export const Lane = object("Lane", {
  lane: string,
  perSecond: number,
  setTo: usually(nullable(number), () => null),
  seen: usually(nullable(number), () => null),
  atOnce: usually(nullable(integer), () => null),
  running: integer,
  tokensPerMinute: usually(nullable(integer), () => null),
  tokensSetTo: usually(nullable(integer), () => null),
  tokensSeen: usually(nullable(integer), () => null),
  tokensUsed: usually(nullable(integer), () => null),
  waiting: integer,
  waitingBy: list(LaneWaiting),
  pauses: list(Pause),
  pausedUntil: usually(nullable(time), () => null),
  down: boolean,
  probesAt: usually(nullable(time), () => null),
  lastError: usually(nullable(string), () => null),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").LaneList>} */
export const LaneList = object("LaneList", {
  lanes: list(Lane),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").OutputError>} */
export const OutputError = object("OutputError", {
  code: string,
  message: string,
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").OutputResponse>} */
export const OutputResponse = object("OutputResponse", {
  status_code: integer,
  body: anything,
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").OutputLine>} */
export const OutputLine = object("OutputLine", {
  id: string,
  custom_id: string,
  response: usually(nullable(OutputResponse), () => null),
  error: usually(nullable(OutputError), () => null),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").PauseList>} */
export const PauseList = object("PauseList", {
  pauses: list(Pause),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").QueuedEvent>} */
export const QueuedEvent = object("QueuedEvent", {
  position: integer,
  expectedStartAt: usually(nullable(time), () => null),
  reason: usually(word("rate_limit", "at_once", "paused", "model_down"), () => "rate_limit"),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Redelivering>} */
export const Redelivering = object("Redelivering", {
  count: integer,
  more: usually(boolean, () => false),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").ReplayEstimate>} */
export const ReplayEstimate = object("ReplayEstimate", {
  count: integer,
  skipped: integer,
  estimatedTokens: usually(nullable(integer), () => null),
  firstJobIds: list(string),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").ResetEvent>} */
export const ResetEvent = object("ResetEvent", {
  attempt: integer,
  reason: string,
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").ScheduleRun>} */
export const ScheduleRun = object("ScheduleRun", {
  jobId: usually(nullable(string), () => null),
  batchId: usually(nullable(string), () => null),
  status: either(JobStatus, BatchStatus),
  createdAt: time,
  completedAt: usually(nullable(time), () => null),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").Schedule>} */
export const Schedule = object("Schedule", {
  cron: usually(nullable(string), () => null),
  every: usually(nullable(either(integer, string)), () => null),
  timezone: usually(string, () => "UTC"),
  overlap: usually(word("skip", "buffer_one", "buffer_all", "cancel_other", "terminate_other", "allow_all"), () => "skip"),
  catchupSeconds: usually(integer, () => 86400),
  id: string,
  request: usually(nullable(record(anything)), () => null),
  batch: usually(nullable(record(anything)), () => null),
  paused: boolean,
  note: usually(nullable(string), () => null),
  createdAt: time,
  updatedAt: time,
  nextRuns: usually(list(time), () => []),
  lastRuns: usually(list(ScheduleRun), () => []),
  pending: boolean,
  temporalUrl: usually(nullable(string), () => null),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").SchedulePage>} */
export const SchedulePage = object("SchedulePage", {
  schedules: list(Schedule),
  nextCursor: usually(nullable(string), () => null),
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").StartEvent>} */
export const StartEvent = object("StartEvent", {
  jobId: string,
  requestId: string,
  model: string,
  attempt: integer,
  timestamp: time,
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").StreamToken>} */
export const StreamToken = object("StreamToken", {
  token: string,
  expiresAt: time,
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").WebhookData>} */
export const WebhookData = object("WebhookData", {
  jobId: string,
  requestId: string,
  status: JobStatus,
  model: string,
  content: optional(nullable(string)),
  toolCalls: usually(nullable(list(ToolCall)), () => null),
  finishReason: usually(nullable(string), () => null),
  usage: usually(nullable(Usage), () => null),
  error: usually(nullable(JobError), () => null),
  completedAt: time,
  sha256: string,
  metadata: usually(record(string), () => ({})),
  statusUrl: string,
  contentOmitted: optional(boolean),
});
export const WebhookTestEvent = word("webhook.test");
/** @type {import("./decode.js").Shape<import("../types/contracts.js").WebhookEvent>} */
export const WebhookEvent = object("WebhookEvent", {
  event: either(WebhookEventType, WebhookTestEvent),
  timestamp: time,
  data: WebhookData,
});
/** @type {import("./decode.js").Shape<import("../types/contracts.js").WebhookTest>} */
export const WebhookTest = object("WebhookTest", {
  delivered: boolean,
  statusCode: usually(nullable(integer), () => null),
  latencyMs: integer,
  error: usually(nullable(string), () => null),
  advice: optional(nullable(string)),
});
