// What several views are made of.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { label } from "./format.js";

// ------------------------------------------------------------------------------------------------ addresses

const moved = new EventTarget();

export function go(url, { replace = false } = {}) {
  if (url === location.pathname + location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", url);
  moved.dispatchEvent(new Event("moved"));
  if (!replace) scrollTo(0, 0);
}

/** Where we are; changes with links, the back button and `go`. */
export function useAddress() {
  const [address, set] = useState(() => new URL(location.href));
  useEffect(() => {
    const look = () => set(new URL(location.href));
    addEventListener("popstate", look);
    moved.addEventListener("moved", look);
    return () => {
      removeEventListener("popstate", look);
      moved.removeEventListener("moved", look);
    };
  }, []);
  return address;
}

/** A real link, so that it opens in new tabs too, which stays on the page for a plain click. */
export function Link({ href, children, ...rest }) {
  const onClick = (event) => {
    if (event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    go(href);
  };
  return html`<a href=${href} onClick=${onClick} ...${rest}>${children}</a>`;
}

// ----------------------------------------------------------------------------------------------------- time

/** The time, again every so many milliseconds while the tab is seen. */
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

/** What went wrong, where it can be heard; nothing without a problem. */
export function Trouble({ problem }) {
  if (!problem) return null;
  return html`<div class="trouble" role="alert">
    <p>${problem.message}</p>
    ${problem.errors?.length
      ? html`<ul>${problem.errors.map((e) => html`<li>${e.pointer ? html`<code>${e.pointer}</code> ` : ""}${e.message}</li>`)}</ul>`
      : null}
  </div>`;
}

export const Card = ({ title, children, extra, ...rest }) => html`<section class="card" aria-label=${title} ...${rest}>
  <header><h2>${title}</h2>${extra}</header>
  ${children}
</section>`;

/** `initial` is what stands in it at first; a `value` would be put there again whenever something else changes. */
export function Field({ name, title, hint, initial, ...input }) {
  const value = initial === undefined ? {} : { defaultValue: initial };
  return html`<label class="field">
    <span>${title}${hint ? html` <small>${hint}</small>` : null}</span>
    <input name=${name} ...${value} ...${input} />
  </label>`;
}

export const USUAL_PRIORITY = 3;
const PRIORITIES = { 1: "1, first", 2: "2", 3: "3, usual", 4: "4", 5: "5, last" };

export const PriorityField = ({ initial = USUAL_PRIORITY }) => html`<label class="field">
  <span>Priority</span>
  <select name="priority">${Object.entries(PRIORITIES).map(([value, title]) => html`<option value=${value} selected=${value === String(initial)}>${title}</option>`)}</select>
</label>`;

const MODELS = [
  "mistral-small-latest",
  "mistral-medium-latest",
  "mistral-large-latest",
  "magistral-medium-latest",
  "codestral-latest",
  "ministral-8b-latest",
];

export const ModelField = ({ initial, list = "models" }) => html`<label class="field">
  <span>Model</span>
  <input name="model" list=${list} spellcheck=${false} autocomplete="off" defaultValue=${initial} required />
  <datalist id=${list}>${MODELS.map((model) => html`<option value=${model} />`)}</datalist>
</label>`;

/** A modal that the browser keeps the focus in, and that Escape closes. */
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

/** A short notice that is seen for a moment and read out. */
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
