// All jobs: the chat box, charts, and a live list. The address has the filters.

import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { feed, isPassing, jobs as client } from "./api.js";
import { Charts } from "./charts.js";
import { Composer } from "./chat.js";
import { PRESETS, UNFILTERED, choiceOf, hrefOf, inTime, isFiltered, keyOf, matches, readFilters, timeZone } from "./filters.js";
import { STATUSES, ago, count, isOpen, label, many, shortId, span, when } from "./format.js";
import { Lanes } from "./lanes.js";
import { useKeys, useRowKeys } from "./keys.js";
import { follow } from "./live.js";
import { Money } from "./money.js";
import { BatchLink, Field, Heading, Status, Trouble, useNow } from "./parts.js";
import { Link, go, keepingPlace, leavingList, placeHere } from "./places.js";
import { Check, Selection, useSelection } from "./selection.js";

const PAGE = 50;
const MOST_ROWS = 500;
const REFETCH_MS = 3000;
const TYPING_MS = 300;
const CLOCK_MS = 10_000; // jobs leave “last hour” so often
const CODES_FROM = 500; // failed jobs whose error codes are offered

export function ListView({ address, onConnection }) {
  const chosen = useMemo(() => readFilters(address.searchParams), [address]);
  const { jobs: loaded, fresh, counts, more, problem, loadMore } = useJobs(chosen, onConnection);
  const clock = useNow(CLOCK_MS);
  const jobs = useMemo(() => loaded?.filter((job) => inTime(job, chosen)), [loaded, chosen, clock]);
  usePlace(address, fresh ? jobs : null);
  const selection = useSelection(jobs, chosen);
  useRowKeys("tr[data-job]");
  useKeys({ x: () => toggleRow(), Escape: selection.jobs.length ? selection.clear : undefined });
  useEffect(() => {
    document.title = "Jobs · chatjobs";
  }, []);
  const unread = chosen.troubles.size > 0;
  return html`<main class="list">
    <${Heading} hidden>Jobs<//>
    <${Composer} title="New chat" placeholder="Ask Mistral something…" />
    <${Charts} window=${chosen.window} hrefOf=${(window) => hrefOf({ ...chosen, window })} />
    <${Lanes} />
    <section class="card jobs" aria-label="Jobs">
      <h2 class="hidden">All jobs</h2>
      <${Tabs} chosen=${chosen} counts=${counts} />
      <${Filters} chosen=${chosen} />
      ${unread ? html`<${Unread} troubles=${chosen.troubles} />` : html`<${Trouble} problem=${problem} />`}
      ${chosen.batchId && !unread ? html`<p class="of-batch">Jobs of the batch <${BatchLink} id=${chosen.batchId} /></p>` : null}
      ${unread ? null : html`<${Selection} selection=${selection} />`}
      ${unread || (problem && !jobs?.length) ? null : html`<${Rows} jobs=${jobs} chosen=${chosen} selection=${selection} />`}
      ${more && !unread && jobs?.length < MOST_ROWS
        ? html`<button type="button" class="more" onClick=${loadMore}>Show older jobs</button>`
        : null}
      ${more && !unread && jobs?.length >= MOST_ROWS
        ? html`<p class="empty muted">These are ${count(jobs.length)} jobs, the most that are shown at once. Older ones come with a filter, for example “Until”.</p>`
        : null}
    </section>
  </main>`;
}

/** Select the job of the row that has the focus, or take it out of the selection. */
const toggleRow = () => document.activeElement?.closest("tr[data-job]")?.querySelector('input[type="checkbox"]').click();

/** The view for invalid filters: messages in place of a list. */
const Unread = ({ troubles }) => html`<div class="trouble" role="alert">
  <p><strong>The list is not shown, as ${troubles.size === 1 ? "a filter is" : "some filters are"} not understood.</strong></p>
  <ul>${[...troubles].map(([name, why]) => html`<li id=${`trouble-${name}`}>${why}</li>`)}</ul>
  <p><${Link} href="/">Show all jobs<//></p>
</div>`;

// ------------------------------------------------------------------------------------------------------- place

/** Save the place in the list, and restore it once the rows are loaded. */
function usePlace(address, jobs) {
  const wanted = useRef(null);
  const loaded = useRef(jobs);
  loaded.current = jobs;
  useLayoutEffect(() => {
    wanted.current = placeHere() ?? null;
  }, [address]);
  useEffect(() => keepingPlace(() => ({ rows: loaded.current?.length, ...rowInSight() })), []);
  useLayoutEffect(() => {
    const place = wanted.current;
    if (!jobs || !place) return;
    wanted.current = null;
    const row = rowOf(place.row);
    scrollTo(0, row ? row.getBoundingClientRect().top + scrollY - place.offset : place.y);
    rowOf(place.focus)?.querySelector("a")?.focus({ preventScroll: true });
  }, [jobs, address]);
}

const rowOf = (id) => id && document.querySelector(`tr[data-job="${CSS.escape(id)}"]`);

/** The first row in view, by its job id: newer jobs may be above it when the reader returns. */
function rowInSight() {
  const focus = document.activeElement?.closest?.("tr[data-job]")?.dataset.job;
  const row = scrollY > 0 && [...document.querySelectorAll("tr[data-job]")].find((one) => one.getBoundingClientRect().bottom > 0);
  return row ? { row: row.dataset.job, offset: row.getBoundingClientRect().top, focus } : { focus };
}

// -------------------------------------------------------------------------------------------------------- data

/** The jobs that match, newest first, updated by the feed. */
function useJobs(chosen, onConnection) {
  const [counts, setCounts] = useState(null);
  const [page, setPage] = useState({ key: null, jobs: null, cursor: null });
  const [problem, setProblem] = useState(null);
  const now = useRef(null);
  const failed = useRef(false); // load again once the feed is connected
  const unread = chosen.troubles.size > 0;
  const key = unread ? null : keyOf(chosen);
  const fresh = page.key === key;
  const wanted = useRef(PAGE);
  if (fresh) wanted.current = Math.max(wanted.current, page.jobs?.length ?? 0);
  now.current = { chosen, key };

  /** Load `wanted` rows from the newest on, or the next ones after a cursor. */
  const load = async (cursor) => {
    const asked = now.current.key;
    if (asked === null) return;
    const limit = cursor ? PAGE : Math.min(wanted.current, MOST_ROWS);
    try {
      const found = await client.page({ ...choiceOf(now.current.chosen), limit, cursor });
      if (now.current.key !== asked) return;
      setPage((page) => (cursor ? further(page, cursor, found) : renewed(page, asked, found)));
      setProblem(null);
      failed.current = false;
    } catch (error) {
      if (now.current.key !== asked) return;
      failed.current = isPassing(error);
      if (!failed.current) setPage({ key: asked, jobs: [], cursor: null });
      setProblem(error);
    }
  };
  const loadNow = useRef(load);
  loadNow.current = load;

  useEffect(() => {
    wanted.current = Math.max(PAGE, placeHere()?.rows ?? 0);
    setProblem(null);
    load();
  }, [key]);

  useEffect(() => {
    let again = 0;
    const refetch = () => {
      again ||= setTimeout(() => {
        again = 0;
        loadNow.current();
      }, REFETCH_MS);
    };
    const handlers = {
      hello: (data) => {
        setCounts(data.counts);
        loadNow.current();
      },
      jobs: (data) => {
        setCounts(data.counts);
        setPage((page) => ({ ...page, jobs: page.jobs && merged(page, data.jobs, now.current.chosen) }));
        if (data.more || failed.current || now.current.chosen.q) refetch();
      },
    };
    const stop = follow(feed, (event) => handlers[event.type](event), onConnection);
    return () => {
      stop();
      clearTimeout(again);
      onConnection(null);
    };
  }, []);
  return { ...page, fresh, counts, more: page.cursor, problem, loadMore: () => load(page.cursor) };
}

/** Append the next rows, unless their cursor is no longer the end of the page. */
function further(page, cursor, { jobs, nextCursor }) {
  if (page.cursor !== cursor) return page;
  return { ...page, jobs: [...page.jobs, ...jobs.filter((job) => !page.jobs.some((one) => one.jobId === job.jobId))], cursor: nextCursor };
}

/** Replace the newest rows; keep older ones that were loaded meanwhile. */
function renewed(page, key, { jobs, nextCursor }) {
  const last = jobs.at(-1);
  const older = page.key === key && nextCursor ? page.jobs.filter((job) => newerFirst(job, last) > 0) : [];
  return older.length ? { key, jobs: [...jobs, ...older], cursor: page.cursor } : { key, jobs, cursor: nextCursor };
}

/** Merge changed jobs by order; drop those that no longer match and those older than the page. */
function merged(page, changed, chosen) {
  const known = new Map(page.jobs.map((job) => [job.jobId, job]));
  const oldest = page.cursor && page.jobs.at(-1);
  for (const job of changed) {
    if (!matches(job, chosen)) known.delete(job.jobId);
    else if (chosen.q && !known.has(job.jobId)) continue; // it comes with the list if it has the words
    else if (known.has(job.jobId) || !oldest || newerFirst(job, oldest) < 0) known.set(job.jobId, job);
  }
  return [...known.values()].sort(newerFirst).slice(0, MOST_ROWS);
}

function newerFirst(one, other) {
  if (one.createdAt !== other.createdAt) return one.createdAt < other.createdAt ? 1 : -1;
  return one.jobId < other.jobId ? 1 : -1;
}

// ------------------------------------------------------------------------------------------------------- pieces

function Tabs({ chosen, counts }) {
  const all = counts && Object.values(counts).reduce((sum, one) => sum + one, 0);
  const tab = (status, title, number) => html`<${Link}
    href=${hrefOf({ ...chosen, status })}
    aria-current=${chosen.status === status ? "page" : undefined}
    data-status=${status}
    >${title} <span class="number">${counts ? count(number) : ""}</span><//
  >`;
  return html`<nav class="tabs" aria-label="Status">
    ${tab(null, "All", all)} ${STATUSES.map((status) => tab(status, label(status), counts?.[status]))}
  </nav>`;
}

function Filters({ chosen }) {
  const [typed, setTyped] = useState({});
  const search = useRef(null);
  useKeys({ "/": () => search.current.querySelector('[name="q"]').select() });
  const timer = useRef(0);
  const now = useRef(chosen);
  now.current = chosen;
  useEffect(() => {
    if (!timer.current) setTyped({}); // unless input is pending
  }, Object.keys(UNFILTERED).map((name) => chosen[name]));
  const onInput = (event) => {
    const { name, value } = event.currentTarget;
    const all = { ...typed, [name]: value };
    setTyped(all);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => {
      timer.current = 0;
      go(hrefOf({ ...now.current, ...all }), { replace: true });
    }, TYPING_MS);
  };
  useEffect(() => () => clearTimeout(timer.current), []);
  const field = (name, title, more) => html`<${Field} name=${name} title=${title} spellcheck=${false} autocomplete="off" ...${more}
    trouble=${chosen.troubles.has(name)} value=${typed[name] ?? chosen[name]} onInput=${onInput} />`;
  return html`<form class="filters" role="search" aria-label="Filter jobs" ref=${search} onSubmit=${(event) => event.preventDefault()}>
    ${field("q", "Search", { type: "search", placeholder: "words of prompt or answer", "aria-keyshortcuts": "/" })}
    ${field("model", "Model", { placeholder: "any" })} ${field("metadata", "Metadata", { placeholder: "key=value" })}
    <${ErrorCodes} chosen=${chosen} field=${(more) => field("errorCode", "Error", { placeholder: "any code", ...more })} />
    ${chosen.replayOf ? field("replayOf", "Replays of") : null} ${chosen.thread ? field("thread", "Thread") : null} ${chosen.batchId ? field("batchId", "Batch") : null}
    ${chosen.scheduleId ? field("scheduleId", "Schedule") : null}
    <${Times} chosen=${chosen} field=${field} />
    ${isFiltered({ ...chosen, status: null }) ? html`<${Link} href=${hrefOf({ ...chosen, ...UNFILTERED, status: chosen.status })} class="clear">Clear<//>` : null}
  </form>`;
}

/** The error's code: typed, or one of those that the failed jobs have, which are read when the field is entered. */
function ErrorCodes({ chosen, field }) {
  const [codes, setCodes] = useState([]);
  const onFocus = () => {
    const { errorCode, ...others } = chosen;
    const asked = { ...choiceOf({ ...others, status: "failed" }), limit: CODES_FROM };
    client.page(asked).then(({ jobs }) => setCodes(codesOf(jobs)), () => {}); // a code can be typed all the same
  };
  return html`${field({ list: "error-codes", onFocus })}
    <datalist id="error-codes">${codes.map(([code, number]) => html`<option key=${code} value=${code}>${many(number, "job")}</option>`)}</datalist>`;
}

/** The codes of some jobs with their numbers, the most frequent first. */
function codesOf(jobs) {
  const found = new Map();
  for (const { error } of jobs) if (error) found.set(error.code, (found.get(error.code) ?? 0) + 1);
  return [...found].sort(([, one], [, other]) => other - one);
}

const CUSTOM = "custom";

/** The time that jobs were accepted in: one of some lengths before now, or two times of the reader's own. */
function Times({ chosen, field }) {
  const preset = Object.hasOwn(PRESETS, chosen.since) && !chosen.until;
  const written = Boolean(chosen.since || chosen.until) && !preset;
  const [custom, setCustom] = useState(written);
  useEffect(() => {
    if (written) setCustom(true);
    else if (preset) setCustom(false);
  }, [written, preset]);
  const isCustom = custom && !preset;
  const choose = (event) => {
    const { value } = event.currentTarget;
    setCustom(value === CUSTOM);
    if (value !== CUSTOM) go(hrefOf({ ...chosen, since: value, until: "" }));
    else if (preset) go(hrefOf({ ...chosen, since: "" }));
  };
  return html`<label class="field"><span>Time</span><select name="time" value=${isCustom ? CUSTOM : preset ? chosen.since : ""} onInput=${choose}>
      <option value="">any</option>${Object.entries(PRESETS).map(([value, title]) => html`<option value=${value}>${title}</option>`)}<option value=${CUSTOM}>custom…</option>
    </select></label>
    ${isCustom
      ? html`${field("since", "From", { placeholder: "2026-11-26" })} ${field("until", "Until", { placeholder: "2026-11-27T10:00" })}
          <span class="zone muted">Local time (${timeZone()})</span>`
      : null}`;
}

function Rows({ jobs, chosen, selection }) {
  const now = useNow();
  if (!jobs) return html`<p class="empty muted">Loading…</p>`;
  if (!jobs.length) return html`<${Empty} chosen=${chosen} />`;
  return html`<table>
    <thead>
      <tr><th scope="col"><span class="hidden">Selected</span></th><th scope="col">Status</th><th scope="col">Job</th><th scope="col">Prompt</th><th scope="col">Model</th><th scope="col">Created</th><th scope="col" class="right">Took</th><th scope="col" class="right">Tokens</th></tr>
    </thead>
    <tbody>${jobs.map((job) => html`<${Row} key=${job.jobId} job=${job} now=${now} selection=${selection} />`)}</tbody>
  </table>`;
}

function Row({ job, now, selection }) {
  const from = new Date(job.createdAt);
  const took = job.completedAt ? new Date(job.completedAt) - from : now - from;
  const tags = useMemo(() => Object.entries(job.metadata ?? {}).slice(0, 3), [job]);
  return html`<tr data-job=${job.jobId}>
    <td class="c-check"><${Check} job=${job} selection=${selection} /></td>
    <td class="c-status"><${Status} status=${job.status} /></td>
    <td class="c-job">
      <${Link} href=${`/jobs/${encodeURIComponent(job.jobId)}`} title=${job.jobId} onLeave=${leavingList}>${shortId(job.jobId)}<//>
      ${job.replayOf ? html`<span class="tag">replay</span>` : job.previousJobId ? html`<span class="tag">reply</span>` : null}
      ${job.startAt && job.status === "queued" ? html`<span class="tag" title="startAt">starts ${when(job.startAt)}</span>` : null}
      ${job.scheduleId ? html`<span class="tag" title=${`schedule ${job.scheduleId}`}>${job.scheduleId}</span>` : null}
      ${tags.map(([key, value]) => html`<span class="tag" title=${`${key}=${value}`}>${key}=${value}</span>`)}
      ${job.error ? html`<span class="why">${job.error.code}</span>` : null}
    </td>
    <td class="c-prompt">${job.preview ? html`<span class="preview" title=${job.preview}>${job.preview}</span>` : html`<span class="muted">${job.deletedAt ? "deleted" : "–"}</span>`}</td>
    <td class="c-model">${job.model || "–"}</td>
    <td class="c-created"><time datetime=${job.createdAt} title=${when(job.createdAt)}>${ago(job.createdAt, now)}</time></td>
    <td class="c-took right">${isOpen(job.status) && took < 1000 ? "…" : span(took)}</td>
    <td class="c-tokens right">${job.usage ? html`${count(job.usage.completion_tokens)}<${Money} cost=${job.cost} />` : job.position ? html`<span class="muted">${count(job.position)} chars</span>` : "–"}</td>
  </tr>`;
}

/** What may help a search or filter that finds nothing. */
function adviceOn(chosen) {
  if (chosen.q) return "Each of the words has to be in the prompt or the answer, whole except for the last one; try fewer words.";
  if (chosen.since || chosen.until) return "Try a longer time.";
  return chosen.errorCode ? "The field “Error” offers the codes that there are." : "";
}

function Empty({ chosen }) {
  if (isFiltered(chosen)) {
    return html`<p class="empty muted">No job matches. ${adviceOn(chosen)} <${Link} href=${hrefOf({ ...chosen, ...UNFILTERED })}>Show all<//></p>`;
  }
  return html`<p class="empty muted">No jobs yet. Ask something above, or post to <code>/api/jobs</code>: it shows here at once.</p>`;
}
