// The progress of a batch: its bar, and its state in words.

import { html } from "./vendor/htm-preact.js";
import { count } from "./format.js";

const OVER = new Set(["completed", "cancelled", "failed"]);
/** The counts of a batch in the order of the bar, with their names on the page. */
export const PARTS = { completed: "completed", failed: "failed", cancelled: "cancelled", running: "running", queued: "waiting" };

/** Whether a batch with this status has ended. */
export const isOver = (status) => OVER.has(status);
export const endedOf = ({ completed, failed, cancelled }) => completed + failed + cancelled;

/** The jobs that have ended in percent; 100 only when all have. */
export const percentOf = (counts) => (counts.total ? Math.floor((100 * endedOf(counts)) / counts.total) : 0);

/** `1,200 of 2,000 ended: 1,180 completed, 20 failed`. */
export function inWords(counts) {
  const parts = Object.entries(PARTS).filter(([name]) => counts[name]);
  return `${count(endedOf(counts))} of ${count(counts.total)} ended: ${parts.map(([name, title]) => `${count(counts[name])} ${title}`).join(", ")}`;
}

export const Bar = ({ counts, title, big = false }) => html`<div class=${`progress ${big ? "big" : ""}`} role="progressbar"
  aria-label=${title} aria-valuemin="0" aria-valuemax=${counts.total} aria-valuenow=${endedOf(counts)} aria-valuetext=${inWords(counts)}>
  ${Object.keys(PARTS).map((name) => (counts[name] ? html`<i key=${name} data-part=${name} style=${{ flexGrow: counts[name] }} />` : null))}
</div>`;
