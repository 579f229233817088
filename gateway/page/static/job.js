// One job: its request, its answer while it is generated, and its history.

import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { AnswerTools, Body, JsonBlock, MOST_RENDERED, Seams, TooLong, Words, useStretches, useView } from "./answer.js";
import { ContentDeleted, feed, isNoJob, isPassing, jobs as client, lookForRequest, streams } from "./api.js";
import { Composer } from "./chat.js";
import { count, curl, isOpen, label, many, rate, shortId, span, standing, timeOfDay, webAddress, when } from "./format.js";
import { follow } from "./live.js";
import { Money } from "./money.js";
import { useFollowing } from "./following.js";
import { Alone, BatchLink, Card, Dialog, Heading, Status, Trouble, USUAL_PRIORITY, copy, say, useNow } from "./parts.js";
import { BackToList, Link, go, jobHref, placeHere, threadHref } from "./places.js";
import { useMay } from "./roles.js";
import { ReplayEditor } from "./replay_editor.js";
import { Branches, EditMessage, editable, leafOf, pathTo, repliesTo, useJobsOf, useTurns } from "./thread.js";
import { Transcript } from "./transcript.js";

const DELIVERY_PAUSES_MS = [500, 1000, 2000, 4000, 8000, 15_000];
const DELETED = new Set([404, 410]);
const DELETION_MS = 5000;
const RETRY_MS = 2000;
const SHORT = 700;
const LONG_ANSWER = 20_000;
/** Characters of a conversation that are open at once; what comes before them is folded, and rendered when it is opened. */
const MOST_OPEN = 100_000;
const WAITING_FOR = {
  rate_limit: "Waiting for the model's rate limit",
  model_down: "The model does not answer at the moment; one job tries it again, the others wait",
  paused: "The model has asked to be left alone for a while",
};
const GOOD = new Set(["finished", "segment", "topped_up"]);
const RESUMABLE = new Set(["failed", "cancelled"]);

/** `thread`: the id of the thread as which the job is shown, with those before it; null for the job itself. */
export function JobView({ id, session, onConnection, thread = null }) {
  const { job, request, transcript, problem, reload, restarted } = useJob(id, onConnection);
  useEffect(() => {
    document.title = `${job ? `${label(job.status)} · ` : ""}${thread ? "Conversation" : shortId(id)}`;
  }, [id, job?.status]);
  useEffect(() => {
    if (thread && job && job.thread !== thread) go(threadHref(job.thread, id), { replace: true });
  }, [thread, job?.thread]);
  if (!job || (problem && isNoJob(problem))) return html`<${NoJob} id=${id} problem=${problem} seen=${Boolean(job)} />`;
  return html`<${Shown} ...${{ job, request, transcript, restarted, problem, reload, session, thread }} />`;
}

/** A conversation: the path to the job that the address names, or to the newest one. */
export function ThreadView({ id, address, session, onConnection }) {
  const { jobs, problem } = useJobsOf(id, address.search);
  const at = address.searchParams.get("at");
  if (!jobs && problem) return html`<${NoJob} id=${id} problem=${problem} />`;
  if (!jobs) return html`<main class="alone"><h1 class="hidden">Conversation</h1><p class="muted">Loading…</p></main>`;
  const shown = at && !jobs.some((job) => job.jobId === at) ? at : leafOf(jobs, at ?? jobs.at(-1)?.jobId ?? id);
  return html`<${JobView} key=${shown} id=${shown} thread=${id} session=${session} onConnection=${onConnection} />`;
}

function NoJob({ id, problem, seen }) {
  if (!problem) return html`<main class="alone"><h1 class="hidden">Job</h1><p class="muted">Loading…</p></main>`;
  const back = html`<p><${BackToList}>All jobs<//></p>`;
  if (!isNoJob(problem)) {
    return html`<${Alone} title="The job is not shown"><${Trouble} problem=${problem} /><p class="muted">The page keeps trying.</p>${back}<//>`;
  }
  const why = seen
    ? "It was removed while you had it open."
    : "There is no job with this id here. It may have been removed, it may belong to another tenant, or the address is not whole.";
  return html`<${Alone} title="No such job"><p>${why}</p><p class="id">${id}</p>${back}<//>`;
}

function Shown({ job, request, transcript, restarted, problem, reload, session, thread }) {
  const open = isOpen(job.status);
  const { jobs } = useJobsOf(job.thread, job.status);
  const hrefOf = (id) => (thread ? threadHref(thread, id) : jobHref(id));
  const [began] = useState(open);
  const answer = useRef(null);
  const [following, jump] = useFollowing(answer, open);
  useLayoutEffect(() => {
    const place = placeHere(); // saved when the reader left this entry
    if (!open && place) scrollTo(0, place.y);
  }, []);
  useOpenAtEnd(answer, Boolean(thread && request?.messages.length > 1 && !open));
  return html`<main class=${thread ? "job thread" : "job"}>
    <${Head} ...${{ job, request, session, reload, thread, jobs, hrefOf }} />
    <${Trouble} problem=${problem} />
    <div class="columns">
      <div class="talk">
        <${Talk} ...${{ job, request, transcript, restarted, answer, jobs, hrefOf }} />
        <${FollowUp} job=${job} request=${request} focus=${began && following} hrefOf=${hrefOf} />
        ${thread ? null : html`<${Replies} jobs=${jobs} id=${job.jobId} />`}
      </div>
      ${thread ? null : html`<aside aria-label="About this job">
        <${Timeline} job=${job} request=${request} transcript=${transcript} />
        <${Attempts} job=${job} />
        <${Deliveries} job=${job} reload=${reload} />
        <${Details} job=${job} request=${request} />
      </aside>`}
    </div>
    ${open && !following ? html`<button type="button" class="jump" onClick=${jump}>Jump to the end ↓</button>` : null}
    <p class="hidden" role="status" aria-live="polite">${open ? "The answer is being written" : `The job is ${label(job.status).toLowerCase()}`}</p>
  </main>`;
}

/** Scroll to the last question once, as soon as all messages are there: a conversation is read from its end. */
function useOpenAtEnd(answer, ready) {
  const done = useRef(false);
  useLayoutEffect(() => {
    if (!ready || done.current) return;
    done.current = true;
    if (!placeHere()) answer.current?.previousElementSibling?.scrollIntoView({ block: "start", behavior: "instant" });
  }, [ready]);
}

// -------------------------------------------------------------------------------------------------------- data

/** The job, its request and its text: fetched once, then updated by its events. */
function useJob(id, onConnection) {
  const [job, setJob] = useState(null);
  const [request, setRequest] = useState(null);
  const [problem, setProblem] = useState(null);
  const [restarted, setRestarted] = useState(null);
  const transcript = useMemo(() => new Transcript(), [id]);
  const alive = useRef(true);

  const reload = async () => {
    try {
      const found = await client.get(id);
      if (alive.current) {
        setJob(found);
        setProblem(null);
      }
      return found;
    } catch (error) {
      if (alive.current) setProblem(error);
      return error;
    }
  };

  useEffect(() => {
    alive.current = true;
    let stop = () => {};
    let timer = 0;
    const ended = async () => {
      stop();
      onConnection("ended");
      const found = await reload();
      if (alive.current) show(found instanceof Error ? null : found);
    };
    const handlers = {
      queued: (event) => setJob((job) => job && { ...job, queue: event }),
      start: () => reload(),
      chunk: (event, { lastEventId }) => {
        transcript.take(event, lastEventId);
        setJob((job) => (job?.queue ? { ...job, queue: undefined } : job));
      },
      reset: ({ reason }) => {
        transcript.restart();
        setRestarted(reason);
        reload();
      },
    };
    const take = (event, stream) => handlers[event.type]?.(event, stream); // after a terminal event the stream ends
    const tell = (state, error) => {
      onConnection(state);
      if (state !== "ended") return;
      if (!error || error instanceof ContentDeleted) ended();
      else setProblem(error);
    };
    const begin = async () => {
      const found = await reload();
      if (!alive.current) return;
      if (found instanceof Error) {
        if (isPassing(found)) timer = setTimeout(begin, RETRY_MS);
        return;
      }
      client.request(id).then((asked) => alive.current && setRequest(asked), () => {});
      show(found);
    };
    /** Follow an open job by its events; a finished one by the feed of all jobs, as an operator may reopen it. */
    const show = (found) => {
      stop();
      if (found && isOpen(found.status)) {
        transcript.restart(); // the stream sends the text from the beginning
        stop = follow((options) => streams.stream(id, options), take, tell);
        return;
      }
      if (found && !transcript.has(found)) transcript.fill(found.content, found.reasoning);
      onConnection("ended");
      const isOther = (one) => one.jobId === id && one.completedAt !== found?.completedAt;
      const look = async () => {
        const now = await reload();
        if (alive.current && !(now instanceof Error) && isOther(now)) show(now);
      };
      stop = follow(feed, ({ jobs }) => (!jobs || jobs.some(isOther)) && look());
    };
    begin();
    return () => {
      alive.current = false;
      clearTimeout(timer);
      stop();
      onConnection(null);
    };
  }, [id]);

  useDeletion(job, reload);
  useEffect(() => {
    if (job?.deletedAt) transcript.fill(null, null); // after any request that found the job deleted
  }, [job?.deletedAt]);
  useDeliveries(job, request, reload);
  return { job, request: job?.deletedAt ? null : request, transcript, problem, reload, restarted };
}

/** Poll a finished job and call `onDeleted` once it is deleted: no stream reports that. */
function useDeletion(job, onDeleted) {
  const watched = job && !isOpen(job.status) && !job.deletedAt;
  useEffect(() => {
    if (!watched) return undefined;
    const look = () => document.hidden || lookForRequest(job.jobId).catch((error) => DELETED.has(error.status) && onDeleted());
    const timer = setInterval(look, DELETION_MS);
    document.addEventListener("visibilitychange", look);
    return () => {
      clearInterval(timer);
      document.removeEventListener("visibilitychange", look);
    };
  }, [watched, job?.jobId]);
}

/** Poll until each webhook is delivered or given up. */
function useDeliveries(job, request, reload) {
  const looks = useRef(0);
  const asked = job?.deliveries.map((one) => one.nextTryAt).join() ?? "";
  useEffect(() => {
    looks.current = 0; // a try that is made now ends soon
  }, [asked]);
  const waits = job && !isOpen(job.status) && (job.deliveries.some((one) => one.status === "pending") || (expectsWebhook(job, request) && !job.deliveries.length));
  useEffect(() => {
    if (!waits) {
      looks.current = 0; // another delivery may be requested later
      return undefined;
    }
    const pause = DELIVERY_PAUSES_MS[Math.min(looks.current++, DELIVERY_PAUSES_MS.length - 1)];
    let timer = 0;
    const look = () => (document.hidden ? (timer = setTimeout(look, 1000)) : reload());
    timer = setTimeout(look, pause);
    return () => clearTimeout(timer);
  }, [waits, job]);
}

function expectsWebhook(job, request) {
  if (!request?.callback && !request?.webhook) return false;
  const events = request.webhook?.events;
  return !events || events.includes(`chat.${job.status}`);
}

// -------------------------------------------------------------------------------------------------------- head

function Head({ job, request, session, reload, thread, jobs, hrefOf }) {
  const [dialog, setDialog] = useState(null);
  const [problem, setProblem] = useState(null);
  const [cancelling, setCancelling] = useState(false);
  const run = webAddress(job.temporalUrl);
  const mayWrite = useMay("write");

  const cancel = async () => {
    setCancelling(true);
    try {
      await client.cancel(job.jobId);
      setProblem(null);
    } catch (error) {
      setProblem(error);
      setCancelling(false);
    }
    reload();
  };
  const resume = async () => {
    try {
      await client.resume(job.jobId);
      setProblem(null);
    } catch (error) {
      setProblem(error);
    }
    reload();
  };
  const copyCurl = async () => {
    const text = curl(request, { origin: location.origin, keysRequired: session.keysRequired });
    if (!(await copy(text, "curl command"))) setDialog(text);
  };

  return html`<div class="head">
    <${BackToList} class="back">← Jobs<//>
    <div class="title">
      ${thread ? html`<${Heading}>Conversation<//>` : html`<${Heading}><code title=${job.jobId}>${shortId(job.jobId)}</code><//>`}
      <${Status} status=${job.status} pill />
      <span class="model">${job.model}</span>
    </div>
    <div class="actions">
      ${thread ? html`<${Link} class="button" href=${jobHref(job.jobId)}>Job<//>` : null}
      ${!thread && jobs?.length > 1 ? html`<${Link} class="button" href=${threadHref(job.thread, job.jobId)}>Conversation<//>` : null}
      ${mayWrite && isOpen(job.status) ? html`<button type="button" class="danger" onClick=${cancel} disabled=${cancelling}>${cancelling ? "Cancelling…" : "Cancel"}</button>` : null}
      ${mayWrite && RESUMABLE.has(job.status) && job.position && request ? html`<button type="button" onClick=${resume}>Resume</button>` : null}
      ${mayWrite && request ? html`<button type="button" onClick=${() => setDialog("replay")}>Replay…</button>` : null}
      ${request ? html`<button type="button" onClick=${copyCurl}>Copy as curl</button>` : null}
      ${run ? html`<a class="button" href=${run} target="_blank" rel="noopener noreferrer">Temporal ↗</a>` : null}
    </div>
    <${Trouble} problem=${problem} />
    ${dialog === "replay" ? html`<${ReplayEditor} job=${job} request=${request} hrefOf=${hrefOf} onClose=${() => setDialog(null)} />` : null}
    ${dialog && dialog !== "replay"
      ? html`<${Dialog} title="Copy as curl" onClose=${() => setDialog(null)}><textarea class="code" rows="8" readonly value=${dialog} onFocus=${(e) => e.currentTarget.select()} /><//>`
      : null}
  </div>`;
}

// -------------------------------------------------------------------------------------------------------- talk

function Talk({ job, request, transcript, restarted, answer, jobs, hrefOf }) {
  return html`<section aria-label="Conversation" class="messages">
    <h2 class="hidden">Conversation</h2>
    ${request ? html`<${Before} messages=${request.messages} job=${job} jobs=${jobs} hrefOf=${hrefOf} />` : null}
    ${job.deletedAt ? html`<p class="muted">The content was deleted on ${when(job.deletedAt)}.</p>` : null}
    <${Answer} ...${{ job, request, transcript, restarted, answer }} />
  </section>`;
}

function Answer({ job, request, transcript, restarted, answer }) {
  const now = useNow(isOpen(job.status) ? 500 : 60_000);
  const [view, setView] = useView();
  const [seams, setSeams] = useState(false);
  const [forced, setForced] = useState(false);
  const { content, reasoning } = transcript.texts;
  const tooLong = !forced && content.length > MOST_RENDERED;
  const shown = view === "raw" || tooLong ? "raw" : request?.response_format && request.response_format.type !== "text" ? "json" : "rendered";
  const stretches = useStretches(job, transcript, seams && content.length + reasoning.length > 0);
  const channel = (name, view) => ({ transcript, channel: name, view, open: isOpen(job.status), marks: stretches?.[name], attempts: job.attempts });
  return html`<article class="message assistant" ref=${answer} aria-label="Answer" data-open=${isOpen(job.status)}>
    <div class="who"><h3>${job.model || "Answer"}</h3>
      ${job.deletedAt ? null : html`<${AnswerTools} view=${view} onView=${setView} text=${() => transcript.texts.content} id=${job.jobId} />`}</div>
    <${Seams} job=${job} view=${shown} shown=${seams} onShown=${setSeams} />
    ${restarted ? html`<p class="remark">The answer started over (${restarted}).</p>` : null}
    <details class="reasoning" open=${isOpen(job.status)} hidden=${!reasoning}>
      <summary>Reasoning</summary>
      <${Body} ...${channel("reasoning", view === "raw" || reasoning.length > MOST_RENDERED ? "raw" : "rendered")} />
    </details>
    ${view === "rendered" && tooLong ? html`<${TooLong} length=${content.length} onRender=${() => setForced(true)} />` : null}
    <${Body} ...${channel("content", shown)} large=${forced} data-testid="answer" />
    ${isOpen(job.status) && ((!content && !job.toolCalls?.length) || job.queue) ? html`<p class="waiting muted">${waitingFor(job, now)}</p>` : null}
    ${job.toolCalls?.length ? html`<${JsonBlock} value=${job.toolCalls} />` : null}
    ${job.status === "incomplete" ? html`<p class="remark">The model stopped at a length limit; the text so far is kept.</p>` : null}
    ${job.status === "cancelled" ? html`<p class="remark">Cancelled; the text so far is kept.</p>` : null}
    ${job.error ? html`<div class="trouble"><p><code>${job.error.code}</code> ${job.error.message}</p>
      ${job.error.cause ? html`<p>What kept it from ending in time: <code>${job.error.cause.code}</code> ${job.error.cause.message}</p>` : null}</div>` : null}
  </article>`;
}

function waitingFor(job, now) {
  if (job.queue && !job.queue.expectedStartAt) return `${job.queue.reason === "at_once" ? "Waiting for the end of other calls" : "Paused"}: number ${count(job.queue.position)} in the queue`;
  if (job.queue) return `${WAITING_FOR[job.queue.reason] ?? WAITING_FOR.rate_limit}: ${standing(job.queue, now)}`;
  if (job.status === "queued" && new Date(job.startAt ?? 0) > now) return `Starts ${when(job.startAt)}, in ${span(new Date(job.startAt) - now)}`;
  return job.status === "queued" ? "Queued…" : "Waiting for the first token…";
}

/** The messages before the answer: those of the conversation, whose branches can be chosen, and the job's own. */
function Before({ messages, job, jobs, hrefOf }) {
  const [editing, setEditing] = useState(null);
  const mayWrite = useMay("write");
  const path = useMemo(() => (jobs ? pathTo(jobs, job.jobId) : []), [jobs, job.jobId]);
  const turns = useTurns(messages, path);
  const open = useMemo(() => firstOpen(messages), [messages]);
  const close = (place) => {
    setEditing(null);
    requestAnimationFrame(() => document.getElementById(`edit-${place}`)?.focus());
  };
  return messages.map((message, place) => {
    const turn = turns?.find((one) => place >= one.from && place < one.end);
    const answered = turns?.find((one) => place === one.end);
    if (editing === place) {
      return html`<article key=${place} class="message user" aria-label="user"><h3>You</h3>
        <${EditMessage} ...${{ messages, place, turn, hrefOf }} onClose=${() => close(place)} /></article>`;
    }
    const can = mayWrite && turn && editable(message) !== null;
    const tools = html`${turn && place === turn.from ? html`<${Branches} jobs=${jobs} job=${turn.job} hrefOf=${hrefOf} />` : null}
      ${can ? html`<button type="button" class="quiet" id=${`edit-${place}`} aria-label=${`Edit message ${place + 1}`} onClick=${() => setEditing(place)}>Edit</button>` : null}`;
    return html`<${Message} key=${place} message=${message} job=${answered?.job} folded=${place < open} tools=${tools} />`;
  });
}

/** The place of the first message that is not folded for the length of those after it. */
function firstOpen(messages) {
  let length = 0;
  return messages.findLastIndex(({ content }) => (length += textOf(content).length + thoughtsOf(content).length) > MOST_OPEN) + 1;
}

const NAMES = { user: "You", system: "System", assistant: "Assistant", tool: "Tool" };

/** `job`: the one whose answer it is. What was asked is shown as it was written; what a model wrote, rendered. */
function Message({ message, job, folded, tools }) {
  const text = textOf(message.content);
  const written = message.role === "assistant";
  const [view, setView] = useView();
  const long = text.length > (written && !folded ? LONG_ANSWER : SHORT);
  const thoughts = thoughtsOf(message.content);
  const name = job ? html`<${Link} href=${jobHref(job.jobId)} title=${job.jobId}>${job.model}<//>` : (NAMES[message.role] ?? message.role);
  const words = written ? html`<${Words} text=${text} view=${view} />` : html`<div class="text">${text}</div>`;
  return html`<article class=${`message ${message.role}`} aria-label=${message.role}>
    <div class="who"><h3>${name}</h3>${written && text ? html`<${AnswerTools} view=${view} onView=${setView} text=${() => text} id=${job?.jobId} />` : null}${tools}</div>
    ${thoughts ? html`<details class="reasoning"><summary>Reasoning</summary><${Words} text=${thoughts} view=${view} /></details>` : null}
    ${long ? html`<${Folded} text=${text}>${words}<//>` : words}
    ${message.tool_calls?.length ? html`<${JsonBlock} value=${message.tool_calls} />` : null}
  </article>`;
}

/** A long text by its beginning; made once it is opened. */
function Folded({ text, children }) {
  const [opened, setOpened] = useState(false);
  return html`<details onToggle=${(event) => event.currentTarget.open && setOpened(true)}><summary>${text.slice(0, SHORT / 2)}…</summary>${opened ? children : null}</details>`;
}

const isThought = (part) => part.type === "thinking";

/** A message's content as text, with the type in place of parts that are not text; without thoughts. */
function textOf(content) {
  if (typeof content === "string") return content;
  return (content ?? []).filter((part) => !isThought(part)).map((part) => part.text ?? `[${part.type}]`).join("\n");
}

function thoughtsOf(content) {
  if (typeof content === "string") return "";
  return (content ?? []).filter(isThought).flatMap((part) => part.thinking).map((part) => part.text ?? `[${part.type}]`).join("\n");
}

/** The chat box for the next message of the conversation, which becomes a new job. */
function FollowUp({ job, request, focus, hrefOf }) {
  if (!request || isOpen(job.status)) return null;
  if (job.toolCalls?.length) return html`<p class="muted">The model waits for the answers of its tools. A job with this one as its <code>previousJobId</code> brings them.</p>`;
  if (!job.content?.trim()) return null;
  const { messages, id, jobId, metadata, webhook, startAt, ...rest } = request;
  return html`<${Composer} title="Follow up" placeholder="Follow up…" previous=${job.jobId} rest=${{ ...rest, model: job.model }} focus=${focus} hrefOf=${hrefOf} />`;
}

/** The jobs that go on from this one. */
function Replies({ jobs, id }) {
  const replies = repliesTo(jobs ?? [], id);
  if (!replies.length) return null;
  return html`<${Card} title="The conversation goes on">
    <ul class="facts">${replies.map((one) => html`<li key=${one.jobId}><${Link} href=${jobHref(one.jobId)} title=${one.jobId}>${one.preview ?? shortId(one.jobId)}<//></li>`)}</ul>
  <//>`;
}

// ------------------------------------------------------------------------------------------------------- aside

function Timeline({ job, request, transcript }) {
  useNow(isOpen(job.status) ? 250 : 60_000);
  const steps = stepsOf(job, request, transcript);
  return html`<${Card} title="Timeline">
    <ol class="timeline">
      ${steps.map(
        (step) => html`<li key=${step.name} data-state=${step.state}>
          <i aria-hidden="true" />
          <b>${step.name}</b>
          <span class="muted">${step.note}</span>
          ${step.at ? html`<time datetime=${new Date(step.at).toISOString()} title=${when(step.at)}>${timeOfDay(step.at)}</time>` : null}
        </li>`,
      )}
    </ol>
  <//>`;
}

function stepsOf(job, request, transcript) {
  const open = isOpen(job.status);
  const queued = new Date(job.createdAt).getTime();
  const started = job.startedAt && new Date(job.startedAt).getTime();
  const first = firstTokenOf(job, transcript);
  const stored = job.completedAt && new Date(job.completedAt).getTime();
  const steps = [
    { name: "Queued", at: queued, state: started || stored ? "done" : "now", note: started ? `for ${span(started - queued)}` : "" },
    { name: "First token", at: first, state: first ? "done" : started && open ? "now" : "none", note: first ? `after ${span(first - (started ?? queued))}` : "" },
    { name: "Streaming", at: null, state: stored && first ? "done" : first ? "now" : "none", note: first ? flowOf(job, transcript) : "" },
    {
      name: stored ? label(job.status) : "Stored",
      at: stored,
      state: stored ? (job.status === "failed" ? "failed" : "done") : "none",
      note: stored ? `${span(stored - queued)} in all` : "",
    },
  ];
  return job.deliveries.length || expectsWebhook(job, request) || (open && (request?.callback || request?.webhook)) ? [...steps, webhookStep(job)] : steps;
}

function firstTokenOf(job, transcript) {
  const attempt = job.attempts.find((one) => one.firstTokenMs != null);
  if (attempt) return new Date(attempt.startedAt).getTime() + attempt.firstTokenMs;
  return isOpen(job.status) ? transcript.firstAt : null;
}

function flowOf(job, transcript) {
  const open = isOpen(job.status);
  const speed = open ? transcript.rate : job.attempts.findLast((one) => one.tokensPerSecond != null)?.tokensPerSecond;
  return `${many(open ? transcript.characters : job.position, "character")}${speed == null ? "" : ` · ${rate(speed)}`}`;
}

function webhookStep(job) {
  const delivery = job.deliveries.at(-1);
  if (!delivery) return { name: "Webhook", at: null, state: "none", note: "" };
  const tries = delivery.tries.length === 1 ? "1 try" : `${count(delivery.tries.length)} tries`;
  if (delivery.status === "delivered") return { name: "Webhook", at: delivery.deliveredAt, state: "done", note: `delivered, ${tries}` };
  if (delivery.status === "failed") return { name: "Webhook", at: null, state: "failed", note: `given up, ${tries}` };
  return { name: "Webhook", at: null, state: "now", note: delivery.nextTryAt ? `${tries}, next ${timeOfDay(delivery.nextTryAt)}` : "sending" };
}

function Attempts({ job }) {
  if (!job.attempts.length) return null;
  return html`<${Card} title="Attempts" extra=${html`<span class="number">${job.attempts.length}</span>`}>
    <ul class="facts">
      ${job.attempts.map(
        (one) => html`<li key=${one.number}>
          <p><b>${one.number}</b> <span class="outcome" data-tone=${one.outcome ? (GOOD.has(one.outcome) ? "good" : "bad") : "now"}>${one.outcome ?? "running"}</span>
            ${one.httpStatus ? html`<span class="tag">HTTP ${one.httpStatus}</span>` : null}</p>
          <p class="muted">${[
            one.model,
            one.firstTokenMs != null && `first token ${span(one.firstTokenMs)}`,
            one.tokensPerSecond != null && rate(one.tokensPerSecond),
            one.usage && `${count(one.usage.total_tokens)} tokens${one.estimated ? " (estimated)" : ""}`,
          ].filter(Boolean).join(" · ")}</p>
        </li>`,
      )}
    </ul>
    ${job.wastedTokens ? html`<p class="muted wasted">${many(job.wastedTokens, "token")} wasted${job.usageEstimated ? " (partly estimated)" : ""}: text that was dropped, and prompts that were sent again</p>` : null}
  <//>`;
}

function Deliveries({ job, reload }) {
  const [busy, setBusy] = useState(null);
  const [problem, setProblem] = useState(null);
  const mayWrite = useMay("write");
  if (!job.deliveries.length) return null;
  const retryNow = async (delivery) => {
    setBusy(delivery.id);
    try {
      await client.redeliver(job.jobId, delivery.id);
      say(delivery.status === "pending" ? "The next try is made now" : "It will be delivered again");
      setProblem(null);
    } catch (error) {
      setProblem(error);
    }
    await reload();
    setBusy(null);
  };
  return html`<${Card} title="Webhook">
    ${job.deliveries.map(
      (delivery) => html`<div key=${delivery.id} class="delivery">
        <p class="url">${delivery.url}</p>
        <p class="again"><span class="muted">${delivery.event} · ${delivery.status}${delivery.status === "pending" && delivery.nextTryAt ? `, next try ${timeOfDay(delivery.nextTryAt)}` : ""}</span>
          ${mayWrite ? html`<button type="button" class="quiet" onClick=${() => retryNow(delivery)} disabled=${busy !== null}>${busy === delivery.id ? "Sending…" : "Retry now"}</button>` : null}</p>
        <ul class="facts">
          ${delivery.tries.map(
            (one) => html`<li key=${one.number}>
              <p><b>${one.number}</b> <span class="outcome" data-tone=${one.statusCode >= 200 && one.statusCode < 300 ? "good" : "bad"}>${one.statusCode ? `HTTP ${one.statusCode}` : "no answer"}</span>
                <span class="muted">${span(one.latencyMs)} · ${timeOfDay(one.startedAt)}</span></p>
              ${one.error ? html`<p class="muted">${one.error}</p>` : null}
              ${one.response ? html`<details><summary>Its answer</summary><pre class="code">${one.response}</pre></details>` : null}
            </li>`,
          )}
        </ul>
      </div>`,
    )}
    <${Trouble} problem=${problem} />
  <//>`;
}

function Details({ job, request }) {
  const usage = job.usage;
  const metadata = Object.entries(job.metadata ?? {});
  const toJob = (id) => html`<${Link} href=${`/jobs/${encodeURIComponent(id)}`} title=${id}>${shortId(id)}<//>`;
  return html`<${Card} title="Details">
    <dl>
      ${usage ? html`<dt>Tokens</dt><dd>${count(usage.prompt_tokens)} in, ${count(usage.completion_tokens)} out${job.usageEstimated ? " (partly estimated)" : ""}</dd>` : null}
      ${job.cost ? html`<dt>Cost</dt><dd><${Money} cost=${job.cost} /></dd>` : null}
      ${job.finishReason ? html`<dt>Finish</dt><dd>${job.finishReason}</dd>` : null}
      ${request?.priority && request.priority !== USUAL_PRIORITY ? html`<dt>Priority</dt><dd>${request.priority}</dd>` : null}
      ${job.epoch > 1 ? html`<dt>Epoch</dt><dd>${job.epoch}</dd>` : null}
      <dt>Job</dt><dd class="id">${job.jobId}</dd>
      <dt>Request</dt><dd class="id">${job.requestId}</dd>
      ${job.sha256 && !isOpen(job.status) ? html`<dt>SHA-256</dt><dd class="id" title=${job.sha256}>${job.sha256.slice(0, 16)}…</dd>` : null}
      ${metadata.map(([key, value]) => html`<dt class="key">${key}</dt><dd>${value}</dd>`)}
      ${job.scheduleId ? html`<dt>Schedule</dt><dd><${Link} href=${`/?scheduleId=${encodeURIComponent(job.scheduleId)}`}>${job.scheduleId}<//></dd>` : null}
      ${job.batchId ? html`<dt>Batch</dt><dd><${BatchLink} id=${job.batchId} /></dd>` : null}
      ${job.previousJobId ? html`<dt>Reply to</dt><dd>${toJob(job.previousJobId)}</dd>` : null}
      ${job.thread !== job.jobId ? html`<dt>Thread</dt><dd><${Link} href=${threadHref(job.thread, job.jobId)}>${shortId(job.thread)}<//></dd>` : null}
      ${job.replayOf ? html`<dt>Replay of</dt><dd>${toJob(job.replayOf)}</dd>` : null}
      ${job.replays.length ? html`<dt>Replays</dt><dd class="stack">${job.replays.map(toJob)}</dd>` : null}
    </dl>
  <//>`;
}
