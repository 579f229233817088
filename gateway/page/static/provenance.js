// Which attempt wrote which part of an answer. Positions of the API count characters (code points) over both channels.

import { count, many, timeOfDay } from "./format.js";

const JOINED = {
  confirmed: "continued; confirmed: the server repeated the end of the text before it went on",
  unconfirmed: "continued; not confirmed: the server went on without repeating the text before",
};

/** The runs of a finished answer's channels, where its stream has not told them: models reason before they answer. */
export function usualRuns(texts) {
  return ["reasoning", "content"].map((channel) => ({ channel, length: lengthOf(texts[channel]) })).filter((run) => run.length);
}

/** The number of code points of a text. */
function lengthOf(text) {
  let length = text.length;
  for (let place = 0; place < text.length - 1; place++) if (isPair(text, place)) length--;
  return length;
}

const isPair = (text, place) => (text.charCodeAt(place) & 0xfc00) === 0xd800 && (text.charCodeAt(place + 1) & 0xfc00) === 0xdc00;

/**
 * The stretches of one channel's text, in order: `{...stretch, from, to}`, offsets in the text as JavaScript counts.
 * `runs`: how the channels follow each other, as `{channel, length}`.
 */
export function stretchesOf(provenance, runs, channel, text) {
  const found = [];
  let position = 0;
  let within = 0; // characters of this channel before the run
  for (const run of runs) {
    for (const stretch of provenance) {
      const [start, end] = [Math.max(stretch.start, position), Math.min(stretch.end, position + run.length)];
      if (run.channel === channel && start < end) found.push({ ...stretch, from: within + start - position, to: within + end - position });
    }
    position += run.length;
    if (run.channel === channel) within += run.length;
  }
  return inUnits(joined(found), text);
}

/** A stretch that another channel interrupts is one stretch of this one. */
function joined(found) {
  return found.reduce((all, one) => {
    const last = all.at(-1);
    if (last?.start === one.start) last.to = one.to;
    else all.push(one);
    return all;
  }, []);
}

/** Offsets in code points as offsets in UTF-16 units; the last stretch has all that was written since. */
function inUnits(stretches, text) {
  let unit = 0;
  let point = 0;
  const forward = (to) => {
    for (; point < to && unit < text.length; point++) unit += isPair(text, unit) ? 2 : 1;
    return unit;
  };
  const found = stretches.map((one) => ({ ...one, from: forward(one.from), to: forward(one.to) }));
  if (found.length) found.at(-1).to = text.length;
  return found;
}

/** What is told of an answer that took several attempts: `3 attempts, 2 models; 1 seam confirmed; 214 tokens wasted`. */
export function legendOf(job) {
  const models = new Set(job.attempts.map((one) => one.model).filter(Boolean)).size;
  const seams = { confirmed: 0, unconfirmed: 0 };
  for (const { seam } of job.provenance ?? []) if (seam) seams[seam]++;
  const wasted = job.wastedTokens ?? 0;
  return [
    many(job.attempts.length, "attempt") + (models > 1 ? `, ${models} models` : ""),
    [seams.confirmed && `${many(seams.confirmed, "seam")} confirmed`, seams.unconfirmed && `${many(seams.unconfirmed, "seam")} not confirmed`].filter(Boolean).join(", "),
    wasted && `${many(wasted, "token")} wasted`,
  ].filter(Boolean).join("; ");
}

export const hasSeams = (job) => (job.provenance ?? []).length > 1;

/** What is told of a stretch: attempt, model, characters, how it was joined, and when its attempt began. */
export function tell(stretch, attempts) {
  const attempt = attempts.find((one) => one.number === stretch.attempt);
  return [
    `Attempt ${stretch.attempt}`,
    stretch.model,
    many(stretch.end - stretch.start, "character"),
    JOINED[stretch.seam] ?? "began the answer",
    attempt && `at ${timeOfDay(attempt.startedAt)}`,
  ].filter(Boolean).join(" · ");
}

/** The same in few words, for a mark. */
export const brief = ({ attempt, model, seam }) => `Attempt ${attempt}${model ? `, ${model}` : ""}${seam ? `, ${seam === "confirmed" ? "confirmed" : "not confirmed"}` : ""}`;

export const range = ({ start, end }) => `${count(start + 1)} to ${count(end)}`;
