// Uses every name of the client, for TypeScript's checks (tests/clients/test_typescript.py). It is not run.
import {
  ApiError,
  BatchFinished,
  BatchNotFound,
  ChatJobs,
  ChatJobsError,
  ConfigurationError,
  ContentDeleted,
  DeliveryNotFound,
  EndpointNotFound,
  EventsExpired,
  IdempotencyMismatch,
  InvalidRequest,
  InvalidSecret,
  InvalidSignature,
  JobFailed,
  JobFinished,
  JobIdConflict,
  JobNotFound,
  JobRunning,
  JobWatch,
  NothingToResume,
  PauseNotFound,
  ResponseTooLarge,
  ScheduleNotFound,
  ServiceUnavailable,
  Stream,
  StreamBroken,
  TooManyEndpoints,
  Unauthorized,
  WebhookError,
  WebhookUrlRefused,
  verifyAnyWebhook,
  verifyLegacyWebhook,
  verifyWebhook,
} from "chatjobs";
import type {
  Backoff,
  BatchOptions,
  ChatFields,
  ClientOptions,
  FeedEvent,
  Item,
  Job,
  JobEventMap,
  JobFilter,
  Message,
  Outcome,
  Progress,
  Prompt,
  StreamEvent,
  TerminalEvent,
  WebhookHeaders,
} from "chatjobs";

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const exactly = <A, B>(same: Same<A, B>) => same;

const backoff: Backoff = (failures) => 10 * failures;
const clientOptions: ClientOptions = {
  apiKey: null,
  timeout: 60_000,
  patience: 300_000,
  silence: 45_000,
  maxResponseBytes: 1,
  maxEventBytes: 1,
  fetch: globalThis.fetch,
  backoff,
};
const jobs = new ChatJobs("http://127.0.0.1:8000", clientOptions);
const { signal } = new AbortController();

export async function one(): Promise<string> {
  const messages: Message[] = [{ role: "user", content: [{ type: "text", text: "Hi" }] }];
  const prompt: Prompt = messages;
  const fields: ChatFields = { model: "mistral-small-latest", max_tokens: 5, startAt: new Date(), limits: { maxLost: 3 } };
  const accepted = await jobs.submit(prompt, { ...fields, idempotencyKey: "k", signal });
  const jobId: string = accepted.jobId;
  await jobs.reply(jobId, "And at night?", { max_tokens: 5, signal });
  // @ts-expect-error -- a field of this name does not exist
  await jobs.submit("Hi", { maxTokens: 5 });
  // @ts-expect-error -- an unknown role
  await jobs.submit([{ role: "robot", content: "Hi" }]);
  const job: Job = await jobs.get(jobId);
  exactly<Job["status"], "queued" | "in_progress" | "completed" | "failed" | "cancelled" | "incomplete">(true);
  exactly<Job["content"], string | null>(true);
  exactly<Job["startAt"], string | null | undefined>(true);
  await jobs.request(jobId);
  await jobs.wait(jobId, { timeout: 1000, signal });
  await jobs.ask({ messages, model: "m" }, { timeout: 1000 });
  await jobs.cancel(jobId);
  await jobs.delete(jobId);
  await jobs.replay(jobId, { model: "m", max_tokens: null, idempotencyKey: "k" });
  await jobs.resume(jobId);
  const deliveries = await jobs.deliveries(jobId);
  const count: number = await jobs.redeliver(jobId, deliveries[0].id);
  return `${job.content}${count}${await jobs.answer(jobId, { token: "t" })}`;
}

export async function streams(jobId: string): Promise<TerminalEvent | null> {
  const { token, expiresAt } = await jobs.streamToken(jobId);
  const stream: Stream<StreamEvent> = jobs.stream(jobId, { lastEventId: "1.2", timeout: 1, signal, token, onConnection: (connected: boolean) => console.log(connected) });
  for await (const event of stream) {
    switch (event.type) {
      case "queued":
        exactly<typeof event.position, number>(true);
        break;
      case "start":
        console.log(event.model);
        break;
      case "chunk":
        exactly<typeof event.channel, "content" | "reasoning">(true);
        exactly<typeof event.tokenCount, number>(true);
        // @ts-expect-error -- of an error
        console.log(event.code);
        break;
      case "reset":
        console.log(event.reason);
        break;
      case "complete":
        console.log(event.usage?.total_tokens, event.toolCalls?.[0].function.name);
        break;
      case "error":
        console.log(event.code, event.cause?.code);
        break;
      case "cancelled":
        console.log(event.sha256);
        break;
      default:
        exactly<typeof event, never>(true);
    }
  }
  console.log(stream.lastEventId, expiresAt);
  stream.close();
  jobs.stream(jobId, { token: async () => (await jobs.streamToken(jobId)).token });
  const watch: JobWatch = jobs.watch(jobId, { signal });
  const handler = (event: JobEventMap["chat:chunk"]) => console.log(event.content);
  watch.on("chat:chunk", handler).once("chat:complete", ({ finishReason }) => finishReason).off("chat:chunk", handler);
  // @ts-expect-error -- there is no event of this name
  watch.on("chat:chunks", handler);
  const run = jobs.chat("Hi", { model: "m", timeout: 5 });
  await run.cancel();
  run.close();
  return run.finished;
}

export async function many(): Promise<void> {
  const progress = ({ done, failed, total }: Progress) => console.log(done, failed, total);
  async function* prompts() {
    yield "a";
  }
  for await (const outcome of jobs.map(prompts(), { concurrency: 2, onProgress: progress, idempotencyPrefix: "p" })) {
    const { index, job, error, content }: Outcome = outcome;
    console.log(index, job?.jobId, error?.code, content);
  }
  const filter: JobFilter = { status: "failed", metadata: { a: "b" }, since: new Date(), errorCode: "c" };
  for await (const job of jobs.list({ ...filter, search: "x", thread: "t", pageSize: 2 })) console.log(job.preview);
  const page = await jobs.page({ ...filter, limit: 2 });
  const older: (string | null)[] = [(await jobs.page({ ...filter, cursor: page.nextCursor })).nextCursor];
  older.push((await jobs.batches.page({ limit: 2 })).nextCursor, (await jobs.schedules.page({ limit: 2 })).nextCursor);
  const replay = await jobs.replayAll({ status: "failed", since: new Date(), canary: 3, overrides: { model: "m" } });
  console.log(replay.phase, (await jobs.estimateReplay({ errorCode: "c" })).firstJobIds);
  const { count, more } = await jobs.redeliverAll(new Date(), { status: "failed", until: "2026-01-02T03:04:05Z" });
  console.log(count, more, (await jobs.testWebhook("http://x/")).delivered);
  const [endpoint] = await jobs.endpoints();
  await jobs.enableEndpoint(endpoint.url);
  await jobs.addEndpoint("http://x/", { events: ["chat.completed", "batch.failed"], secret: "whsec_c2VjcmV0" });
  await jobs.deleteEndpoint("http://x/");
  const feed: Stream<FeedEvent> = jobs.listen({ after: 0, types: ["chat.completed"], signal });
  for await (const { id, event, jobId } of feed) console.log(id, event, jobId);
  // @ts-expect-error -- there is no event of this name
  jobs.listen({ types: ["chat.done"] });
  const [lane] = await jobs.lanes();
  const pause = await jobs.pause({ lane: lane.lane, reason: "why" });
  console.log(await jobs.pauses());
  await jobs.endPause(pause.pauseId);
}

export async function batches(file: Blob, bytes: ReadableStream<Uint8Array>, out: WritableStream<Uint8Array>): Promise<void> {
  const items: Item[] = ["a", ["name", "b"], { custom_id: "c", body: { messages: [{ role: "user", content: "c" }] } }];
  const options: BatchOptions = { name: "n", webhook: "http://x/", lane: "batch", deadline: new Date(), defaults: { model: "m" } };
  const { batchId } = await jobs.batches.submit(items, options);
  await jobs.batches.submit(file);
  await jobs.batches.submit(bytes);
  // @ts-expect-error -- one item is not several
  await jobs.batches.submit({ messages: [] });
  for await (const batch of jobs.batches.list({ status: "paused", since: new Date() })) console.log(batch.counts.total);
  for await (const state of jobs.batches.watch(batchId)) console.log(state.counts.completed);
  for await (const line of jobs.batches.output(batchId)) console.log(line.custom_id, line.response?.body);
  for await (const line of jobs.batches.errors(batchId)) console.log(line.error?.code);
  const lines: number = await jobs.batches.download(batchId, out, { errors: true });
  exactly<Awaited<ReturnType<typeof jobs.batches.pause>>, "queued" | "in_progress" | "paused" | "completed" | "cancelled" | "failed">(true);
  await jobs.batches.pause(batchId);
  await jobs.batches.resume(batchId);
  await jobs.batches.cancel(batchId);
  console.log(lines, (await jobs.batches.wait(batchId)).usage, (await jobs.batches.get(batchId)).name);
}

export async function schedules(): Promise<void> {
  const request = { messages: [{ role: "user" as const, content: "Hi" }] };
  const schedule = await jobs.schedules.create(request, { id: "s", cron: "@daily", timezone: "Europe/Paris", overlap: "skip" });
  for await (const one of jobs.schedules.list({ pageSize: 5 })) console.log(one.nextRuns[0]);
  await jobs.schedules.get(schedule.id);
  await jobs.schedules.pause(schedule.id, { note: "why" });
  await jobs.schedules.resume(schedule.id);
  await jobs.schedules.trigger(schedule.id);
  await jobs.schedules.delete(schedule.id);
}

export async function webhook(body: Uint8Array, headers: WebhookHeaders): Promise<string> {
  const event = await verifyWebhook(body, headers, ["whsec_x"], { now: new Date(), tolerance: 1000 });
  await verifyLegacyWebhook("text", new Headers(), "secret");
  const any = await verifyAnyWebhook(body, headers, "secret");
  return "batchId" in any.data ? any.data.batchId : `${any.data.jobId}${event.data.content}`;
}

export function told(error: unknown): string {
  if (error instanceof JobFailed) return `${error.reason} ${error.retryable} ${error.cause}`;
  if (error instanceof InvalidRequest) return error.problems.map(({ pointer, message }) => pointer + message).join();
  if (error instanceof ServiceUnavailable) return `${error.status} ${error.reason} ${error.retryAfter}`;
  const kinds = [
    ...[ApiError, BatchFinished, BatchNotFound, ConfigurationError, ContentDeleted, DeliveryNotFound],
    ...[EndpointNotFound, EventsExpired, IdempotencyMismatch, InvalidSecret, InvalidSignature, JobFinished, JobIdConflict],
    ...[JobNotFound, JobRunning, NothingToResume, PauseNotFound, ResponseTooLarge, ScheduleNotFound, StreamBroken],
    ...[TooManyEndpoints, Unauthorized, WebhookError, WebhookUrlRefused],
  ];
  const code: string | undefined = error instanceof ChatJobsError ? error.code : undefined;
  return `${kinds.some((kind) => error instanceof kind)} ${code}`;
}
