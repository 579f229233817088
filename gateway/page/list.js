// All jobs: a chat box, figures, and a list that is live. What is chosen stands in the address.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { call } from "./api.js";
import { Charts, WINDOWS } from "./charts.js";
import { Composer } from "./chat.js";
import { STATUSES, ago, count, isOpen, label, shortId, span, when } from "./format.js";
import { follow } from "./live.js";
import { Field, Link, Status, Trouble, go, useNow } from "./parts.js";

const MOST_ROWS = 500;
const REFETCH_MS = 3000;
const TYPING_MS = 300;

export function ListView({ address, onConnection }) {
  const chosen = readChosen(address.searchParams);
  const { jobs, counts, more, problem, loadMore } = useJobs(chosen, onConnection);
  useEffect(() => {
    document.title = "Jobs · chatjobs";
  }, []);
  return html`<main class="list">
    <h1 class="hidden">Jobs</h1>
    <${Composer} title="New chat" placeholder="Ask Mistral something…" />
    <${Charts} window=${chosen.window} hrefOf=${(window) => hrefOf({ ...chosen, window })} />
    <section class="card jobs" aria-label="Jobs">
      <${Tabs} chosen=${chosen} counts=${counts} />
      <${Filters} chosen=${chosen} />
      <${Trouble} problem=${problem} />
      ${problem && !jobs?.length ? null : html`<${Rows} jobs=${jobs} chosen=${chosen} />`}
      ${more && jobs?.length < MOST_ROWS
        ? html`<button type="button" class="more" onClick=${loadMore}>Show older jobs</button>`
        : null}
    </section>
  </main>`;
}

// ------------------------------------------------------------------------------------------------ what is chosen

function readChosen(query) {
  const status = query.get("status");
  const window = query.get("window");
  return {
    status: STATUSES.includes(status) ? status : null,
    window: Object.hasOwn(WINDOWS, window ?? "") ? window : "1h",
    model: query.get("model") ?? "",
    metadata: query.get("metadata") ?? "",
  };
}

function hrefOf({ status, window, model, metadata }) {
  const query = new URLSearchParams();
  if (status) query.set("status", status);
  if (model) query.set("model", model);
  if (metadata) query.set("metadata", metadata);
  if (window !== "1h") query.set("window", window);
  return query.size ? `/?${query}` : "/";
}

/** `key=value` as a pair; null while it is not one. */
function pairOf(metadata) {
  const [, key, value] = /^\s*([^=]+?)\s*=\s*(.*?)\s*$/.exec(metadata) ?? [];
  return key ? [key, value] : null;
}

function matches(job, { status, model, metadata }) {
  const pair = pairOf(metadata);
  return (!status || job.status === status) && (!model || job.model === model) && (!pair || job.metadata?.[pair[0]] === pair[1]);
}

function listUrl({ status, model, metadata }, cursor) {
  const query = new URLSearchParams({ limit: "50" });
  const pair = pairOf(metadata);
  if (status) query.set("status", status);
  if (model) query.set("model", model);
  if (pair) query.set(`metadata.${pair[0]}`, pair[1]);
  if (cursor) query.set("cursor", cursor);
  return `/api/jobs?${query}`;
}

// -------------------------------------------------------------------------------------------------------- data

/** The jobs that match, newest first, kept up to date by the feed. */
function useJobs(chosen, onConnection) {
  const [counts, setCounts] = useState(null);
  const [page, setPage] = useState({ jobs: null, cursor: null });
  const [problem, setProblem] = useState(null);
  const now = useRef(null);
  const failed = useRef(false); // it may go better as soon as the feed is back
  const key = listUrl(chosen);
  now.current = { chosen, key };

  const load = async (cursor) => {
    const asked = key;
    try {
      const found = await call("GET", listUrl(now.current.chosen, cursor));
      if (now.current.key !== asked) return;
      setPage((page) => ({ jobs: cursor ? [...page.jobs, ...found.jobs.filter((job) => !page.jobs.some((one) => one.jobId === job.jobId))] : found.jobs, cursor: found.nextCursor }));
      setProblem(null);
      failed.current = false;
    } catch (error) {
      if (now.current.key !== asked) return;
      failed.current = !error.status || error.status >= 500;
      if (!failed.current) setPage({ jobs: [], cursor: null });
      setProblem(error);
    }
  };
  const loadNow = useRef(load);
  loadNow.current = load;

  useEffect(() => {
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
        if (now.current.key === listUrl({ metadata: "" })) setPage({ jobs: data.jobs, cursor: data.nextCursor });
        else loadNow.current();
      },
      jobs: (data) => {
        setCounts(data.counts);
        setPage((page) => ({ ...page, jobs: page.jobs && merged(page, data.jobs, (job) => matches(job, now.current.chosen)) }));
        if (data.more || failed.current) refetch();
      },
    };
    const stop = follow("/api/feed", handlers, onConnection);
    return () => {
      stop();
      clearTimeout(again);
      onConnection(null);
    };
  }, []);
  return { ...page, counts, more: page.cursor, problem, loadMore: () => load(page.cursor) };
}

/** Changed jobs put where they belong; those that match no longer go, and what is older than the page stays away. */
function merged(page, changed, wanted) {
  const known = new Map(page.jobs.map((job) => [job.jobId, job]));
  const oldest = page.cursor && page.jobs.at(-1);
  for (const job of changed) {
    if (!wanted(job)) known.delete(job.jobId);
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
  const timer = useRef(0);
  const now = useRef(chosen);
  now.current = chosen;
  useEffect(() => {
    if (!timer.current) setTyped({}); // or somebody is still typing
  }, [chosen.model, chosen.metadata]);
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
  const pairless = chosen.metadata && !pairOf(chosen.metadata);
  return html`<form class="filters" role="search" aria-label="Filter jobs" onSubmit=${(event) => event.preventDefault()}>
    <${Field} name="model" title="Model" placeholder="any" spellcheck=${false} autocomplete="off" value=${typed.model ?? chosen.model} onInput=${onInput} />
    <${Field} name="metadata" title="Metadata" placeholder="key=value" spellcheck=${false} autocomplete="off"
      aria-invalid=${pairless ? "true" : undefined} value=${typed.metadata ?? chosen.metadata} onInput=${onInput} />
    ${chosen.model || chosen.metadata ? html`<${Link} href=${hrefOf({ ...chosen, model: "", metadata: "" })} class="clear">Clear<//>` : null}
  </form>`;
}

function Rows({ jobs, chosen }) {
  const now = useNow();
  if (!jobs) return html`<p class="empty muted">Loading…</p>`;
  if (!jobs.length) return html`<${Empty} chosen=${chosen} />`;
  return html`<table>
    <thead>
      <tr><th scope="col">Status</th><th scope="col">Job</th><th scope="col">Model</th><th scope="col">Created</th><th scope="col" class="right">Took</th><th scope="col" class="right">Tokens</th></tr>
    </thead>
    <tbody>${jobs.map((job) => html`<${Row} key=${job.jobId} job=${job} now=${now} />`)}</tbody>
  </table>`;
}

function Row({ job, now }) {
  const from = new Date(job.createdAt);
  const took = job.completedAt ? new Date(job.completedAt) - from : now - from;
  const tags = useMemo(() => Object.entries(job.metadata ?? {}).slice(0, 3), [job]);
  return html`<tr>
    <td class="c-status"><${Status} status=${job.status} /></td>
    <td class="c-job">
      <${Link} href=${`/jobs/${encodeURIComponent(job.jobId)}`} title=${job.jobId}>${shortId(job.jobId)}<//>
      ${job.replayOf ? html`<span class="tag">replay</span>` : null}
      ${tags.map(([key, value]) => html`<span class="tag" title=${`${key}=${value}`}>${key}=${value}</span>`)}
      ${job.error ? html`<span class="why">${job.error.code}</span>` : null}
    </td>
    <td class="c-model">${job.model || "–"}</td>
    <td class="c-created"><time datetime=${job.createdAt} title=${when(job.createdAt)}>${ago(job.createdAt, now)}</time></td>
    <td class="c-took right">${isOpen(job.status) && took < 1000 ? "…" : span(took)}</td>
    <td class="c-tokens right">${job.usage ? count(job.usage.completion_tokens) : job.position ? html`<span class="muted">${count(job.position)} chars</span>` : "–"}</td>
  </tr>`;
}

function Empty({ chosen }) {
  if (chosen.status || chosen.model || chosen.metadata) {
    return html`<p class="empty muted">No job matches. <${Link} href=${hrefOf({ ...chosen, status: null, model: "", metadata: "" })}>Show all<//></p>`;
  }
  return html`<p class="empty muted">No jobs yet. Ask something above, or post to <code>/api/jobs</code>: it shows here at once.</p>`;
}
