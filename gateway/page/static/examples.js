// Example bodies for the forms of the API reference: those that say something, and else the least that a schema takes.

import { schemaOf } from "./openapi.js";

const MOST_DEPTH = 8;
const QUESTION = [{ role: "user", content: "Why is the sky blue?" }];
const ASK = { model: "mistral-small-latest", messages: QUESTION };
const HOOK = { url: "https://you.example/hooks" };
const DAY_MS = 86_400_000;
const yesterday = () => new Date(Date.now() - DAY_MS).toISOString();

/** By operation; functions take the tenant of the session. */
const BODIES = {
  "post /api/jobs": () => ASK,
  "post /api/chat/stream": () => ASK,
  "post /api/batches": () => ({ items: [{ custom_id: "1", body: ASK }], name: "my batch" }),
  "post /api/replays": () => ({ filter: { status: "failed" }, dryRun: true }),
  "post /api/redeliveries": () => ({ since: yesterday(), status: "failed" }),
  "post /api/webhooks/test": () => HOOK,
  "post /api/endpoints": () => HOOK,
  "delete /api/endpoints": () => HOOK,
  "post /api/endpoints/enable": () => HOOK,
  "post /api/pauses": (tenant) => ({ tenant, reason: "The budget is spent" }),
  "post /api/schedules": () => ({ id: "daily-report", cron: "0 2 * * *", timezone: "UTC", request: ASK }),
  "post /api/keys": () => ({ name: "ci", role: "write" }),
  "patch /api/keys/{key_id}": () => ({ role: "read" }),
  "put /api/lanes/{lane}/limits": () => ({ perSecond: 5, atOnce: 10 }),
  "post /api/session": () => ({ key: "cj_…" }),
  "post /v1/chat/completions": () => ({ ...ASK, stream: false }),
  "post /v1/responses": () => ({ model: ASK.model, input: QUESTION[0].content }),
  "post /v1/batch/jobs": () => ({ model: ASK.model, endpoint: "/v1/chat/completions", requests: [{ custom_id: "1", body: { messages: QUESTION } }] }),
};
const LINES = `${JSON.stringify({ custom_id: "1", body: ASK })}\n`;

/** The text of an example for a body of this media type. */
export function exampleOf(api, method, path, type, schema, tenant = "default") {
  if (!type.includes("json")) return "";
  if (type !== "application/json") return LINES;
  const known = BODIES[`${method} ${path}`];
  return JSON.stringify(known ? known(tenant) : leastOf(api, schema, 0) ?? {}, null, 2);
}

/** The least value that a schema takes: its required fields, and of each the default, or the first of its choices. */
function leastOf(api, given, depth) {
  const schema = schemaOf(api, given);
  if (schema.default !== undefined) return schema.default;
  if (schema.examples?.length) return schema.examples[0];
  if ("const" in schema) return schema.const;
  if (schema.enum) return schema.enum[0];
  const choices = schema.anyOf ?? schema.oneOf ?? schema.allOf;
  if (choices) return leastOf(api, choices.find((one) => one.type !== "null") ?? choices[0], depth + 1);
  if (schema.type === "object" || schema.properties) {
    if (depth > MOST_DEPTH) return {};
    const named = (schema.required ?? []).map((name) => [name, leastOf(api, schema.properties?.[name] ?? {}, depth + 1)]);
    return Object.fromEntries(named);
  }
  if (schema.type === "array") return schema.minItems ? [leastOf(api, schema.items ?? {}, depth + 1)] : [];
  return { integer: schema.minimum ?? 1, number: schema.minimum ?? 1, boolean: false, string: stringOf(schema) }[schema.type] ?? null;
}

const stringOf = ({ format, minLength }) => (format === "date-time" ? yesterday() : format === "uri" ? HOOK.url : "x".repeat(minLength ?? 1));
