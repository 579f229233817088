// What is paused: a banner on every view, with a button to resume.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import { jobs } from "./api.js";
import { when } from "./format.js";
import { poll } from "./live.js";
import { Trouble, say } from "./parts.js";
import { useMay } from "./roles.js";

const LOOK_MS = 2000;

/** What `read` gives, read again every so often while the tab is visible, and a function to read it now. */
export function useLooked(read) {
  const [found, set] = useState(null);
  const look = () => read().then(set, () => {}); // the feed reports a service that is not there
  useEffect(() => poll(look, LOOK_MS), [read]);
  return [found, look];
}

const readPauses = () => jobs.pauses();

export function Pauses() {
  const [found, look] = useLooked(readPauses);
  const [problem, setProblem] = useState(null);
  const mayWrite = useMay("write");
  if (!found?.length) return null;
  const resume = (pause) =>
    jobs.endPause(pause.pauseId).then(
      () => (setProblem(null), say("Resumed"), look()),
      (error) => setProblem(error),
    );
  return html`<section class="pauses" aria-label="Paused" role="status">
    ${found.map(
      (pause) => html`<div key=${pause.pauseId} class="pause">
        <p><strong>${title(pause)}</strong> since <time datetime=${pause.pausedAt}>${when(pause.pausedAt)}</time>${pause.reason ? html`: ${pause.reason}` : "."}
          <span class="muted"> Answers that are being written go on; other jobs wait.</span></p>
        ${!mayWrite ? null : pause.mayResume ? html`<button type="button" onClick=${() => resume(pause)}>Resume</button>` : html`<span class="muted">An operator resumes it.</span>`}
      </div>`,
    )}
    <${Trouble} problem=${problem} />
  </section>`;
}

function title({ lane, tenant }) {
  if (!lane && !tenant) return "Everything is paused";
  const parts = [tenant && `Tenant ${tenant}`, lane && `${tenant ? "in lane" : "Lane"} ${lane}`];
  return `${parts.filter(Boolean).join(" ")} is paused`;
}
