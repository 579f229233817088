// Components shared by several views.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { InvalidRequest, isAway } from "./api.js";
import { label, shortId } from "./format.js";
import { Link, takeArrival } from "./places.js";

// ---------------------------------------------------------------------------------------------------- focus

/** The heading of a view. It gets the focus after navigation by a link or by the back button. */
export function Heading({ hidden = false, children }) {
  const ref = useRef(null);
  useEffect(() => {
    if (takeArrival()) ref.current.focus({ preventScroll: true });
  }, []);
  return html`<h1 ref=${ref} tabindex="-1" class=${hidden ? "hidden" : undefined}>${children}</h1>`;
}

/** A view with a message only: heading, explanation and links. */
export const Alone = ({ title, children }) => html`<main class="alone"><div class="note"><${Heading}>${title}<//>${children}</div></main>`;

// ----------------------------------------------------------------------------------------------------- time

/** The current time, updated every so many milliseconds while the tab is visible. */
export function useNow(every = 1000) {
  const [now, set] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => document.hidden || set(Date.now()), every);
    return () => clearInterval(timer);
  }, [every]);
  return now;
}

// --------------------------------------------------------------------------------------------------- pieces

export const Status = ({ status, pill = false }) =>
  html`<span class=${`status ${pill ? "pill" : ""}`} data-status=${status}><i aria-hidden="true" />${label(status)}</span>`;

export const BatchLink = ({ id }) => html`<${Link} href=${`/batches/${encodeURIComponent(id)}`} title=${id}>${shortId(id)}<//>`;

/** What a problem is, without its details, which follow. */
function wordsOf(problem) {
  if (problem instanceof InvalidRequest) return InvalidRequest.usualMessage;
  return isAway(problem) ? "The service is not reachable" : problem.message;
}

/** The message of a problem, announced by screen readers; nothing without a problem. */
export function Trouble({ problem }) {
  if (!problem) return null;
  return html`<div class="trouble" role="alert">
    <p>${wordsOf(problem)}</p>
    ${problem.problems?.length
      ? html`<ul>${problem.problems.map((e) => html`<li>${e.pointer ? html`<code>${e.pointer}</code> ` : ""}${e.message}</li>`)}</ul>`
      : null}
  </div>`;
}

export const Card = ({ title, children, extra, ...rest }) => html`<section class="card" aria-label=${title} ...${rest}>
  <header><h2>${title}</h2>${extra}</header>
  ${children}
</section>`;

/** `initial` is the first value; with `value`, each rendering would overwrite the input. */
export function Field({ name, title, hint, initial, trouble, ...input }) {
  const described = trouble ? { "aria-invalid": "true", "aria-describedby": `trouble-${name}` } : {};
  const value = initial === undefined ? {} : { defaultValue: initial };
  return html`<label class="field">
    <span>${title}${hint ? html` <small>${hint}</small>` : null}</span>
    <input name=${name} ...${value} ...${described} ...${input} />
  </label>`;
}

export const USUAL_PRIORITY = 3;
const PRIORITIES = { 1: "1, first", 2: "2", 3: "3, usual", 4: "4", 5: "5, last" };

export const PriorityField = ({ initial = USUAL_PRIORITY }) => html`<label class="field">
  <span>Priority</span>
  <select name="priority">${Object.entries(PRIORITIES).map(([value, title]) => html`<option value=${value} selected=${value === String(initial)}>${title}</option>`)}</select>
</label>`;

export const MODELS = [
  "mistral-small-latest",
  "mistral-medium-latest",
  "mistral-large-latest",
  "magistral-medium-latest",
  "codestral-latest",
  "ministral-8b-latest",
];

export const ModelField = ({ initial, list = "models", hint, required = true, placeholder }) => html`<label class="field">
  <span>Model${hint ? html` <small>${hint}</small>` : null}</span>
  <input name="model" list=${list} spellcheck=${false} autocomplete="off" defaultValue=${initial} required=${required} placeholder=${placeholder} />
  <datalist id=${list}>${MODELS.map((model) => html`<option value=${model} />`)}</datalist>
</label>`;

/** A modal dialog: the browser keeps the focus in it, and Escape closes it. */
export function Dialog({ title, onClose, children }) {
  const ref = useRef(null);
  useEffect(() => ref.current.showModal(), []);
  return html`<dialog ref=${ref} aria-label=${title} onClose=${onClose}>
    <header><h2>${title}</h2><button type="button" class="quiet" onClick=${() => ref.current.close()}>Close</button></header>
    ${children}
  </dialog>`;
}

// ---------------------------------------------------------------------------------------------- saying things

const said = new EventTarget();

/** A short notice, shown for a moment and announced by screen readers. */
export const say = (text) => said.dispatchEvent(new CustomEvent("said", { detail: text }));

export function Notices() {
  const [text, set] = useState("");
  useEffect(() => {
    let timer = 0;
    const show = (event) => {
      set(event.detail);
      clearTimeout(timer);
      timer = setTimeout(() => set(""), 4000);
    };
    said.addEventListener("said", show);
    return () => said.removeEventListener("said", show);
  }, []);
  return html`<div class="notice" role="status" aria-live="polite" data-shown=${Boolean(text)}>${text}</div>`;
}

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(`${what} copied`);
    return true;
  } catch {
    return false; // not allowed, or the page came over plain HTTP
  }
}
