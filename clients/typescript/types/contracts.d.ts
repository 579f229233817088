// Made by tests/clients/generated.py from the contracts of the Python package (chatjobs/contracts/).
// Times are texts as in RFC 3339; names are those of the wire.

/** Tokens as Mistral counts them; further counters are kept as they came. */
export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  [further: string]: any;
}

/** One HTTP call to Mistral on behalf of a job. */
export interface Attempt {
  /** From 1. */
  number: number;
  startedAt: string;
  /** null while the attempt runs. */
  endedAt: string | null;
  /** The code of the error that ended the attempt, or a word for another end; null while it runs. */
  outcome: string | null;
  /** The status of Mistral's response; null if there was none. */
  httpStatus: number | null;
  usage: Usage | null;
  /** Whether `usage` is an estimate, because Mistral did not report it. */
  estimated: boolean;
  /** Milliseconds from the call to the first token. */
  firstTokenMs: number | null;
  /** Tokens per second since the first token; null for fewer than two. */
  tokensPerSecond: number | null;
  /** The model that was called; null in attempts of earlier versions. */
  model: string | null;
  /** The epoch of the text that it wrote; null in attempts of earlier versions. */
  epoch: number | null;
}

/** The status of a batch. */
export type BatchStatus = "queued" | "in_progress" | "paused" | "completed" | "cancelled" | "failed";

/** The number of jobs by status. `completed` includes incomplete answers, which reached a length limit. */
export interface BatchCounts {
  total: number;
  queued: number;
  running: number;
  completed: number;
  failed: number;
  cancelled: number;
}

/** The last failure before a limit ended the job. `code` and `message` are as in `JobError`. */
export interface ErrorCause {
  code: string;
  message: string;
}

/**
 * Why a job failed. `code` is stable; `message` is for people, at most 500 characters, without secrets. `cause` is
 * there where a limit of the job ended it: `code` names the limit, `cause` what had kept the job from ending in time.
 * It is left out where `code` says it all.
 */
export interface JobError {
  code: string;
  message: string;
  /** Whether a replay of the job may succeed. */
  retryable: boolean;
  cause?: ErrorCause | null;
}

/** The status of a job, the same word on every interface. */
export type JobStatus = "queued" | "in_progress" | "completed" | "failed" | "cancelled" | "incomplete";

/** The jobs that a replay asks for again: those that have ended, and match all that is given. */
export interface ReplayFilter {
  /** A terminal one. */
  status: JobStatus | null;
  errorCode: string | null;
  model: string | null;
  /** All of these pairs. */
  metadata: Record<string, string>;
  /** Accepted at this time or later. */
  since: string | null;
  /** Accepted before this time. */
  until: string | null;
  batchId: string | null;
}

/** A batch as `GET /api/batches/{batchId}` shows it. */
export interface Batch {
  batchId: string;
  name: string | null;
  status: BatchStatus;
  /** 1, and one more for each time that the batch went on after its end. */
  revision: number;
  createdAt: string;
  startedAt: string | null;
  /** The time of the terminal status, whichever it is. */
  completedAt: string | null;
  counts: BatchCounts;
  /** The sum over the jobs that have ended. */
  usage: Usage | null;
  /** Jobs that ended per second, over the last minute; null before the first. */
  ratePerSecond: number | null;
  /** At this rate; null while nothing is known, and after the end. */
  expectedEndAt: string | null;
  /** The id of the schedule that made the batch. */
  scheduleId: string | null;
  concurrency: number | null;
  lane: "live" | "batch";
  deadline: string | null;
  /** There if `status` is `failed`. */
  error: JobError | null;
  /** The number of failed jobs by the code of their error. */
  errorsByCode: Record<string, number>;
  /** The batch's workflow in the Temporal UI. */
  temporalUrl: string | null;
  /** The items of a `replay` come from a filter. The fields after this one are a replay's alone. */
  kind: "batch" | "replay";
  filter?: ReplayFilter | null;
  overrides?: Record<string, any> | null;
  canary?: number | null;
  maxErrorRate?: number | null;
  phase?: "canary" | "rest" | null;
  /** Why the replay was stopped: too many of its jobs failed. */
  stopped?: string | null;
  /** Jobs of the filter that were left out: they were deleted, or their request was not kept. */
  skipped?: number | null;
}

/** The answer to the request for a new batch. */
export interface BatchAccepted {
  batchId: string;
  status: BatchStatus;
  statusUrl: string;
  eventsUrl: string;
  outputUrl: string;
  errorsUrl: string;
}

/** The events that a batch's webhook may subscribe to. */
export type BatchEventType = "batch.completed" | "batch.cancelled" | "batch.failed";

/** The end of a batch, in its webhook. */
export interface BatchOutcome {
  batchId: string;
  name: string | null;
  status: BatchStatus;
  /** 1, and one more for each time that the batch went on after its end. */
  revision: number;
  counts: BatchCounts;
  usage: Usage | null;
  ratePerSecond: number | null;
  expectedEndAt: string | null;
  error: JobError | null;
  completedAt: string | null;
  statusUrl: string;
  outputUrl: string;
  errorsUrl: string;
}

/** Batches, newest first; `nextCursor` is null on the last page. */
export interface BatchPage {
  batches: Batch[];
  nextCursor: string | null;
}

/** The state of a batch: the data of its stream's events, and of its webhooks. */
export interface BatchProgress {
  batchId: string;
  name: string | null;
  status: BatchStatus;
  /** 1, and one more for each time that the batch went on after its end. */
  revision: number;
  counts: BatchCounts;
  usage: Usage | null;
  ratePerSecond: number | null;
  expectedEndAt: string | null;
  error: JobError | null;
  completedAt: string | null;
}

/** The body of a batch's webhook. */
export interface BatchWebhookEvent {
  event: BatchEventType;
  timestamp: string;
  data: BatchOutcome;
}

/** The job was cancelled. Terminal. */
export interface CancelledEvent {
  type: "cancelled";
  status: "cancelled";
  usage: Usage | null;
  /** Of the UTF-8 bytes of the text so far on the channel `content`, in hexadecimal digits. */
  sha256: string;
}

/** Which of the two texts of an answer a piece belongs to. */
export type Channel = "content" | "reasoning";

/**
 * A piece of the answer. `index` counts frames of this connection, `tokenCount` the deltas of the epoch so far, or its
 * tokens where the model's server counts them as it goes.
 */
export interface ChunkEvent {
  type: "chunk";
  content: string;
  channel: Channel;
  /** From 0. */
  index: number;
  tokenCount: number;
}

/** The function that the model calls, and with what arguments. */
export interface FunctionCall {
  name: string;
  /** JSON as text, as the model wrote it, or an object. */
  arguments: string | Record<string, any>;
}

/** One call of a tool by the model; streamed pieces are merged by `index`. */
export interface ToolCall {
  /** The id that the tool's answer gives as `tool_call_id`. */
  id: string;
  type: string;
  function: FunctionCall;
  /** The number of the call within the answer, from 0. */
  index: number;
}

/** The answer is complete, or as long as a limit allows. Terminal. */
export interface CompleteEvent {
  type: "complete";
  status: "completed" | "incomplete";
  /** Of prompts and answers, over all attempts. */
  totalTokens: number | null;
  usage: Usage | null;
  /** Why the model stopped, in Mistral's words. */
  finishReason: string | null;
  toolCalls: ToolCall[] | null;
  /** Of the UTF-8 bytes of the text on the channel `content`, in hexadecimal digits. */
  sha256: string;
}

/** The events that a webhook may subscribe to: one for each terminal status of a job. */
export type WebhookEventType = "chat.completed" | "chat.failed" | "chat.cancelled" | "chat.incomplete";

/** One POST of a delivery. `response` holds the first kilobyte of the answer. */
export interface DeliveryTry {
  /** From 1; 0 stands for a delivery that failed without a POST, because its endpoint is disabled. */
  number: number;
  startedAt: string;
  /** null if there was no response. */
  statusCode: number | null;
  /** Milliseconds from the beginning of the POST to the end of the response, or to the error. */
  latencyMs: number;
  /** Why there is no usable response. */
  error: string | null;
  response: string | null;
}

/** The promise to hand one event to one URL. `id` is the `webhook-id` header of every try. */
export interface Delivery {
  id: string;
  event: WebhookEventType;
  url: string;
  status: "pending" | "delivered" | "failed";
  createdAt: string;
  /** null if no try is planned. */
  nextTryAt: string | null;
  deliveredAt: string | null;
  /** Oldest first. */
  tries: DeliveryTry[];
}

/**
 * The health of deliveries to one URL. `failures` and `successes` count tries. A URL that fails for five days without
 * one success, or answers 410, is disabled: `disabledReason` is `failing` or `gone`. Deliveries to it fail at once,
 * with `endpoint_disabled`, until it is enabled by hand.
 */
export interface Endpoint {
  url: string;
  status: "ok" | "failing" | "disabled";
  failingSince: string | null;
  failures: number;
  successes: number;
  lastSuccessAt: string | null;
  lastFailureAt: string | null;
  lastError: string | null;
  disabledAt: string | null;
  disabledReason: string | null;
  /** What it gets of all jobs and batches; null: it is the URL of single jobs only. */
  events: (WebhookEventType | BatchEventType)[] | null;
  /** Whether it has a secret of its own, which is never shown. */
  ownSecret: boolean;
}

/** Endpoints: the disabled ones first, then those that fail. */
export interface EndpointList {
  endpoints: Endpoint[];
}

/** The job has failed. Terminal; the fields are those of `JobError`. */
export interface ErrorEvent {
  type: "error";
  code: string;
  message: string;
  retryable: boolean;
  cause?: ErrorCause | null;
}

/** The events of the feed. The terminal ones have the names of the webhooks. */
export type FeedEventType = "chat.created" | "chat.started" | "chat.completed" | "chat.failed" | "chat.cancelled" | "chat.incomplete";

/**
 * Something that happened to a job. `id` is the place in the feed: give it to go on after this event. Fields other
 * than `status` and `errorCode` are those of the job as it is when the event is read.
 */
export interface FeedEvent {
  id: string;
  event: FeedEventType;
  /** When it happened, by the clock of the process that did it; events are in the order of their ids. */
  timestamp: string;
  jobId: string;
  requestId: string;
  /** The status that the event gave the job. */
  status: JobStatus;
  model: string;
  metadata: Record<string, string>;
  /** Counts the job's outcomes: one more each time that it goes on after its end. */
  revision: number;
  batchId?: string | null;
  replayOf?: string | null;
  scheduleId?: string | null;
  /** Of a job that goes on with a conversation, or is a branch of one: the id of the conversation's first job. */
  thread?: string | null;
  /** Of a failed job: the code of its error. */
  errorCode?: string | null;
}

/** A part of an answer that is not text (a reference, an image), and its position in the text. */
export interface PlacedPart {
  /** Characters of the answer, over both channels, before the part. */
  position: number;
  part: Record<string, any>;
}

/**
 * A stretch of an answer's text that one attempt wrote. `seam` says how surely it goes on from the text before it.
 * `confirmed`: the server repeated the text that it was given before it went on, so that it has continued exactly this
 * text. `unconfirmed`: it went on without repeating. null: the stretch begins the answer.
 */
export interface TextOrigin {
  /** Characters of the answer, over both channels, before the stretch. */
  start: number;
  /** Characters of the answer up to its end. */
  end: number;
  /** The attempt's number. */
  attempt: number;
  model: string;
  seam: "confirmed" | "unconfirmed" | null;
}

/** The place of a job that waits to call the model; `position` 1 is next. */
export interface QueuePlace {
  position: number;
  /** null where nobody can say: somebody has paused it, or it waits for the end of other calls (`at_once`). */
  expectedStartAt: string | null;
  reason: "rate_limit" | "at_once" | "paused" | "model_down";
}

/** A job as `GET /api/jobs/{jobId}` shows it. */
export interface Job {
  jobId: string;
  /** The caller's own id of the request, or a UUID. */
  requestId: string;
  status: JobStatus;
  model: string;
  createdAt: string;
  /** `startAt` of the request: the model is not called before. */
  startAt?: string | null;
  /** The beginning of the first attempt. */
  startedAt: string | null;
  /** The time of the terminal status, whichever it is. */
  completedAt: string | null;
  content: string | null;
  /** The model's thinking. */
  reasoning: string | null;
  toolCalls: ToolCall[] | null;
  /** Why the model stopped, in Mistral's words, such as `stop`, `length` or `tool_calls`. */
  finishReason: string | null;
  /** The sum over all attempts. */
  usage: Usage | null;
  /** Whether a part of `usage` is an estimate. */
  usageEstimated: boolean;
  /** There if `status` is `failed`. */
  error: JobError | null;
  /** 1, and one more for each time the text so far was dropped and the answer started over. */
  epoch: number;
  /** Characters of the answer so far, over both channels. */
  position: number;
  /** In hexadecimal digits; null while the job runs. */
  sha256: string | null;
  metadata: Record<string, string>;
  /** The id of the job that this one replays. */
  replayOf: string | null;
  /** The id of the job whose answer this one's conversation goes on from. */
  previousJobId: string | null;
  /**
   * The id of the first job of the conversation, this one's own if it is the first. A replay is in the thread of the
   * job that it replays. From GET it is always there.
   */
  thread: string | null;
  batchId: string | null;
  /** The id of the schedule that made the job. */
  scheduleId: string | null;
  /** The URL of the job's workflow in the Temporal UI. */
  temporalUrl: string | null;
  /** When the job's request, texts and deliveries were deleted. */
  deletedAt?: string | null;
  /** The parts of the answer that are not text. */
  contentParts?: PlacedPart[] | null;
  /** Whether the result is over 1 MiB and was left out of Temporal: read `statusUrl`. */
  contentOmitted?: boolean;
  /** The URL of the whole job, where `contentOmitted` is true. */
  statusUrl?: string | null;
  /** Oldest first. */
  attempts: Attempt[];
  deliveries: Delivery[];
  /** Which attempt and which model wrote which part of the text, in order and without gaps. Not in lists. */
  provenance?: TextOrigin[];
  /**
   * Tokens of calls beyond those of one uninterrupted call: of text that was dropped, and of prompts that were sent
   * again. A part is an estimate where `usageEstimated`. Not in lists.
   */
  wastedTokens?: number | null;
  /** The ids of the jobs that replay this one, oldest first. */
  replays: string[];
  /** The first 120 characters of the last user message. That of a new job with images comes after some seconds. */
  preview?: string | null;
  /** The job's place in the queue, while it waits to call the model. */
  queue?: QueuePlace | null;
}

/** The answer to the request for a new job: its id, and the URLs of everything about it. */
export interface JobAccepted {
  jobId: string;
  requestId: string;
  status: JobStatus;
  /** GET shows the job. */
  statusUrl: string;
  /** GET streams its events. */
  eventsUrl: string;
  /** POST cancels it. */
  cancelUrl: string;
  /** The job's workflow in the Temporal UI. */
  temporalUrl: string;
  /** The id of the job that this one replays. */
  replayOf: string | null;
}

/** Jobs without their texts, newest first; `nextCursor` is null on the last page. */
export interface JobPage {
  jobs: Job[];
  /** Opaque; the query parameter `cursor` of the next page. */
  nextCursor: string | null;
}

/** Jobs of one tenant and priority that wait in a lane. */
export interface LaneWaiting {
  tenant: string;
  priority: number;
  count: number;
}

/**
 * A pause: no call of the model starts for the jobs that it concerns. Answers that are being generated go on. Jobs
 * that wait keep their place, and `limits.queueSeconds` goes on.
 */
export interface Pause {
  pauseId: string;
  /** null: all lanes. */
  lane: string | null;
  /** null: all tenants. */
  tenant: string | null;
  reason: string;
  pausedAt: string;
  /** The id of an API key, or `operator`. */
  pausedBy: string;
  /** Whether the caller may end it: an operator may end all pauses, a key those that a key of its tenant began. */
  mayResume: boolean;
}

/**
 * A lane: its limits, and who uses it. With an API key, the counts are those of the key's tenant, and `lastError` is
 * left out.
 */
export interface Lane {
  lane: string;
  /** Calls that may start in a second. */
  perSecond: number;
  /** `perSecond` as an operator set it. */
  setTo: number | null;
  /** `perSecond` as the model's headers say. */
  seen: number | null;
  /** Calls that may run at once; null: any number. */
  atOnce: number | null;
  /** Calls that run. */
  running: number;
  /** Tokens that calls may use in a minute; null: any number. */
  tokensPerMinute: number | null;
  /** `tokensPerMinute` as an operator set it. */
  tokensSetTo: number | null;
  /** `tokensPerMinute` as the model's headers say. */
  tokensSeen: number | null;
  /** Tokens of the last minute, with what is reserved for calls that run; null without a limit, and with an API key. */
  tokensUsed: number | null;
  /** Jobs that wait. */
  waiting: number;
  /** The same by priority and tenant. */
  waitingBy: LaneWaiting[];
  /** The pauses that concern this lane, or all lanes. */
  pauses: Pause[];
  /** The end of a pause that the model asked for. */
  pausedUntil: string | null;
  /** The model fails every call; one job at a time tries it again. */
  down: boolean;
  probesAt: string | null;
  lastError: string | null;
}

/** Lanes, by name. */
export interface LaneList {
  lanes: Lane[];
}

/** Why an item has no answer. */
export interface OutputError {
  code: string;
  message: string;
}

/** The answer of an item, as a server's response to its request. */
export interface OutputResponse {
  status_code: number;
  /** A chat completion object (Mistral's API reference, `ChatCompletionResponse`). */
  body: any;
}

/** A line of a batch's output or errors. `id` is the id of the item's job. */
export interface OutputLine {
  id: string;
  custom_id: string;
  response: OutputResponse | null;
  error: OutputError | null;
}

/** The pauses that concern the caller's jobs, oldest first. */
export interface PauseList {
  pauses: Pause[];
}

/** The job waits to call the model. It has no id, since it is no part of the answer. */
export interface QueuedEvent {
  type: "queued";
  /** The job's place in the queue; 1 is next. */
  position: number;
  /** null where nobody can say: somebody has paused it, or it waits for the end of other calls (`at_once`). */
  expectedStartAt: string | null;
  reason: "rate_limit" | "at_once" | "paused" | "model_down";
}

/** The number of deliveries that are made again. `more`: there are others; ask again. */
export interface Redelivering {
  count: number;
  more: boolean;
}

/** The answer to a dry run: what a replay with this filter would do now. */
export interface ReplayEstimate {
  /** Jobs that would be replayed. */
  count: number;
  /** Jobs of the filter that cannot be: they were deleted, or their request was not kept. */
  skipped: number;
  /** The tokens of their first runs; one that used none counts as the mean of the others. null: all used none. */
  estimatedTokens: number | null;
  /** The first ones, in the order of the replay: the oldest first. */
  firstJobIds: string[];
}

/** The text so far is void: the answer starts over. */
export interface ResetEvent {
  type: "reset";
  /** The number of the attempt that starts over, from 1. */
  attempt: number;
  /** A stable word for why. */
  reason: string;
}

/** A job or a batch that a schedule has made: it has the id of one of them. */
export interface ScheduleRun {
  jobId: string | null;
  batchId: string | null;
  status: JobStatus | BatchStatus;
  createdAt: string;
  completedAt: string | null;
}

/** A schedule as it is stored. `pending`: Temporal does not have its newest state yet, and gets it. */
export interface Schedule {
  cron: string | null;
  every: number | null;
  timezone: string;
  overlap: "skip" | "buffer_one" | "buffer_all" | "cancel_other" | "terminate_other" | "allow_all";
  /** A run that an outage kept from its time is made up for if it is not later than this. */
  catchupSeconds: number;
  id: string;
  /** What each run asks; left out in lists. */
  request: Record<string, any> | null;
  /** The same for batches. */
  batch: Record<string, any> | null;
  paused: boolean;
  note: string | null;
  createdAt: string;
  updatedAt: string;
  /** The next times of runs, as Temporal has named them; none while it is paused. */
  nextRuns: string[];
  /** Its newest jobs, or batches, newest first. */
  lastRuns: ScheduleRun[];
  pending: boolean;
  temporalUrl: string | null;
}

/** A page of schedules, by their ids. `next_cursor` is for `cursor` of the next page; null: this is the last. */
export interface SchedulePage {
  schedules: Schedule[];
  nextCursor: string | null;
}

/** The job's first attempt has begun. It comes once, also over several connections. */
export interface StartEvent {
  type: "start";
  jobId: string;
  requestId: string;
  model: string;
  /** The number of the attempt that runs, from 1. */
  attempt: number;
  /** The beginning of the job's first attempt. */
  timestamp: string;
}

/** For `?token=` of the job's event stream. It is checked when connecting, not afterwards. */
export interface StreamToken {
  token: string;
  expiresAt: string;
}

/** The job in a webhook's body. `content` is left out (`contentOmitted`) over 64 KiB. */
export interface WebhookData {
  jobId: string;
  requestId: string;
  status: JobStatus;
  model: string;
  /** The answer; partial if the job failed or was cancelled. */
  content?: string | null;
  toolCalls: ToolCall[] | null;
  /** Why the model stopped, in Mistral's words. */
  finishReason: string | null;
  usage: Usage | null;
  error: JobError | null;
  /** The time of the terminal status, whichever it is. */
  completedAt: string;
  /** Of the UTF-8 bytes of the answer, in hexadecimal digits. */
  sha256: string;
  metadata: Record<string, string>;
  /** The URL of the whole job. */
  statusUrl: string;
  contentOmitted?: boolean;
}

/** The event of a test call, which checks that a receiver works. It cannot be subscribed to. */
export type WebhookTestEvent = "webhook.test";

/** The body of a webhook. `webhook.test` announces nothing: its data are an example. */
export interface WebhookEvent {
  event: WebhookEventType | WebhookTestEvent;
  timestamp: string;
  data: WebhookData;
}

/**
 * The result of a test call: a status, or an error in its place. `advice`: how to give the secret to libraries that
 * read it in another way.
 */
export interface WebhookTest {
  /** Whether the receiver answered 2xx. */
  delivered: boolean;
  /** null if there was no response. */
  statusCode: number | null;
  /** Milliseconds from the beginning of the call to the end of the response, or to the error. */
  latencyMs: number;
  error: string | null;
  advice?: string | null;
}

/** A document by URL, such as a PDF. */
export interface DocumentUrlPart {
  type?: "document_url";
  document_url: string;
  /** The document's file name. */
  document_name?: string | null;
}

/** A file that was uploaded to Mistral. */
export interface FilePart {
  type?: "file";
  /** Mistral's id of the file. */
  file_id: string;
}

/** The URL of an image, and the detail in which the model reads it. */
export interface ImageUrl {
  /** An http or https URL, or a `data:` URL with base64. */
  url: string;
  /** `low`, `auto` or `high`. */
  detail?: string | null;
}

/** An image by URL or as a `data:` URL with base64. */
export interface ImageUrlPart {
  type?: "image_url";
  image_url: string | ImageUrl;
}

/** Audio as base64 or by URL. */
export interface AudioPart {
  type?: "input_audio";
  input_audio: string;
}

/** A citation of sources that an earlier message gave. */
export interface ReferencePart {
  type?: "reference";
  reference_ids: (number | string)[];
}

/** A piece of text. */
export interface TextPart {
  type?: "text";
  text: string;
}

/** The content of a resource, such as one that a connector returned. */
export interface ResourcePart {
  type?: "resource";
  uri: string;
  content: TextPart | ImageUrlPart;
}

/** A link to a resource, without its content. */
export interface ResourceLinkPart {
  type?: "resource_link";
  uri: string;
  metadata?: Record<string, any> | null;
}

/** A source that a tool found, such as a result of a web search. */
export interface ToolReferencePart {
  type?: "tool_reference";
  /** The name of the tool. */
  tool: string;
  title: string;
  url?: string | null;
  /** The URL of the source's icon. */
  favicon?: string | null;
  description?: string | null;
}

/** Reasoning from an earlier turn, given back to the model. */
export interface ThinkingPart {
  type?: "thinking";
  thinking: (TextPart | ReferencePart | ToolReferencePart)[];
  /** Mistral's signature of the reasoning, given back as it came. */
  signature?: string | null;
  /** Whether the reasoning is complete; only used in a prefix. */
  closed?: boolean | null;
}

/** The function that the model calls, and with what arguments. */
export interface FunctionCallInput {
  name: string;
  /** JSON as text, as the model wrote it, or an object. */
  arguments: string | Record<string, any>;
}

/** One call of a tool by the model; streamed pieces are merged by `index`. */
export interface ToolCallInput {
  /** The id that the tool's answer gives as `tool_call_id`. */
  id?: string;
  type?: string;
  function: FunctionCallInput;
  /** The number of the call within the answer, from 0. */
  index?: number;
}

/** A message of the model. `prefix=True` on the last message makes the model go on from its text. */
export interface AssistantMessage {
  role?: "assistant";
  content?: string | (TextPart | ImageUrlPart | DocumentUrlPart | ReferencePart | FilePart | AudioPart | ResourcePart | ResourceLinkPart | ThinkingPart)[] | null;
  tool_calls?: ToolCallInput[] | null;
  prefix?: boolean;
}

/**
 * The pause after a failure, in milliseconds: `fixed` is always `delay`, `exponential` doubles it each time. Up to a
 * fifth is added at random, so that jobs that failed together do not call again together. `exponential` grows to 30 s,
 * or to `delay` where that is longer. A longer `Retry-After` of the server is obeyed, up to 5 min.
 */
export interface Backoff {
  type?: "exponential" | "fixed";
  delay?: number;
}

/**
 * One item of a batch, as a line of Mistral's or OpenAI's batch files has it. Without `custom_id`, the item's number
 * from 0 is its name, as at Mistral.
 */
export interface BatchItem {
  custom_id?: string | null;
  /** A request as `POST /api/jobs` takes it; fields that it lacks are taken from the batch's `defaults`. */
  body: Record<string, any>;
  method?: "POST" | null;
  url?: "/v1/chat/completions" | null;
}

/** The URL that a batch's end is delivered to, and the outcomes that are delivered (all, unless given). */
export interface BatchWebhook {
  url: string;
  events?: BatchEventType[];
}

/** The body of `POST /api/batches` as `application/json`. */
export interface BatchRequest {
  name?: string | null;
  webhook?: BatchWebhook | null;
  /** Most items that run at once, over all workers; null is as many as the workers have places for. */
  concurrency?: number | null;
  /** `live`: calls of the model as for every job. `batch`: Mistral's batch API, at half the price. */
  lane?: "live" | "batch";
  /** Only with the lane `batch`: what is not done shortly before is called live. */
  deadline?: string | null;
  /** Fields of a request for items that do not have them. */
  defaults?: Record<string, any>;
  /** At least one. */
  items: BatchItem[];
}

/** Instructions to the model. */
export interface SystemMessage {
  role?: "system";
  content: string | (TextPart | ImageUrlPart | DocumentUrlPart | ReferencePart | FilePart | AudioPart | ResourcePart | ResourceLinkPart | ThinkingPart)[];
}

/** The answer of a tool that the model called. */
export interface ToolMessage {
  role?: "tool";
  content?: string | (TextPart | ImageUrlPart | DocumentUrlPart | ReferencePart | FilePart | AudioPart | ResourcePart | ResourceLinkPart | ThinkingPart)[] | null;
  /** The `id` of the call that this answers. */
  tool_call_id?: string | null;
  /** The name of the function that was called. */
  name?: string | null;
}

/** A message of the user. */
export interface UserMessage {
  role?: "user";
  content: string | (TextPart | ImageUrlPart | DocumentUrlPart | ReferencePart | FilePart | AudioPart | ResourcePart | ResourceLinkPart | ThinkingPart)[];
}

/** The JSON schema that the answer must match. */
export interface JsonSchema {
  name: string;
  schema: Record<string, any>;
  description?: string | null;
  /** Whether the model is held to the schema. */
  strict?: boolean | null;
}

/** The form of the answer: text, any JSON object, or JSON that matches a schema (at most 64 KiB). */
export interface ResponseFormat {
  type?: "text" | "json_object" | "json_schema";
  /** Required where `type` is `json_schema`. */
  json_schema?: JsonSchema | null;
}

/** A tool that runs at Mistral, such as web search or image generation. */
export interface HostedTool {
  type: "image_generation" | "document_library" | "connector" | "web_search" | "code_interpreter";
  [further: string]: any;
}

/** A function of the caller's that the model may call. */
export interface Function {
  name: string;
  /** The JSON schema of the arguments. */
  parameters: Record<string, any>;
  description?: string | null;
  /** Whether the arguments must match the schema. */
  strict?: boolean | null;
}

/** A tool that is a function of the caller's. */
export interface FunctionTool {
  type?: "function";
  function: Function;
}

/** The name of a function among the request's tools. */
export interface FunctionName {
  name: string;
}

/** The one function that the model must call. */
export interface ToolChoice {
  type?: "function";
  function: FunctionName;
}

/** A text that the answer is expected to resemble, which lets the model answer faster. */
export interface Prediction {
  type?: "content";
  content?: string;
}

/**
 * The URL that the outcome is delivered to, and the outcomes that are delivered (all, unless given). `format`: the
 * form of the body. `openai` is the event of a response as OpenAI sends it, such as `response.completed`, with the
 * response's id.
 */
export interface Webhook {
  url: string;
  events?: WebhookEventType[];
  format?: "chatjobs" | "openai";
}

/**
 * Time limits of one job, in seconds, and bounds on what its attempts may cost. `stallSeconds` is the longest silence
 * within an answer: its default ends a call of a dead server, not of a slow one. `maxLost` is how many times in a row
 * a worker may die with this job without adding a character; then the job fails with `worker_lost` and keeps its text.
 * `maxTotalTokens` counts prompts and answers of every call, estimated where Mistral did not report them. Once it is
 * reached the job fails with `max_total_tokens` and keeps its text; no call asks the model for more than is left.
 */
export interface Limits {
  /** From acceptance to the first call of the model. */
  queueSeconds?: number;
  /** From the beginning of a call to the first piece of its answer. */
  firstTokenSeconds?: number;
  /** Between two pieces of an answer. */
  stallSeconds?: number;
  /** From the beginning of the first attempt to the end of the answer, over all attempts. */
  totalSeconds?: number;
  /** In tokens; null is no bound. */
  maxTotalTokens?: number | null;
  maxLost?: number;
  /** How long the model may fail, or refuse calls for their rate, before the next of `fallbackModels` goes on. */
  fallbackSeconds?: number;
}

/**
 * How often a job's call may fail. Only real failures count: a 429, a deploy or the death of a worker does not.
 * `attempts` is the number of calls that may fail at the same position of the answer. After an interruption that
 * brought new text the count begins again at one, up to 10 × (`attempts` - 1) failures in all.
 */
export interface Retry {
  attempts?: number;
  backoff?: Backoff;
}

/**
 * The request for one chat job: Mistral's chat-completion parameters under their own names, and the service's own.
 * Only `messages` is required. `stream` is accepted and ignored: a job always streams. `metadata` is not forwarded.
 * `onInterrupt` is what happens to an answer whose attempt ended in the middle: it continues after its last character,
 * starts over (a `reset` for readers), or the job fails with `interrupted` and keeps its text; what cannot continue
 * (tools, another response format, an unfinished thought, blank text) starts over. With `maxSegments` > 1 an answer
 * that stopped at `max_tokens` continues in another call, up to so many; `max_tokens` is the limit of each segment, so
 * that the whole may have `max_tokens` × `maxSegments`. Source of the parameters: Mistral's API reference, POST
 * /v1/chat/completions.
 */
export interface ChatRequest {
  /** The conversation, oldest first, at most `MAX_TEXT_CHARACTERS` characters together. */
  messages: (SystemMessage | UserMessage | AssistantMessage | ToolMessage)[];
  model?: string;
  /** Randomness of the sampling; 0 is the least. */
  temperature?: number | null;
  /** Nucleus sampling: only the likeliest tokens with this probability together are considered. */
  top_p?: number | null;
  /** Only so many of the likeliest tokens are considered. */
  top_k?: number | null;
  /** Most tokens of the answer, or of each of its segments. */
  max_tokens?: number | null;
  /** Fewest tokens of the answer. */
  min_tokens?: number | null;
  /** Ignored: a job always streams. */
  stream?: boolean | null;
  /** The texts before which the answer ends. */
  stop?: string | string[] | null;
  /** The seed of the sampling; calls with the same seed give the same answer. */
  random_seed?: number | null;
  response_format?: ResponseFormat | null;
  /** The tools that the model may use; no two functions have the same name. */
  tools?: (FunctionTool | HostedTool)[] | null;
  /** Whether the model must call a tool: `any` and `required` are the same. */
  tool_choice?: "auto" | "none" | "any" | "required" | ToolChoice | null;
  /** Penalty for a word that the answer already has. */
  presence_penalty?: number | null;
  /** Penalty for a word that grows with its number in the answer. */
  frequency_penalty?: number | null;
  repetition_penalty?: number | null;
  /** Whether the answer has the log probabilities of its tokens. */
  logprobs?: boolean | null;
  /** Number of alternatives per token of the answer. */
  top_logprobs?: number | null;
  /** Whether the answer has the log probabilities of the prompt's tokens. */
  prompt_logprobs?: boolean | null;
  /** Number of alternatives per token of the prompt. */
  top_prompt_logprobs?: number | null;
  /** Number of answers: a job has one. */
  n?: 1 | null;
  prediction?: Prediction | null;
  /** Whether the model may call several tools at once. */
  parallel_tool_calls?: boolean | null;
  /** How long the model reasons, in Mistral's words, such as `high` or `none`. */
  reasoning_effort?: string | null;
  /** `reasoning`: Mistral adds its system prompt for reasoning models. */
  prompt_mode?: "reasoning" | null;
  /** Moderation rules that Mistral applies. */
  guardrails?: Record<string, any>[] | null;
  /** A key of Mistral's prompt cache, for requests with a common beginning. */
  prompt_cache_key?: string | null;
  /** Whether Mistral may use priority capacity. */
  service_tier?: "auto" | "standard_only" | null;
  /** Whether Mistral adds its safety prompt before the conversation. */
  safe_prompt?: boolean | null;
  /** The caller's own id of the request; null gets a new UUID. */
  id?: string | null;
  /** The id of the new job; null gets one from the service. An id that is taken is refused. */
  jobId?: string | null;
  /**
   * The id of a job that has ended: its messages and its answer precede `messages`, and are stored with them. A system
   * message at the beginning of `messages` takes the place of the one before. No other field is taken over.
   */
  previousJobId?: string | null;
  /**
   * The models that take over, in this order, where `model` does not exist, is down, or fails or refuses calls for
   * their rate for longer than `limits.fallbackSeconds`. The next one continues the same answer, as after any other
   * interruption; with tools, and for JSON, it starts over. Each model keeps to its own rate limits.
   */
  fallbackModels?: string[];
  /** Short for `webhook.url`, with all events. */
  callback?: string | null;
  webhook?: Webhook | null;
  metadata?: Record<string, string>;
  onInterrupt?: "continue" | "restart" | "fail";
  /** Most calls that one answer may take because each stopped at `max_tokens`. */
  maxSegments?: number;
  limits?: Limits;
  retry?: Retry;
  /** 1 goes first. Within one priority, tenants take turns. */
  priority?: number;
  /**
   * Further parameters for the model's server, forwarded as they are: those that this version does not know. At most
   * `MAX_EXTRA`, and `MAX_EXTRA_BYTES` together; none may have the name of another field.
   */
  extra?: Record<string, any>;
  /**
   * The model is not called before this time, at most 90 days ahead; a past time is at once. Until then the job is
   * `queued`, and `limits.queueSeconds` counts from then. A replay does not repeat it.
   */
  startAt?: string | null;
}

/** The jobs that a replay asks for again: those that have ended, and match all that is given. */
export interface ReplayFilterInput {
  /** A terminal one. */
  status?: JobStatus | null;
  errorCode?: string | null;
  model?: string | null;
  /** All of these pairs. */
  metadata?: Record<string, string>;
  /** Accepted at this time or later. */
  since?: string | null;
  /** Accepted before this time. */
  until?: string | null;
  batchId?: string | null;
}

/** What happens at the time of a run while an earlier one has not ended. */
export type ScheduleOverlap = "skip" | "buffer_one" | "buffer_all" | "cancel_other" | "terminate_other" | "allow_all";

/** One message of a conversation; `role` says which. */
export type Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage;

/** Any event of a job's stream; `type` says which. */
export type StreamEvent =
  | QueuedEvent
  | StartEvent
  | ChunkEvent
  | ResetEvent
  | CompleteEvent
  | ErrorEvent
  | CancelledEvent;
