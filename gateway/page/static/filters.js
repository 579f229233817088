// The list's filters in the address, and messages for those that are invalid.

import { STATUSES } from "./format.js";

export const WINDOWS = { "15m": "15 min", "1h": "1 hour", "6h": "6 hours", "24h": "24 hours", "7d": "7 days" };
const USUAL_WINDOW = "1h";
const NAMES = ["q", "status", "model", "metadata", "errorCode", "replayOf", "thread", "batchId", "scheduleId", "since", "until", "window"];
const ID = /^[A-Za-z0-9_-]{1,128}$/;
const LONGEST_CODE = 64;
const MODEL = /^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$/;
const SCHEDULE = /^[A-Za-z0-9_-]{1,64}$/;
const TIME = /^\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?:Z|[+-]\d{2}:?\d{2})?)?$/i;
const AGO = /^([1-9]\d{0,3})([smhd])$/;
const UNITS = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };
const LONGEST_QUOTE = 60;

/** Times that `since` is offered with: so long before now, whenever the list is read. */
export const PRESETS = { "1h": "last hour", "24h": "last 24 hours", "7d": "last 7 days" };

/** `troubles` has a message for each invalid parameter, by its name. */
export function readFilters(query) {
  const given = Object.fromEntries(NAMES.map((name) => [name, query.get(name) ?? ""]));
  const troubles = Object.entries(READ).flatMap(([name, why]) => (given[name] && why(given[name]) ? [[name, why(given[name])]] : []));
  for (const name of new Set(query.keys())) {
    if (!NAMES.includes(name)) troubles.push([name, `There is no filter ${quoted(name)}${suggested(name, NAMES)}.`]);
    else if (query.getAll(name).length > 1) troubles.push([name, `The filter ${name} is there more than once; one value is possible.`]);
  }
  const [since, until] = [timeOf(given.since), timeOf(given.until)];
  if (since && until && since >= until) troubles.push(["until", "“Until” has to be later than “From”: no job lies between them."]);
  return {
    ...given,
    status: given.status || null,
    window: Object.hasOwn(WINDOWS, given.window) ? given.window : USUAL_WINDOW,
    troubles: new Map(troubles),
  };
}

const READ = {
  status: (text) => (STATUSES.includes(text) ? null : `There is no status ${quoted(text)}${suggested(text, STATUSES)}. The statuses are ${STATUSES.join(", ")}.`),
  model: (text) => (MODEL.test(text) ? null : `${quoted(text)} cannot be a model’s name: it has 1 to 64 letters, digits, dots, colons and dashes.`),
  scheduleId: (text) => (SCHEDULE.test(text) ? null : `${quoted(text)} cannot be a schedule’s id: it has 1 to 64 letters, digits, dashes and underscores.`),
  metadata: (text) => (pairOf(text) ? null : `Metadata is asked for as key=value, for example order=42; ${quoted(text)} has no key and value.`),
  errorCode: (text) => (text.length <= LONGEST_CODE ? null : `${quoted(text)} cannot be the code of an error: it has at most ${LONGEST_CODE} characters.`),
  replayOf: (text) => (ID.test(text) ? null : `${quoted(text)} cannot be the id of a job.`),
  thread: (text) => (ID.test(text) ? null : `${quoted(text)} cannot be the id of a job.`),
  batchId: (text) => (ID.test(text) ? null : `${quoted(text)} cannot be the id of a batch.`),
  since: (text) => (timeOf(text) ? null : notATime("From", text)),
  until: (text) => (timeOf(text) ? null : notATime("Until", text)),
  window: (text) => (Object.hasOwn(WINDOWS, text) ? null : `There is no time window ${quoted(text)} for the charts. The windows are ${Object.keys(WINDOWS).join(", ")}.`),
};

const notATime = (name, text) => `“${name}” is no date: ${quoted(text)}. Write it as 2026-11-26 or 2026-11-26T10:00, or as 2h for two hours ago.`;
const quoted = (text) => `“${text.length > LONGEST_QUOTE ? `${text.slice(0, LONGEST_QUOTE)}…` : text}”`;

/** `; did you mean …?` if the text is similar to one of some words. */
function suggested(text, words) {
  const near = words.find((word) => distance(text.toLowerCase(), word) <= Math.max(1, Math.floor(word.length / 4)));
  return near ? ` (did you mean ${near}?)` : "";
}

/** The edit distance of two words, with transpositions. */
function distance(one, other) {
  if (Math.abs(one.length - other.length) > 4) return Infinity;
  const rows = Array.from({ length: one.length + 1 }, (_, i) => [i]);
  for (let j = 1; j <= other.length; j++) rows[0][j] = j;
  for (let i = 1; i <= one.length; i++) {
    for (let j = 1; j <= other.length; j++) {
      const same = one[i - 1] === other[j - 1] ? 0 : 1;
      rows[i][j] = Math.min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + same);
      if (i > 1 && j > 1 && one[i - 1] === other[j - 2] && one[i - 2] === other[j - 1]) rows[i][j] = Math.min(rows[i][j], rows[i - 2][j - 2] + 1);
    }
  }
  return rows[one.length][other.length];
}

/** The time in a text as milliseconds, local time without an offset, or so long before now (2h); null if invalid. */
function timeOf(text) {
  const [, number, unit] = AGO.exec(text) ?? [];
  if (number) return Date.now() - Number(number) * UNITS[unit];
  if (!TIME.test(text)) return null;
  const day = text.length === 10;
  const [, year, month, date] = /^(\d{4})-(\d{2})-(\d{2})/.exec(text).map(Number);
  if (date > new Date(year, month, 0).getDate()) return null; // 31 February
  const at = Date.parse(day ? `${text}T00:00` : text.replace(" ", "T"));
  return Number.isNaN(at) ? null : at;
}

/** `key=value` as a pair; null for any other text. */
export function pairOf(metadata) {
  const [, key, value] = /^\s*([^=]+?)\s*=\s*(.*?)\s*$/s.exec(metadata) ?? [];
  return key ? [key, value] : null;
}

export function hrefOf(filters) {
  const query = new URLSearchParams();
  for (const name of NAMES) if (filters[name] && !(name === "window" && filters.window === USUAL_WINDOW)) query.set(name, filters[name]);
  return query.size ? `/?${query}` : "/";
}

export const UNFILTERED = { q: "", status: null, model: "", metadata: "", errorCode: "", replayOf: "", thread: "", batchId: "", scheduleId: "", since: "", until: "" };
export const isFiltered = (filters) => Object.keys(UNFILTERED).some((name) => filters[name]);

/** The chosen filters as they stand in the address: the same text for the same list, also while time goes on. */
export const keyOf = (filters) => JSON.stringify(Object.keys(UNFILTERED).map((name) => filters[name]));

/** The reader's time zone, and how far it is from UTC: `Europe/Berlin, UTC+1`. */
export function timeZone(now = new Date()) {
  const parts = new Intl.DateTimeFormat("en", { timeZoneName: "shortOffset" }).formatToParts(now);
  const offset = parts.find((part) => part.type === "timeZoneName").value.replace("GMT", "UTC");
  const name = Intl.DateTimeFormat().resolvedOptions().timeZone;
  return name === offset ? name : `${name}, ${offset}`;
}

/** Whether a job was accepted within the chosen times, which may go on with the clock. */
export function inTime({ createdAt }, { since, until }) {
  const at = Date.parse(createdAt);
  return (!since || at >= timeOf(since)) && (!until || at < timeOf(until));
}

/** Whether a job matches all filters but `q`: which texts have the words, only the service knows. */
export function matches(job, { status, model, metadata, errorCode, replayOf, thread, batchId, scheduleId, ...times }) {
  const pair = pairOf(metadata);
  return (
    (!status || job.status === status) &&
    (!model || job.model === model) &&
    (!errorCode || job.error?.code === errorCode) &&
    (!replayOf || job.replayOf === replayOf) &&
    (!thread || job.thread === thread) &&
    (!batchId || job.batchId === batchId) &&
    (!scheduleId || job.scheduleId === scheduleId) &&
    (!pair || job.metadata?.[pair[0]] === pair[1]) &&
    inTime(job, times)
  );
}

/** The chosen filters as the client takes them; only those that are set. */
export function choiceOf({ q, metadata, since, until, ...chosen }) {
  const pair = pairOf(metadata);
  const choice = pair ? { metadata: { [pair[0]]: pair[1] } } : {};
  for (const name of FOR_CLIENT) if (chosen[name]) choice[name] = chosen[name];
  if (q) choice.search = q;
  if (since) choice.since = new Date(timeOf(since)).toISOString();
  if (until) choice.until = new Date(timeOf(until)).toISOString();
  return choice;
}

const FOR_CLIENT = ["status", "model", "errorCode", "replayOf", "thread", "batchId", "scheduleId"];
