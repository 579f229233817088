// Runs calls of the JavaScript client for tests: a case per line of stdin, its outcomes as a line of stdout, both JSON.
//
// A case: {"url", "options", "calls": [{"do", "args", "options"}]}; times are in seconds, as for the Python client.
import { createInterface } from "node:readline";
import * as chatjobs from "../../clients/typescript/src/index.js";

const TIMES = new Set(["timeout", "patience", "silence", "tolerance"]);
const OURS = {
  api_key: "apiKey",
  idempotency_key: "idempotencyKey",
  idempotency_prefix: "idempotencyPrefix",
  last_event_id: "lastEventId",
  max_event_bytes: "maxEventBytes",
  max_response_bytes: "maxResponseBytes",
  max_error_rate: "maxErrorRate",
  page_size: "pageSize",
  catchup_seconds: "catchupSeconds",
  error_code: "errorCode",
  replay_of: "replayOf",
};
const camel = (name) => name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());

const optionsOf = (given) =>
  Object.fromEntries(
    Object.entries(given).map(([name, value]) => [OURS[name] ?? name, TIMES.has(name) ? value * 1000 : value]),
  );

const errorOf = (error) => ({
  name: error.name,
  code: error instanceof chatjobs.ChatJobsError ? error.code : null,
  message: error.message,
  status: error.status ?? null,
  reason: error.reason ?? null,
  retry_after: error.retryAfter == null ? null : error.retryAfter / 1000,
  problems: error.problems?.map(({ pointer, message }) => [pointer, message]) ?? null,
  retryable: error.retryable ?? null,
  cause: error instanceof chatjobs.JobFailed ? error.cause : null,
});

async function listed(values) {
  const found = [];
  try {
    for await (const value of values) found.push(plain(value));
    return { values: found, ...lastId(values) };
  } catch (error) {
    return { values: found, ...lastId(values), error: errorOf(error) };
  }
}

const lastId = (values) => (values.lastEventId === undefined ? {} : { last_event_id: values.lastEventId });

/** An outcome of `map` has an error. */
const plain = (value) =>
  value?.index !== undefined && value.error instanceof Error
    ? { index: value.index, job: value.job, error: errorOf(value.error) }
    : value?.index !== undefined && "job" in value
      ? { index: value.index, job: value.job, error: null }
      : value;

async function outcome(jobs, call) {
  try {
    if (call.do === "verify") return { value: await verified(call) };
    const path = call.do.split(".").map(camel);
    const method = path.pop();
    const owner = path.reduce((found, name) => found[name], jobs);
    const found = owner[method](...call.args, ...(call.options ? [optionsOf(call.options)] : []));
    return Symbol.asyncIterator in found ? await listed(found) : { value: (await found) ?? null };
  } catch (error) {
    return { error: errorOf(error) };
  }
}

async function verified({ args: [body, headers, secrets], options: { now, any, legacy, ...options } }) {
  const bytes = Buffer.from(body, "base64");
  if (legacy) return chatjobs.verifyLegacyWebhook(bytes, headers, secrets);
  const verify = any ? chatjobs.verifyAnyWebhook : chatjobs.verifyWebhook;
  return verify(bytes, headers, secrets, { now: new Date(now), ...optionsOf(options) });
}

for await (const line of createInterface({ input: process.stdin })) {
  const { url, options, calls } = JSON.parse(line);
  const outcomes = [];
  try {
    const jobs = new chatjobs.ChatJobs(url, { backoff: (failures) => 10 * failures, ...optionsOf(options) });
    for (const call of calls) outcomes.push(await outcome(jobs, call));
  } catch (error) {
    outcomes.push({ error: errorOf(error) });
  }
  process.stdout.write(`${JSON.stringify(outcomes)}\n`);
}
