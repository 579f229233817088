// One batch: its progress, its errors, its output, and what can be done with it.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { BatchNotFound, jobs, streams } from "./api.js";
import { hrefOf } from "./filters.js";
import { ago, count, label, many, pace, shortId, span, until, webAddress, when } from "./format.js";
import { follow, poll } from "./live.js";
import { Money } from "./money.js";
import { Alone, Card, Dialog, Heading, Status, Trouble, say, useNow } from "./parts.js";
import { Link } from "./places.js";
import { Bar, PARTS, endedOf, inWords, isOver, percentOf } from "./progress.js";
import { useMay } from "./roles.js";

const RETRY_MS = 2000;
const AFTER_END_MS = 5000;
const REST_MS = 1000;
/** The status of the jobs that a count is of, in the list of jobs. */
const LISTED = { completed: "completed", failed: "failed", cancelled: "cancelled", running: "in_progress", queued: "queued" };

export function BatchView({ id, onConnection }) {
  const { batch, problem, reload } = useBatch(id, onConnection);
  const title = batch && (batch.name ?? shortId(id));
  const state = batch && (isOver(batch.status) ? label(batch.status) : `${percentOf(batch.counts)} %`);
  useEffect(() => {
    document.title = batch ? `${state} · ${title}` : shortId(id);
  }, [id, state, title]);
  if (!batch || problem instanceof BatchNotFound) return html`<${NoBatch} id=${id} problem=${problem} />`;
  return html`<main class="batch">
    <${Head} batch=${batch} title=${title} reload=${reload} />
    <${Trouble} problem=${problem} />
    <div class="columns">
      <div class="talk">
        <${Progress} batch=${batch} />
        <${Errors} batch=${batch} />
        <${Files} batch=${batch} />
      </div>
      <aside aria-label="About this batch"><${Details} batch=${batch} /></aside>
    </div>
    <p class="hidden" role="status" aria-live="polite">${announced(batch)}</p>
  </main>`;
}

function NoBatch({ id, problem }) {
  if (!problem) return html`<main class="alone"><h1 class="hidden">Batch</h1><p class="muted">Loading…</p></main>`;
  const back = html`<p><${Link} href="/batches">All batches<//></p>`;
  if (!(problem instanceof BatchNotFound)) {
    return html`<${Alone} title="The batch is not shown"><${Trouble} problem=${problem} /><p class="muted">The page keeps trying.</p>${back}<//>`;
  }
  return html`<${Alone} title="No such batch"><p>There is no batch with this id here. It may have been removed, it may belong to another tenant, or the address is not whole.</p><p class="id">${id}</p>${back}<//>`;
}

/** For screen readers, in steps of ten percent: each half second would be too often. */
function announced({ status, counts }) {
  if (isOver(status)) return `The batch is ${label(status).toLowerCase()}: ${inWords(counts)}`;
  if (status === "paused") return "The batch is paused";
  return `${Math.floor(percentOf(counts) / 10) * 10} percent done`;
}

// -------------------------------------------------------------------------------------------------------- data

/** The batch, updated by its events while it runs; polled after its end, as its jobs may go on. */
function useBatch(id, onConnection) {
  const [batch, setBatch] = useState(null);
  const [problem, setProblem] = useState(null);
  const known = Boolean(batch);
  const running = known && !isOver(batch.status);
  const gone = problem instanceof BatchNotFound;

  const reload = () =>
    jobs.batches.get(id).then(
      (found) => (setBatch(found), setProblem(null), true),
      (error) => (setProblem(error), false),
    );
  useEffect(() => {
    if (gone) return undefined;
    if (!running) return poll(reload, known ? AFTER_END_MS : RETRY_MS, (state) => onConnection(known && state === "live" ? "ended" : state));
    const take = (data) => setBatch((before) => ({ ...before, ...data }));
    const tell = (state) => {
      onConnection(state);
      if (state === "ended") reload();
    };
    return follow((options) => streams.batches.watch(id, options), take, tell);
  }, [id, known, running, gone]);
  useEffect(() => () => onConnection(null), [id]);

  useRest(batch, ({ errorsByCode, phase, stopped }) => setBatch((before) => ({ ...before, errorsByCode, phase, stopped })));
  return { batch, problem, reload };
}

/** Read again what the events do not have: the errors by code once more have come, and the phase of a replay. */
function useRest(batch, onFound) {
  const timer = useRef(0);
  useEffect(() => {
    if (!batch || (batch.counts.failed === failuresOf(batch) && batch.phase !== "canary")) return;
    timer.current ||= setTimeout(() => {
      timer.current = 0;
      jobs.batches.get(batch.batchId).then(onFound, () => {}); // the next event may succeed
    }, REST_MS);
  }, [batch && endedOf(batch.counts)]);
  useEffect(() => () => clearTimeout(timer.current), []);
}

const failuresOf = ({ errorsByCode }) => Object.values(errorsByCode).reduce((sum, one) => sum + one, 0);

// -------------------------------------------------------------------------------------------------------- head

function Head({ batch, title, reload }) {
  const [asking, setAsking] = useState(false);
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(null);
  const over = isOver(batch.status);
  const unanswered = batch.counts.failed + batch.counts.cancelled;
  const run = webAddress(batch.temporalUrl);
  const mayWrite = useMay("write");
  useEffect(() => setBusy(null), [batch.status]);

  const act = async (action) => {
    setAsking(false);
    setBusy(action);
    try {
      await jobs.batches[action](batch.batchId);
      setProblem(null);
    } catch (error) {
      setProblem(error);
      setBusy(null);
    }
    await reload();
    if (action !== "cancel") setBusy(null); // a cancel takes until its jobs have ended
  };
  const button = (action, words, doing) => html`<button type="button" onClick=${() => act(action)} disabled=${busy !== null}>${busy === action ? doing : words}</button>`;

  return html`<div class="head">
    <${Link} href="/batches" class="back">← Batches<//>
    <div class="title">
      <${Heading}>${title}<//>
      <${Status} status=${batch.status} pill />
    </div>
    <div class="actions">
      ${!mayWrite || over || batch.status === "paused" ? null : button("pause", "Pause", "Pausing…")}
      ${mayWrite && batch.status === "paused" ? button("resume", "Resume", "Resuming…") : null}
      ${mayWrite && over && unanswered ? button("resume", `Resume ${many(unanswered, "job")}`, "Resuming…") : null}
      ${!mayWrite || over ? null : html`<button type="button" class="danger" onClick=${() => setAsking(true)} disabled=${busy !== null}>${busy === "cancel" ? "Cancelling…" : "Cancel…"}</button>`}
      ${run ? html`<a class="button" href=${run} target="_blank" rel="noopener noreferrer">Temporal ↗</a>` : null}
    </div>
    <${Trouble} problem=${problem} />
    ${asking ? html`<${ConfirmCancel} batch=${batch} onYes=${() => act("cancel")} onClose=${() => setAsking(false)} />` : null}
  </div>`;
}

function ConfirmCancel({ batch, onYes, onClose }) {
  const left = batch.counts.total - endedOf(batch.counts);
  return html`<${Dialog} title="Cancel the batch?" onClose=${onClose}>
    <div class="body">
      <p>${many(left, "job")} that ${left === 1 ? "has" : "have"} not ended will be cancelled. What has been answered stays.</p>
      <div class="send"><button type="button" class="danger" onClick=${onYes}>Cancel the batch</button></div>
    </div>
  <//>`;
}

// -------------------------------------------------------------------------------------------------------- body

function Progress({ batch }) {
  const now = useNow();
  const { batchId, status, counts } = batch;
  const end = endOf(batch, now);
  return html`<section class="card overall" aria-label="Progress">
    <h2 class="hidden">Progress</h2>
    <p class="figures"><strong>${percentOf(counts)} %</strong><span class="muted">${count(endedOf(counts))} of ${many(counts.total, "job")} ended</span></p>
    <${Bar} counts=${counts} title="Progress of the batch" big />
    <ul class="counts" aria-label="Jobs by status">
      ${Object.entries(PARTS).map(
        ([name, title]) => html`<li key=${name}><${Link} href=${hrefOf({ batchId, status: LISTED[name] })} data-count=${name}>
          <i data-part=${name} aria-hidden="true" /><b>${count(counts[name])}</b> ${title}<//></li>`,
      )}
      <li><${Link} href=${hrefOf({ batchId })}>All jobs<//></li>
    </ul>
    <dl class="pace">
      <div><dt>Rate</dt><dd data-testid="rate">${pace(batch.ratePerSecond)}</dd></div>
      <div><dt>${end.title}</dt><dd data-testid="end">${end.text}</dd></div>
      ${batch.cost && isOver(status) ? html`<div><dt>Cost</dt><dd data-testid="cost"><${Money} cost=${batch.cost} /></dd></div>` : null}
      <div><dt>Tokens</dt><dd>${batch.usage ? `${count(batch.usage.prompt_tokens)} in, ${count(batch.usage.completion_tokens)} out` : "–"}</dd></div>
    </dl>
    ${status === "paused" ? html`<p class="remark">Paused: no further job begins; those that run finish.</p>` : null}
    ${batch.phase === "canary" && !isOver(status) ? html`<p class="remark">${batch.canary === 1 ? "The first job is tried" : `The first ${count(batch.canary)} jobs are tried`}; the others follow unless too many of these fail.</p>` : null}
    ${batch.stopped ? html`<div class="trouble"><p>The replay was stopped: ${batch.stopped}</p></div>` : null}
    ${batch.error && !batch.stopped ? html`<div class="trouble"><p><code>${batch.error.code}</code> ${batch.error.message}</p></div>` : null}
  </section>`;
}

function endOf({ createdAt, startedAt, completedAt, expectedEndAt, status }, now) {
  if (completedAt && isOver(status)) return { title: "Took", text: span(new Date(completedAt) - new Date(startedAt ?? createdAt)) };
  return { title: "Expected end", text: expectedEndAt ? until(expectedEndAt, now) : "not known yet" };
}

function Errors({ batch }) {
  const codes = Object.entries(batch.errorsByCode).sort(([, one], [, other]) => other - one);
  if (!codes.length) return null;
  const { batchId } = batch;
  return html`<${Card} title="Errors" extra=${html`<span class="number">${count(failuresOf(batch))}</span>`}>
    <ul class="chips">
      ${codes.map(([errorCode, number]) => html`<li key=${errorCode}><${Link} class="chip" href=${hrefOf({ batchId, status: "failed", errorCode })}><code>${errorCode}</code> <b>${count(number)}</b><//></li>`)}
    </ul>
  <//>`;
}

function Files({ batch }) {
  const { batchId, status, counts } = batch;
  const failures = counts.failed + counts.cancelled;
  const file = (which, title, number) => html`<a class="button" href=${`/api/batches/${batchId}/${which}`} download>${title} <span class="number">${many(number, "line")}</span></a>`;
  return html`<${Card} title="Output">
    <div class="files">${file("output", "Download output", counts.completed)} ${file("errors", "Download errors", failures)}</div>
    ${isOver(status) ? null : html`<p class="muted">They have what has ended so far.</p>`}
  <//>`;
}

function Details({ batch }) {
  const now = useNow(10_000);
  const time = (at) => html`<time datetime=${at} title=${when(at)}>${ago(at, now)}</time>`;
  return html`<${Card} title="Details">
    <dl>
      <dt>Batch</dt><dd class="id">${batch.batchId}</dd>
      <dt>Created</dt><dd>${time(batch.createdAt)}</dd>
      ${batch.startedAt ? html`<dt>Started</dt><dd>${time(batch.startedAt)}</dd>` : null}
      ${batch.completedAt ? html`<dt>Ended</dt><dd>${time(batch.completedAt)}</dd>` : null}
      <dt>At once</dt><dd>${batch.concurrency ? many(batch.concurrency, "job") : "as many as the workers can"}</dd>
      ${batch.lane === "live" ? null : html`<dt>Lane</dt><dd>${batch.lane}</dd>`}
      ${batch.canary ? html`<dt>Tried first</dt><dd>${many(batch.canary, "job")}</dd>` : null}
      ${batch.maxErrorRate == null ? null : html`<dt>Stops above</dt><dd>${Number((batch.maxErrorRate * 100).toFixed(2))} % of errors</dd>`}
      ${batch.skipped ? html`<dt>Left out</dt><dd>${many(batch.skipped, "job")} without a kept request</dd>` : null}
      ${batch.deadline ? html`<dt>Deadline</dt><dd>${when(batch.deadline)}</dd>` : null}
    </dl>
  <//>`;
}
