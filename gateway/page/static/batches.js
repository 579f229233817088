// All batches: the form for a new one, and a live list.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { jobs } from "./api.js";
import { ago, count, pace, shortId, until, when } from "./format.js";
import { useRowKeys } from "./keys.js";
import { poll } from "./live.js";
import { Heading, Status, Trouble, useNow } from "./parts.js";
import { Link, placeHere } from "./places.js";
import { Bar, isOver, percentOf } from "./progress.js";
import { Needs } from "./roles.js";
import { NewBatch } from "./submit.js";

const PAGE = 50;
const MOST_ROWS = 500;
const LOOK_MS = 2000;

export function BatchesView({ onConnection }) {
  const { batches, more, problem, loadMore } = useBatches(onConnection);
  const place = useRef(placeHere());
  useRowKeys("tr[data-batch]");
  useEffect(() => {
    document.title = "Batches · chatjobs";
  }, []);
  useEffect(() => {
    if (!batches || !place.current) return;
    scrollTo(0, place.current.y); // where the reader left this entry
    place.current = null;
  }, [batches]);
  return html`<main class="list">
    <${Heading} hidden>Batches<//>
    <${Needs} role="write"><${NewBatch} /><//>
    <section class="card jobs batches" aria-label="Batches">
      <h2 class="hidden">All batches</h2>
      <${Trouble} problem=${problem} />
      ${problem && !batches ? null : html`<${Rows} batches=${batches} />`}
      ${more && batches.length < MOST_ROWS ? html`<button type="button" class="more" onClick=${loadMore}>Show older batches</button>` : null}
      ${more && batches.length >= MOST_ROWS ? html`<p class="empty muted">These are ${count(batches.length)} batches, the most that are shown.</p>` : null}
    </section>
  </main>`;
}

/** The newest batches, read again every few seconds. */
function useBatches(onConnection) {
  const [page, setPage] = useState({ batches: null, nextCursor: null });
  const [problem, setProblem] = useState(null);
  const [limit, setLimit] = useState(PAGE);
  useEffect(() => {
    let over = false;
    const look = async () => {
      try {
        const found = await jobs.batches.page({ limit });
        if (!over) {
          setPage(found);
          setProblem(null);
        }
        return true;
      } catch (error) {
        if (!over) setProblem(error);
        return false;
      }
    };
    const stop = poll(look, LOOK_MS, onConnection);
    return () => {
      over = true;
      stop();
      onConnection(null);
    };
  }, [limit]);
  return { batches: page.batches, more: Boolean(page.nextCursor), problem, loadMore: () => setLimit(limit + PAGE) };
}

function Rows({ batches }) {
  const now = useNow();
  if (!batches) return html`<p class="empty muted">Loading…</p>`;
  if (!batches.length) return html`<p class="empty muted">No batches yet. Submit one above, or post lines to <code>/api/batches</code>.</p>`;
  return html`<table>
    <thead>
      <tr><th scope="col">Status</th><th scope="col">Batch</th><th scope="col">Progress</th><th scope="col" class="right">Rate</th><th scope="col" class="right">Expected end</th><th scope="col">Created</th></tr>
    </thead>
    <tbody>${batches.map((batch) => html`<${Row} key=${batch.batchId} batch=${batch} now=${now} />`)}</tbody>
  </table>`;
}

function Row({ batch, now }) {
  const { batchId, name, status, counts } = batch;
  return html`<tr data-batch=${batchId}>
    <td class="c-status"><${Status} status=${status} /></td>
    <td class="c-job"><${Link} href=${`/batches/${encodeURIComponent(batchId)}`} title=${batchId}>${name ?? shortId(batchId)}<//> ${batch.kind === "replay" ? html`<span class="tag">replay</span>` : null}</td>
    <td class="c-progress">
      <${Bar} counts=${counts} title=${`Progress of ${name ?? shortId(batchId)}`} />
      <span>${percentOf(counts)} % of ${count(counts.total)}${counts.failed ? html`<span class="why"> · ${count(counts.failed)} failed</span>` : null}</span>
    </td>
    <td class="c-rate right">${batch.ratePerSecond == null ? html`<span class="muted">–</span>` : pace(batch.ratePerSecond)}</td>
    <td class="c-end right">${endOf(batch, now)}</td>
    <td class="c-created"><time datetime=${batch.createdAt} title=${when(batch.createdAt)}>${ago(batch.createdAt, now)}</time></td>
  </tr>`;
}

function endOf({ status, completedAt, expectedEndAt }, now) {
  if (expectedEndAt) return html`<time datetime=${expectedEndAt}>${until(expectedEndAt, now)}</time>`;
  if (isOver(status) && completedAt) return html`<time datetime=${completedAt} title=${when(completedAt)}>ended ${ago(completedAt, now)}</time>`;
  return html`<span class="muted">–</span>`;
}
