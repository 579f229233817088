// Who uses the lanes: limits, running calls, waiting jobs.

import { html } from "./vendor/htm-preact.js";
import { jobs } from "./api.js";
import { count, timeOfDay } from "./format.js";
import { useLooked } from "./pauses.js";
import { USUAL_PRIORITY } from "./parts.js";

const readLanes = () => jobs.lanes();

/** Lanes that have a limit of their own, or are in use; nothing if there are none. */
export function Lanes() {
  const [found] = useLooked(readLanes);
  const lanes = found?.filter((lane) => lane.running || lane.waiting || lane.atOnce !== null || lane.down) ?? [];
  if (!lanes.length) return null;
  return html`<section class="card lanes" aria-label="Lanes">
    <header><h2>Lanes</h2></header>
    <ul class="facts">${lanes.map((lane) => html`<li key=${lane.lane}><p><b>${lane.lane}</b> ${stateOf(lane)}</p><p class="muted">${usageOf(lane)}</p></li>`)}</ul>
  </section>`;
}

const tag = (words) => html`<span class="tag">${words}</span>`;

function stateOf(lane) {
  if (lane.pauses.some((pause) => !pause.tenant)) return tag("paused");
  if (lane.down) return tag("the model is down");
  return lane.pausedUntil ? tag(`paused by the model until ${timeOfDay(lane.pausedUntil)}`) : null;
}

function usageOf(lane) {
  const running = lane.atOnce === null ? `${count(lane.running)} running` : `${count(lane.running)} of ${count(lane.atOnce)} running`;
  const waiting = lane.waiting ? `${count(lane.waiting)} waiting (${lane.waitingBy.map(whose).join(", ")})` : "nobody waits";
  const tokens = lane.tokensUsed != null && `${count(lane.tokensUsed)} of ${count(lane.tokensPerMinute)} tokens this minute`;
  return [running, `${lane.perSecond} calls per second`, tokens, waiting].filter(Boolean).join(" · ");
}

function whose({ tenant, priority, count: jobs }) {
  return `${count(jobs)} ${tenant}${priority === USUAL_PRIORITY ? "" : `, priority ${priority}`}`;
}
