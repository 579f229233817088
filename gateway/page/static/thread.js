// A conversation: a tree of jobs, of which one path is shown. A follow-up is a job after another one; an edited message
// and a replay are branches.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { jobs as client, newKey } from "./api.js";
import { Trouble } from "./parts.js";
import { Link, go } from "./places.js";

const MOST_JOBS = 1000;

// ------------------------------------------------------------------------------------------------------ the tree

/** The jobs of a thread, oldest first; null until they are known. `again`: a value with whose changes they are read anew. */
export function useJobsOf(thread, again) {
  const [found, setFound] = useState({ jobs: null, problem: null });
  useEffect(() => {
    let alive = true;
    const look = () => {
      if (!thread || document.hidden) return;
      client.page({ thread, limit: MOST_JOBS }).then(
        ({ jobs }) => alive && setFound({ jobs: jobs.reverse(), problem: null }),
        (problem) => alive && setFound((before) => ({ ...before, problem })),
      );
    };
    look();
    document.addEventListener("visibilitychange", look);
    return () => {
      alive = false;
      document.removeEventListener("visibilitychange", look);
    };
  }, [thread, again]);
  return found;
}

/** The jobs from the first one that is still there to this one. */
export function pathTo(jobs, id) {
  const known = new Map(jobs.map((job) => [job.jobId, job]));
  const path = [];
  for (let job = known.get(id); job && path.length < jobs.length; job = known.get(job.previousJobId)) path.unshift(job);
  return path;
}

/** The newest job that a job leads to; itself if there is none. (A job comes after the one that it replies to.) */
export function leafOf(jobs, id) {
  const found = new Set([id]);
  for (const job of jobs) if (found.has(job.previousJobId)) found.add(job.jobId);
  return [...found].at(-1);
}

/** The jobs with the same previous one, this one among them, oldest first. */
export function branchesOf(jobs, job) {
  return jobs.filter((one) => (one.previousJobId ?? null) === (job.previousJobId ?? null));
}

export const repliesTo = (jobs, id) => jobs.filter((one) => one.previousJobId === id);

// --------------------------------------------------------------------------------------------------- its messages

/**
 * Which of a request's messages belong to which job of its path: `[{job, from, end}]`; null until it is known.
 *
 * Each job's request has the messages of those before it and their answers. Usually only these are the assistant's, and
 * can be counted; else the lengths of the requests tell.
 */
export function useTurns(messages, path) {
  const answers = messages.flatMap((message, place) => (message.role === "assistant" && place < messages.length - 1 ? [place] : []));
  const counted = answers.length === path.length - 1;
  const [read, setRead] = useState(null);
  const ids = path.map((job) => job.jobId).join(" ");
  useEffect(() => {
    if (counted || !path.length) return undefined;
    let alive = true;
    Promise.all(path.slice(0, -1).map((job) => client.request(job.jobId))).then(
      (requests) => alive && setRead({ ids, ends: requests.map(lengthWithoutPrefix) }),
      () => {}, // of a deleted job nobody knows: the messages are shown, and cannot be edited
    );
    return () => {
      alive = false;
    };
  }, [ids, counted]);
  return useMemo(() => {
    const ends = counted ? answers : read?.ids === ids ? read.ends : null;
    if (!ends) return null;
    return path.map((job, number) => ({ job, from: number ? ends[number - 1] + 1 : 0, end: ends[number] ?? messages.length }));
  }, [messages, ids, counted, read]);
}

const lengthWithoutPrefix = ({ messages }) => messages.length - (messages.at(-1).role === "assistant" ? 1 : 0);

/** A message's text that can be edited; null where it has none, or several. */
export function editable(message) {
  if (message.role !== "user") return null;
  if (typeof message.content === "string") return message.content;
  const texts = message.content.filter((part) => part.type === "text");
  return texts.length === 1 ? texts[0].text : null;
}

function edited(message, text) {
  if (typeof message.content === "string") return { ...message, content: text };
  return { ...message, content: message.content.map((part) => (part.type === "text" ? { ...part, text } : part)) };
}

// ------------------------------------------------------------------------------------------------------- pieces

/** Leads from branch to branch; nothing where there is only one. */
export function Branches({ jobs, job, hrefOf }) {
  const branches = branchesOf(jobs, job);
  const place = branches.findIndex((one) => one.jobId === job.jobId);
  if (branches.length < 2 || place < 0) return null;
  const step = (to, name, sign) =>
    branches[to]
      ? html`<${Link} class="step" href=${hrefOf(leafOf(jobs, branches[to].jobId))} aria-label=${name}>${sign}<//>`
      : html`<span class="step" aria-hidden="true">${sign}</span>`;
  return html`<nav class="branches" aria-label="Branches">
    ${step(place - 1, "Earlier branch", "‹")}<span>${place + 1} of ${branches.length}</span>${step(place + 1, "Later branch", "›")}
  </nav>`;
}

/** A message's text in a form; sending it starts a branch: the job again, with another message in its place. */
export function EditMessage({ messages, place, turn, hrefOf, onClose }) {
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const box = useRef(null);
  const sent = useRef({ text: null, key: null });
  useEffect(() => {
    box.current.focus();
    box.current.setSelectionRange(box.current.value.length, box.current.value.length);
  }, []);
  const submit = async (event) => {
    event?.preventDefault();
    const text = box.current.value;
    if (busy || !text.trim()) return;
    setBusy(true);
    if (sent.current.text !== text) sent.current = { text, key: await newKey() };
    const changed = [...messages.slice(0, place), edited(messages[place], text), ...messages.slice(place + 1, turn.end)];
    try {
      const made = await client.replay(turn.job.jobId, { messages: changed, idempotencyKey: sent.current.key });
      go(hrefOf(made.jobId));
    } catch (error) {
      setProblem(error);
      setBusy(false);
    }
  };
  const onKeyDown = (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") onClose();
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    submit();
  };
  return html`<form class="edit" onSubmit=${submit} aria-label="Edit message">
    <textarea ref=${box} rows="3" aria-label="Edited message" defaultValue=${editable(messages[place])} onKeyDown=${onKeyDown} required></textarea>
    <${Trouble} problem=${problem} />
    <div class="send">
      <span class="hint muted" aria-hidden="true">The first version stays, as another branch</span>
      <button type="button" class="quiet" onClick=${onClose}>Cancel</button>
      <button class="primary" disabled=${busy}>${busy ? "Sending…" : "Send"}</button>
    </div>
  </form>`;
}
