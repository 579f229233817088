// The fields of a request as a form: made of the API's description, so that none is forgotten. Pure.

import { schemaOf } from "./openapi.js";

/** Fields that a replay cannot have: it keeps the place in the conversation of the job that it repeats. */
export const NOT_REPLAYED = ["messages", "previousJobId"]; // messages have an editor of their own

/** Groups of fields in the order of the form; what no group names comes with the last. */
const GROUPS = [
  ["Model", ["model", "fallbackModels", "temperature", "max_tokens", "top_p", "random_seed"]],
  ["Sampling", ["top_k", "min_tokens", "stop", "presence_penalty", "frequency_penalty", "repetition_penalty", "logprobs", "top_logprobs", "prompt_logprobs", "top_prompt_logprobs", "n", "prediction", "reasoning_effort", "prompt_mode"]],
  ["Tools and form of the answer", ["response_format", "maxRepairs", "tools", "tool_choice", "parallel_tool_calls", "guardrails", "safe_prompt"]],
  ["Limits and retries", ["onInterrupt", "maxSegments", "limits", "retry", "priority", "startAt"]],
  ["Webhook and metadata", ["callback", "webhook", "metadata", "id", "jobId"]],
  ["Further parameters", []],
];
const EXAMPLES = {
  fallbackModels: '["mistral-large-latest"]',
  stop: '["END"]',
  tools: '[{"type": "function", "function": {"name": "…", "parameters": {}}}]',
  tool_choice: '"auto"',
  response_format: '{"type": "json_object"}',
  prediction: '{"type": "content", "content": "…"}',
  guardrails: "[{…}]",
  webhook: '{"url": "https://you.example/hooks"}',
  callback: "https://you.example/hooks",
  metadata: '{"order": "42"}',
  extra: '{"parameter": 1}',
  startAt: "2027-01-31T12:00:00Z",
  id: "a new one",
  jobId: "a new one",
};

/**
 * The fields of a request except its messages, in groups: `[{title, fields: [{path, title, kind, choices, example}]}]`.
 *
 * `kind` is number, integer, boolean, choice, text or json. An object whose values are plain (limits, retry) has a field
 * for each of them, with a `path` of more than one step.
 */
export function groupsOf(api) {
  const properties = schemaOf(api, { $ref: "ChatRequest" }).properties;
  const names = Object.keys(properties).filter((name) => !NOT_REPLAYED.includes(name));
  const grouped = new Set(GROUPS.flatMap(([, some]) => some));
  return GROUPS.map(([title, some]) => {
    const own = title === GROUPS.at(-1)[0] ? names.filter((name) => !grouped.has(name)) : some.filter((name) => names.includes(name));
    return { title, fields: own.flatMap((name) => fieldsOf(api, [name], properties[name])) };
  }).filter(({ fields }) => fields.length);
}

function fieldsOf(api, path, property) {
  const schema = bare(api, property);
  if (schema.properties && isPlain(api, schema)) return Object.entries(schema.properties).flatMap(([name, inner]) => fieldsOf(api, [...path, name], inner));
  const choices = schema.enum ?? ("const" in schema ? [schema.const] : null);
  const fallback = property.default ?? schema.default;
  const example = EXAMPLES[path.join(".")] ?? (fallback == null || typeof fallback === "object" ? "" : String(fallback));
  return [{ key: path.join("."), path, title: titleOf(path.at(-1)), kind: kindOf(schema, choices), choices, example }];
}

/** A schema without the null that may stand for a field that is left out; a union of several others has no type. */
function bare(api, schema) {
  const choices = (schema.anyOf ?? schema.oneOf ?? [schema]).filter((one) => one.type !== "null");
  return choices.length === 1 ? schemaOf(api, choices[0]) : {};
}

/** Whether an object has nothing but numbers, switches and choices in it, so that each can have an input. */
function isPlain(api, schema) {
  return Object.values(schema.properties).every((property) => {
    const inner = bare(api, property);
    return ["number", "integer", "boolean"].includes(inner.type) || inner.enum || (inner.properties && isPlain(api, inner));
  });
}

function kindOf(schema, choices) {
  if (choices) return "choice";
  if (schema.type === "string") return "text";
  return ["number", "integer", "boolean"].includes(schema.type) ? schema.type : "json";
}

/** `max_tokens` and `maxTokens` as “Max tokens”. */
function titleOf(name) {
  const words = name.replaceAll("_", " ").replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
  return words[0].toUpperCase() + words.slice(1);
}

// -------------------------------------------------------------------------------------------------------- values

const at = (value, path) => path.reduce((inner, name) => inner?.[name], value);

/** A field's value as it is written in its input; empty where the request does not have it. */
export function written(field, request) {
  const value = at(request, field.path);
  if (value == null) return "";
  return field.kind === "json" ? JSON.stringify(value, null, 2) : String(value);
}

/** The value of what is written in a field: `{value}`, undefined for nothing, or `{fault}`. */
export function read(field, text) {
  if (!text.trim()) return { value: undefined };
  if (field.kind === "json") return json(text);
  if (field.kind === "boolean") return { value: text === "true" };
  if (field.kind === "choice") return { value: field.choices.find((choice) => String(choice) === text) };
  if (field.kind === "text") return { value: text };
  const value = Number(text);
  if (!/^[-+\d.eE\s]+$/.test(text) || !Number.isFinite(value)) return { fault: "must be a number" };
  if (field.kind === "integer" && !Number.isInteger(value)) return { fault: "must be a whole number" };
  if (Number.isInteger(value) && !Number.isSafeInteger(value)) return { fault: "has more digits than a browser can keep; replay it with starter.py replay --set" };
  return { value };
}

/** The same; of a field that nobody changed the request's own value, which its text may not have: null, long numbers. */
function readAgain(field, text, request) {
  return text === written(field, request) ? { value: at(request, field.path) } : read(field, text);
}

/** JSON in a text, or where it stops being JSON. */
export function json(text) {
  try {
    return { value: JSON.parse(text) };
  } catch (error) {
    const place = /position (\d+)/.exec(error.message);
    const line = place ? ` (line ${text.slice(0, Number(place[1])).split("\n").length})` : "";
    return { fault: `is not JSON yet${line}: texts and names of fields stand in double quotes, with no comma at the end` };
  }
}

/** Whether two values are the same JSON, whatever the order of their fields. */
export function same(one, other) {
  if (one === other) return true;
  if (typeof one !== "object" || typeof other !== "object" || !one || !other || Array.isArray(one) !== Array.isArray(other)) return false;
  const names = Object.keys(one);
  return names.length === Object.keys(other).length && names.every((name) => Object.hasOwn(other, name) && same(one[name], other[name]));
}

/**
 * What a form changes of a request: `overrides`, where null takes a field away, and `faults` by the key of a field.
 *
 * `texts` has what is written in each field, by its key; `messages` are those of the form.
 */
export function changesOf(request, fields, texts, messages) {
  const faults = new Map();
  const wanted = {};
  for (const field of fields) {
    const { value, fault } = readAgain(field, texts[field.key], request);
    if (fault) faults.set(field.key, fault);
    const [name, ...inner] = field.path;
    if (!inner.length) wanted[name] = value;
    else wanted[name] = placed(wanted[name] ?? request[name] ?? {}, inner, value);
  }
  const overrides = {};
  for (const [name, value] of Object.entries(wanted)) {
    const kept = isEmpty(value) && !isEmpty(request[name]) ? undefined : value;
    if (!same(kept ?? undefined, request[name] ?? undefined) && !(isEmpty(kept) && request[name] == null)) overrides[name] = kept ?? null;
  }
  const said = messages.map((message, place) => {
    const { value, fault } = messageOf(message);
    if (fault) faults.set(`messages.${place}`, fault);
    return value;
  });
  if (!same(said, request.messages)) overrides.messages = said;
  return { overrides, faults };
}

const isEmpty = (value) => value === undefined || (typeof value === "object" && value !== null && !Array.isArray(value) && !Object.keys(value).length);

/** The object with a value at a path; without it for undefined, and without an object that is left empty. */
function placed(object, [name, ...path], value) {
  const { [name]: before, ...rest } = object;
  const inner = path.length ? placed(before ?? {}, path, value) : value;
  return inner === undefined || (path.length && isEmpty(inner)) ? rest : { ...object, [name]: inner };
}

// ------------------------------------------------------------------------------------------------------ messages

export const ROLES = ["system", "user", "assistant", "tool"];
let last = 0;

/** A message as a form has it: its role, its content, and its other fields as JSON. */
export function drafted({ role, content, ...rest }) {
  return { key: ++last, role, content, rest: Object.keys(rest).length ? JSON.stringify(rest, null, 2) : "" };
}

export function messageOf({ role, content, rest }) {
  const found = rest.trim() ? json(rest) : { value: {} };
  if (found.fault) return { value: null, fault: `Other fields: ${found.fault}` };
  if (typeof found.value !== "object" || found.value === null || Array.isArray(found.value)) return { value: null, fault: "Other fields: must be a JSON object" };
  return { value: { role, ...(content === undefined ? {} : { content }), ...found.value } };
}

/** The key of the field that a JSON pointer of the service leads to; null for none of the form's. */
export function keyAt(pointer, fields) {
  const path = pointer.split("/").slice(1).map((step) => step.replaceAll("~1", "/").replaceAll("~0", "~"));
  if (path[0] === "messages") return path.length > 1 ? `messages.${path[1]}` : "messages";
  const under = fields.filter((field) => field.path.every((step, place) => path[place] === step));
  const over = fields.filter((field) => path.length && path.every((step, place) => field.path[place] === step));
  return (under[0] ?? over[0])?.key ?? null;
}
