// Selected jobs of the list, and what is done with them: cancel, replay.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { JobFinished, jobs as client, newKey } from "./api.js";
import { choiceOf, isFiltered, keyOf } from "./filters.js";
import { count, isOpen, many, shortId } from "./format.js";
import { Dialog, Trouble, say } from "./parts.js";
import { ReplayMatching } from "./replays.js";
import { Needs } from "./roles.js";

const AT_ONCE = 4; // a browser has six connections to a host, and one is the feed's
const LISTED_AT_ONCE = 500;
const MOST_FAILURES = 5;

/** `all`: every job that matches the filter is selected, also those that are not shown; else `jobs`, of those shown. */
export function useSelection(shown, chosen) {
  const [ids, setIds] = useState(new Set());
  const [all, setAll] = useState(false);
  const last = useRef(null);
  const jobs = shown?.filter((job) => all || ids.has(job.jobId)) ?? [];

  const select = (some, selected) => {
    const next = new Set(jobs.map((job) => job.jobId));
    for (const { jobId } of some) selected ? next.add(jobId) : next.delete(jobId);
    setIds(next);
    setAll(false);
  };
  const toggle = (job, selected, extend) => {
    const [from, to] = [last.current, job.jobId].map((id) => shown.findIndex((one) => one.jobId === id));
    select(extend && from >= 0 ? shown.slice(Math.min(from, to), Math.max(from, to) + 1) : [job], selected);
    last.current = job.jobId;
  };
  const clear = () => {
    setIds(new Set());
    setAll(false);
    last.current = null;
  };
  useEffect(clear, [keyOf(chosen)]); // another filter is another list
  const isSelected = (job) => all || ids.has(job.jobId);
  return { shown, chosen, jobs, all, isSelected, toggle, select, selectAll: () => setAll(true), clear };
}

/** A row's checkbox; with Shift it is for all rows since the last one. */
export const Check = ({ job, selection }) => html`<label class="check">
  <span class="hidden">Select job ${shortId(job.jobId)}</span>
  <input type="checkbox" checked=${selection.isSelected(job)} onClick=${(event) => selection.toggle(job, event.currentTarget.checked, event.shiftKey)} />
</label>`;

export function Selection({ selection }) {
  const [dialog, setDialog] = useState(null);
  const first = useRef(null);
  const done = useRef(false);
  useEffect(() => {
    if (dialog || !done.current) return;
    done.current = false;
    first.current?.focus(); // the button that opened the dialog went with the selection
  }, [dialog]);
  const { shown, chosen, jobs, all } = selection;
  if (!shown?.length && !dialog) return null;
  const matching = isFiltered(chosen) ? "all that match the filter" : "all jobs";
  const number = all ? matching : jobs.length ? many(jobs.length, "job") : "";
  const open = jobs.filter((job) => isOpen(job.status));
  const onClose = () => setDialog(null);
  const onDone = () => {
    done.current = true;
    setDialog(null);
    selection.clear();
  };
  // What is asked for stands when it is asked: the list goes on to change.
  const cancel = () => setDialog(html`<${CancelJobs} ids=${all ? null : idsOf(open)} chosen=${chosen} matching=${matching} onDone=${onDone} onClose=${onClose} />`);
  const replay = () =>
    setDialog(
      all
        ? html`<${ReplayMatching} filter=${filterOf(chosen, shown)} onClose=${onClose} />`
        : html`<${ReplayJobs} ids=${idsOf(jobs)} onDone=${onDone} onClose=${onClose} />`,
    );
  return html`<div class="selection" role="group" aria-label="Selection" data-some=${Boolean(number)}>
    <${CheckShown} selection=${selection} box=${first} />
    <span role="status">${number ? `Selected: ${number}` : ""}</span>
    ${number
      ? html`${all ? null : html`<button type="button" onClick=${selection.selectAll}>Select ${matching}</button>`}
          <${Needs} role="write"><button type="button" class="danger" onClick=${cancel} disabled=${!all && !open.length}>Cancel…</button>
            <button type="button" onClick=${replay}>Replay…</button><//>
          <button type="button" class="quiet" onClick=${() => (selection.clear(), first.current.focus())}>Clear selection</button>`
      : null}
    ${dialog}
  </div>`;
}

const idsOf = (jobs) => jobs.map((job) => job.jobId);

function CheckShown({ selection: { shown, jobs, select }, box }) {
  const some = jobs.length > 0;
  const every = jobs.length === shown.length;
  useEffect(() => {
    box.current.indeterminate = some && !every;
  });
  return html`<label class="check"><input type="checkbox" ref=${box} checked=${every} onClick=${() => select(shown, !every)} />
    <span>Select the ${count(shown.length)} shown</span></label>`;
}

/** The chosen filters as the API takes them in a body. Jobs that came after the newest that is shown are left out. */
function filterOf(chosen, shown) {
  const { search: q, ...filter } = choiceOf(chosen);
  return { until: new Date(Date.parse(shown[0].createdAt) + 1).toISOString(), ...filter, ...(q ? { q } : {}) };
}

// ------------------------------------------------------------------------------------------------ one by one

const CancelJobs = ({ ids, chosen, matching, ...rest }) => html`<${OneByOne} ...${rest}
  title=${ids ? `Cancel ${many(ids.length, "job")}?` : `Cancel ${matching}?`}
  action="Cancel them" done="cancelled" unless="had ended before"
  words=${`Jobs that have ended stay as they are. ${ids ? "" : "More jobs than those shown may match. "}The text that was written so far is kept.`}
  list=${() => ids ?? openJobs(chosen)} work=${(id) => client.cancel(id)} />`;

function ReplayJobs({ ids, ...rest }) {
  const key = useRef(null); // a request repeated after a lost response makes no second replay
  const work = async (id) => {
    key.current ??= newKey();
    await client.replay(id, { idempotencyKey: `${await key.current}-${id}` });
  };
  return html`<${OneByOne} ...${rest} title=${`Replay ${many(ids.length, "job")}?`} action="Replay them" done="replayed"
    words="Each is asked again, as a new job. With “Select all that match the filter”, some are tried first." list=${() => ids} work=${work} />`;
}

/** The ids of the jobs that match the filters and have not ended, each once. Queued ones first: they may start meanwhile. */
async function* openJobs(chosen) {
  const known = new Set();
  const statuses = ["queued", "in_progress"].filter((status) => !chosen.status || chosen.status === status);
  for (const status of statuses) {
    for await (const { jobId } of client.list({ ...choiceOf({ ...chosen, status }), pageSize: LISTED_AT_ONCE })) {
      if (!known.has(jobId)) yield jobId;
      known.add(jobId);
    }
  }
}

/** A dialog that does `work` with each id of `list()` after a confirmation, and stops when it is closed. */
function OneByOne({ title, words, action, done, unless, list, work, onDone, onClose }) {
  const [state, setState] = useState(null);
  const [failed, setFailed] = useState(null);
  const running = useRef(null);
  useEffect(() => () => running.current?.abort(), []);

  const run = async (ids) => {
    running.current = new AbortController();
    const found = { done: 0, ended: 0, failures: [] };
    setFailed(null);
    setState({ ...found });
    const one = async (id) => {
      try {
        await work(id);
        found.done += 1;
      } catch (error) {
        if (unless && error instanceof JobFinished) found.ended += 1;
        else found.failures.push({ id, message: error.message });
      }
      if (!running.current.signal.aborted) setState({ ...found });
    };
    try {
      await withEach(ids, one, running.current.signal);
    } catch (error) {
      found.failures.push({ message: error.message }); // the list could not be read
    }
    if (running.current.signal.aborted) return;
    setState(null);
    if (found.failures.length) return setFailed(found.failures);
    say(`${many(found.done, "job")} ${done}${found.ended ? `, ${count(found.ended)} ${unless}` : ""}`);
    onDone();
  };

  const again = () => (failed?.every((one) => one.id) ? failed.map((one) => one.id) : list());
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <div class="body">
      <p>${words}</p>
      <p role="status">${state ? `${count(state.done)} ${done}${state.ended ? `, ${count(state.ended)} ${unless}` : ""}…` : ""}</p>
      <${Trouble} problem=${failed && { message: `${many(failed.length, "request")} failed.`, problems: failed.slice(0, MOST_FAILURES).map(({ id, message }) => ({ pointer: id, message })) }} />
      <div class="send"><button type="button" class="primary" onClick=${() => run(again())} disabled=${Boolean(state)}>${failed ? "Try again" : action}</button></div>
    </div>
  <//>`;
}

/** Do something with each of some values, a few at once, until the signal. */
async function withEach(values, work, signal) {
  const source = (values[Symbol.asyncIterator] ?? values[Symbol.iterator]).call(values);
  const worker = async () => {
    for (let next = await source.next(); !next.done && !signal.aborted; next = await source.next()) await work(next.value);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}
