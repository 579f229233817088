// The replay of all jobs that match a filter: first what it would do, then a canary, then the rest.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { isAway, jobs, newKey } from "./api.js";
import { count, many, shortId } from "./format.js";
import { Dialog, Field, ModelField, Trouble } from "./parts.js";
import { Link, go, leavingList } from "./places.js";

const CANARY = 10;
const ERROR_PERCENT = 10;
const IDS_SHOWN = 5;

export function ReplayMatching({ filter, onClose }) {
  const [dry, setDry] = useState(null);
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const [asked] = useState(filter); // what was counted is what is replayed, whatever comes meanwhile
  const key = useRef(null);
  useEffect(() => {
    jobs.estimateReplay(asked).then(setDry, setProblem);
  }, []);

  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setProblem(null);
    try {
      const bounds = boundsOf(new FormData(event.currentTarget));
      key.current ??= await newKey();
      const made = await jobs.replayAll({ ...asked, ...bounds, idempotencyKey: key.current });
      leavingList();
      go(`/batches/${encodeURIComponent(made.batchId)}`);
    } catch (error) {
      if (!isAway(error)) key.current = null; // the corrected request needs another idempotency key
      setProblem(error);
      setBusy(false);
    }
  };
  return html`<${Dialog} title="Replay all that match" onClose=${onClose}>
    <form onSubmit=${submit}>
      <div role="status">${dry ? html`<${DryRun} dry=${dry} />` : problem ? null : html`<p class="muted">Counting…</p>`}</div>
      ${dry?.count
        ? html`<div class="fields">
              <${Field} name="canary" title="Try first" hint="jobs" type="number" min="1" max=${dry.count} step="1" initial=${Math.min(CANARY, dry.count)} />
              <${Field} name="errors" title="Stop above" hint="% of errors" type="number" min="0" max="100" step="any" initial=${ERROR_PERCENT} required />
              <${ModelField} initial="" list="models-replays" required=${false} placeholder="as each job has it" />
            </div>
            <p class="muted">The rest follows once the first ones have ended, at the pace of its lane, unless more of them fail than that.</p>`
        : null}
      <${Trouble} problem=${problem} />
      <div class="send"><button class="primary" disabled=${busy || !dry?.count}>${dry?.count ? `Replay ${many(dry.count, "job")}` : "Replay"}</button></div>
    </form>
  <//>`;
}

function DryRun({ dry }) {
  if (!dry.count) return html`<p>No job that matches has ended and can be replayed.</p>`;
  const ids = dry.firstJobIds.slice(0, IDS_SHOWN);
  return html`<p><b>${many(dry.count, "job")}</b>${dry.estimatedTokens == null ? "; what they take is not known" : html`, about <b>${count(dry.estimatedTokens)}</b> tokens by what they took the first time`}.</p>
    ${dry.skipped ? html`<p>${many(dry.skipped, "job")} cannot be replayed: they were deleted, or their request was not kept.</p>` : null}
    <p class="muted">${ids.map((id) => html`<${Link} key=${id} href=${`/jobs/${encodeURIComponent(id)}`} title=${id} onLeave=${leavingList}><code>${shortId(id)}</code><//> `)}${dry.count > ids.length ? "…" : ""}</p>`;
}

/** The bounds and changes in the form. `maxErrorRate` is a share: 0.1 for a tenth. */
function boundsOf(given) {
  const bounds = { maxErrorRate: Number(given.get("errors")) / 100 };
  if (given.get("canary")) bounds.canary = Number(given.get("canary"));
  if (given.get("model").trim()) bounds.overrides = { model: given.get("model").trim() };
  return bounds;
}
