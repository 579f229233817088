// Schedules: what runs again and again, its next and last runs; pause, resume, trigger, delete, and a form for a new one.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { jobs } from "./api.js";
import { label, span, when } from "./format.js";
import { Dialog, Field, Heading, ModelField, Trouble, say, useNow } from "./parts.js";
import { Link } from "./places.js";
import { Needs } from "./roles.js";

const LOOK_MS = 2000;
const PAGE = 100;
const OVERLAPS = {
  skip: "skip this run",
  buffer_one: "wait, one run at most",
  buffer_all: "wait, all of them",
  cancel_other: "cancel the earlier one",
  terminate_other: "terminate the earlier one",
  allow_all: "run beside it",
};

export function SchedulesView() {
  const { schedules, more, problem, reload, showMore } = useSchedules();
  const [making, setMaking] = useState(false);
  useEffect(() => {
    document.title = "Schedules · chatjobs";
  }, []);
  return html`<main class="list">
    <div class="head">
      <div class="title"><${Heading}>Schedules<//></div>
      <${Needs} role="write"><div class="actions"><button type="button" class="primary" onClick=${() => setMaking(true)}>New schedule…</button></div><//>
    </div>
    <section class="card jobs" aria-label="Schedules">
      <${Trouble} problem=${problem} />
      ${problem && !schedules ? null : html`<${Rows} schedules=${schedules} reload=${reload} />`}
      ${more ? html`<button type="button" class="more" onClick=${showMore}>Show more schedules</button>` : null}
    </section>
    ${making ? html`<${NewSchedule} onClose=${() => setMaking(false)} onMade=${reload} />` : null}
  </main>`;
}

/** The schedules by their ids, loaded again while the tab is visible. */
function useSchedules() {
  const [limit, setLimit] = useState(PAGE);
  const [page, setPage] = useState({ schedules: null, nextCursor: null });
  const [problem, setProblem] = useState(null);
  const newest = useRef(0);
  const reload = async () => {
    const turn = ++newest.current;
    try {
      const found = await jobs.schedules.page({ limit });
      if (turn !== newest.current) return; // a later answer is there, or on its way
      setPage(found);
      setProblem(null);
    } catch (error) {
      if (turn === newest.current) setProblem(error);
    }
  };
  useEffect(() => {
    reload();
    const timer = setInterval(() => document.hidden || reload(), LOOK_MS);
    return () => {
      newest.current += 1;
      clearInterval(timer);
    };
  }, [limit]);
  return { schedules: page.schedules, more: page.nextCursor && limit < 1000, problem, reload, showMore: () => setLimit(1000) };
}

function Rows({ schedules, reload }) {
  const now = useNow();
  if (!schedules) return html`<p class="empty muted">Loading…</p>`;
  if (!schedules.length) return html`<p class="empty muted">No schedules yet. Make one here, or post to <code>/api/schedules</code>.</p>`;
  return html`<table class="schedules">
    <thead>
      <tr><th scope="col">Schedule</th><th scope="col">Runs</th><th scope="col">Next</th><th scope="col">Last runs</th><th scope="col"><span class="hidden">Actions</span></th></tr>
    </thead>
    <tbody>${schedules.map((one) => html`<${Row} key=${one.id} schedule=${one} now=${now} reload=${reload} />`)}</tbody>
  </table>`;
}

function Row({ schedule, now, reload }) {
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const [deleting, setDeleting] = useState(false);
  const { id, paused, note, lastRuns } = schedule;
  const change = async (what, done) => {
    setBusy(true);
    try {
      await jobs.schedules[what](id);
      setProblem(null);
      say(done);
    } catch (error) {
      setProblem(error);
    }
    setBusy(false);
    reload();
  };
  return html`<tr data-schedule=${id}>
    <td class="c-name"><${Link} href=${`/?scheduleId=${encodeURIComponent(id)}`} title=${`Jobs of ${id}`}>${id}<//>
      ${note ? html`<span class="muted note-of">${note}</span>` : null}
      <${Trouble} problem=${problem} />
    </td>
    <td class="c-timing">${timing(schedule)}</td>
    <td class="c-next">${next(schedule, now)}</td>
    <td class="c-runs">${lastRuns.length ? [...lastRuns].reverse().map((run) => html`<${Run} key=${run.jobId ?? run.batchId} run=${run} />`) : html`<span class="muted">–</span>`}</td>
    <td class="c-actions"><${Needs} role="write"><div class="actions">
      <button type="button" disabled=${busy} onClick=${() => change("trigger", `${id} runs now`)}>Run now</button>
      ${paused
        ? html`<button type="button" disabled=${busy} onClick=${() => change("resume", `${id} resumed`)}>Resume</button>`
        : html`<button type="button" disabled=${busy} onClick=${() => change("pause", `${id} paused`)}>Pause</button>`}
      <button type="button" class="danger" onClick=${() => setDeleting(true)}>Delete…</button>
    </div><//>
      ${deleting
        ? html`<${Dialog} title=${`Delete ${id}`} onClose=${() => setDeleting(false)}>
            <form onSubmit=${(event) => (event.preventDefault(), setDeleting(false), change("delete", `${id} deleted`))}>
              <p>It makes no more jobs or batches. Those that it has made stay.</p>
              <div class="send"><button class="danger">Delete ${id}</button></div>
            </form>
          <//>`
        : null}
    </td>
  </tr>`;
}

/** A run as a dot in the colour of its status, with the words for screen readers: a link to its job or batch. */
function Run({ run }) {
  const words = `${label(run.status)}, ${when(run.createdAt)}`;
  const dot = html`<span class="status" data-status=${run.status}><i aria-hidden="true" /><span class="hidden">${words}</span></span>`;
  const place = run.jobId ? `/jobs/${encodeURIComponent(run.jobId)}` : `/batches/${encodeURIComponent(run.batchId)}`;
  return html`<${Link} href=${place} class="run" title=${words}>${dot}<//>`;
}

function timing({ cron, every, timezone }) {
  if (every != null) return `every ${interval(every)}`;
  return html`<code>${cron}</code> <span class="muted">${timezone}</span>`;
}

/** A length of time in seconds, in its units without zeros: `1 h 30 min`. */
function interval(seconds) {
  const parts = { d: Math.floor(seconds / 86400), h: Math.floor(seconds / 3600) % 24, min: Math.floor(seconds / 60) % 60, s: seconds % 60 };
  return Object.entries(parts).filter(([, value]) => value).map(([unit, value]) => `${value} ${unit}`).join(" ");
}

function next({ paused, pending, nextRuns }, now) {
  if (paused) return html`<span class="tag">paused</span>`;
  const time = nextRuns.find((one) => new Date(one) > now);
  if (!time) return html`<span class="muted">${pending ? "when Temporal has it" : "–"}</span>`;
  return html`<time datetime=${time} title=${when(time)}>${upcoming(time, now)}</time>`;
}

function upcoming(time, now) {
  const ms = new Date(time) - now;
  return ms < 24 * 3600 * 1000 ? `in ${span(Math.ceil(ms / 1000) * 1000)}` : when(time);
}

function NewSchedule({ onClose, onMade }) {
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const [kind, setKind] = useState("cron");
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      const made = await jobs.schedules.create(...scheduleOf(event.currentTarget, kind));
      say(`${made.id} is there`);
      onMade();
      onClose();
    } catch (error) {
      setProblem(error);
      setBusy(false);
    }
  };
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  return html`<${Dialog} title="New schedule" onClose=${onClose}>
    <form onSubmit=${submit}>
      <label class="field"><span>What each run asks</span><textarea name="prompt" rows="3" required></textarea></label>
      <div class="fields">
        <${Field} name="id" title="Id" hint="optional" pattern="[\\w\\-]{1,64}" placeholder="daily-report" spellcheck=${false} autocomplete="off" />
        <${ModelField} initial="mistral-small-latest" list="schedule-models" />
        <label class="field"><span>Runs</span>
          <select name="kind" onChange=${(event) => setKind(event.currentTarget.value)}>
            <option value="cron">by the clock</option><option value="every">at an interval</option>
          </select>
        </label>
        ${kind === "cron"
          ? html`<${Field} name="cron" title="Cron" hint="five fields" initial="0 2 * * *" required spellcheck=${false} autocomplete="off" />
              <${Field} name="timezone" title="Time zone" initial=${zone} required spellcheck=${false} autocomplete="off" />`
          : html`<${Field} name="every" title="Every" hint="90s, 15m, 2h, 7d" initial="1h" required spellcheck=${false} autocomplete="off" />`}
        <label class="field"><span>While one still runs</span>
          <select name="overlap">${Object.entries(OVERLAPS).map(([value, title]) => html`<option value=${value}>${title}</option>`)}</select>
        </label>
      </div>
      <${Trouble} problem=${problem} />
      <div class="send"><button class="primary" disabled=${busy}>${busy ? "Saving…" : "Save"}</button></div>
    </form>
  <//>`;
}

/** The request of each run, and the schedule. */
function scheduleOf(form, kind) {
  const given = Object.fromEntries(new FormData(form));
  const clock = kind === "cron" ? { cron: given.cron, timezone: given.timezone.trim() } : { every: given.every.trim() };
  const id = given.id.trim() ? { id: given.id.trim() } : {};
  const request = { model: given.model.trim(), messages: [{ role: "user", content: given.prompt }] };
  return [request, { ...id, ...clock, overlap: given.overlap }];
}
