// Formatting of values. Pure.

export const STATUSES = ["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"];
const OPEN = new Set(["queued", "in_progress"]);
const LABELS = { in_progress: "In progress" };
const numbers = new Intl.NumberFormat("en");
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const minute = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });

export const isOpen = (status) => OPEN.has(status);
export const label = (status) => LABELS[status] ?? status[0].toUpperCase() + status.slice(1);
export const count = (value) => (value == null ? "–" : numbers.format(value));
export const many = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;
export const when = (time) => full.format(new Date(time));
export const hourAndMinute = (time) => minute.format(new Date(time));
export const date = (time) => day.format(new Date(time));
export const timeOfDay = (time) => clock.format(new Date(time));
export const rate = (value) => (value == null ? "–" : `${value < 10 ? value.toFixed(1) : Math.round(value)} tok/s`);

/** The pace of a batch; a slow one by the minute or the hour. */
export function pace(perSecond) {
  if (perSecond == null) return "–";
  const [value, unit] = perSecond >= 1 ? [perSecond, "s"] : perSecond * 60 >= 1 ? [perSecond * 60, "min"] : [perSecond * 3600, "h"];
  return `${value < 10 ? Number(value.toFixed(1)) : count(Math.round(value))} jobs/${unit}`;
}

/** How long it is until a time, and that time. */
export function until(time, now) {
  const at = new Date(time);
  const left = at - now;
  const clock = left < 86_400_000 ? timeOfDay(at) : when(at);
  return left < 1000 ? `any moment (${clock})` : `in ${span(left)} (${clock})`;
}

/** A size in bytes. */
export function size(bytes) {
  const [value, unit] = bytes < 1e3 ? [bytes, "bytes"] : bytes < 1e6 ? [bytes / 1e3, "KB"] : bytes < 1e9 ? [bytes / 1e6, "MB"] : [bytes / 1e9, "GB"];
  return `${value < 10 ? Number(value.toFixed(1)) : count(Math.round(value))} ${unit}`;
}

/** A short form of a duration in milliseconds. */
export function span(ms) {
  if (ms == null || Number.isNaN(ms)) return "–";
  if (ms < 0) return "0 ms";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** A relative time for the list. */
export function ago(time, now) {
  const seconds = (now - new Date(time)) / 1000;
  if (seconds < 5) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return day.format(new Date(time));
}

/** A waiting job's place in the queue. */
export function standing({ position, expectedStartAt }, now) {
  const wait = Math.max(0, Math.round((new Date(expectedStartAt) - now) / 1000));
  return `number ${count(position)} in the queue, expected ${wait ? `in ${span(wait * 1000)}` : "now"}`;
}

export const shortId = (id) => (id.length > 18 ? `${id.slice(0, 12)}…${id.slice(-4)}` : id);

/** The URL if it is http or https, else null: a setting may contain anything, and it becomes a link. */
export const webAddress = (url) => (/^https?:\/\//i.test(url ?? "") ? url : null);

export const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** A request as a curl command, with an environment variable in place of the key. */
export function curl(request, { origin, keysRequired }) {
  const lines = [`curl -X POST ${quoted(`${origin}/api/jobs`)}`, "-H 'Content-Type: application/json'"];
  if (keysRequired) lines.push('-H "Authorization: Bearer $CHATJOBS_KEY"');
  lines.push(`-d ${quoted(JSON.stringify(request))}`);
  return lines.join(" \\\n  ");
}
