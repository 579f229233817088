// The chat box: submitting a prompt creates a job and opens its view, which shows the answer while it is generated.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { jobs, newKey } from "./api.js";
import { Field, ModelField, PriorityField, Trouble, USUAL_PRIORITY } from "./parts.js";
import { go, jobHref, leavingList } from "./places.js";
import { useMay } from "./roles.js";

const MODEL = "chatjobs.model";

/** Local storage, which throws in some browsers' private windows. */
const kept = {
  get: () => {
    try {
      return localStorage.getItem(MODEL);
    } catch {
      return null;
    }
  },
  set: (model) => {
    try {
      localStorage.setItem(MODEL, model);
    } catch {
      // The next visit then starts with the default model.
    }
  },
};

/** The chat box, for callers who may start jobs. */
export const Composer = (props) => (useMay("write") ? html`<${ChatForm} ...${props} />` : null);

/** `previous`: the id of the job whose conversation goes on; `rest`: the fields of its request that are kept. */
function ChatForm({ title, placeholder, previous, rest = {}, focus = false, hrefOf = jobHref }) {
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const [model] = useState(rest.model ?? kept.get() ?? "mistral-small-latest");
  const form = useRef(null);
  const sent = useRef({ text: null, key: null });

  useEffect(() => {
    // Take the focus after an answer, but not from another element or from selected text, and not on a touch screen.
    const elsewhere = !["BODY", "H1"].includes(document.activeElement?.tagName) || !getSelection().isCollapsed;
    if (focus && !elsewhere && matchMedia("(pointer: fine)").matches) form.current.elements.prompt.focus({ preventScroll: true });
  }, []);

  const submit = async (event) => {
    event?.preventDefault();
    const request = requestOf(form.current, previous, rest);
    if (busy || !request) return;
    setBusy(true);
    setProblem(null);
    const text = JSON.stringify(request);
    if (sent.current.text !== text) sent.current = { text, key: await newKey() };
    try {
      const accepted = await jobs.submit(request, { idempotencyKey: sent.current.key });
      kept.set(request.model);
      sent.current = { text: null, key: null };
      if (form.current) form.current.elements.prompt.value = "";
      setBusy(false);
      if (location.pathname === "/") leavingList();
      go(hrefOf(accepted.jobId));
    } catch (error) {
      setProblem(error);
      setBusy(false);
    }
  };
  const onKeyDown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  };

  return html`<form class="card composer" ref=${form} onSubmit=${submit} aria-label=${title}>
    <label class="prompt"><span class="hidden">${title}</span>
      <textarea name="prompt" rows="2" placeholder=${placeholder} onKeyDown=${onKeyDown} onInput=${grow} required></textarea>
    </label>
    <${Trouble} problem=${problem} />
    <details>
      <summary>Options</summary>
      <div class="fields">
        ${previous ? null : html`<label class="field wide"><span>System message</span><textarea name="system" rows="2"></textarea></label>`}
        <${Field} name="temperature" title="Temperature" type="number" min="0" max="2" step="0.1" initial=${rest.temperature ?? ""} />
        <${Field} name="max_tokens" title="Longest answer" hint="tokens" type="number" min="1" initial=${rest.max_tokens ?? ""} />
        <${PriorityField} initial=${rest.priority} />
        <${Field} name="callback" title="Webhook" type="url" placeholder="https://you.example/hooks" initial=${rest.callback ?? ""} />
        <${Field} name="metadata" title="Metadata" hint="key=value, …" placeholder="order=42" initial=${pairsOf(rest.metadata)} />
      </div>
    </details>
    <div class="send">
      <${ModelField} initial=${model} />
      <span class="hint muted" aria-hidden="true">Enter sends, Shift + Enter breaks the line</span>
      <button class="primary" disabled=${busy}>${busy ? "Sending…" : "Send"}</button>
    </div>
  </form>`;
}

function grow(event) {
  const box = event.currentTarget;
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight + 2, 320)}px`;
}

/** The request for a filled-in form; null without a prompt. */
function requestOf(form, previous, rest) {
  const given = Object.fromEntries(new FormData(form));
  if (!given.prompt.trim()) return null;
  const system = given.system?.trim() ? [{ role: "system", content: given.system }] : [];
  const request = { ...rest, model: given.model.trim(), messages: [...system, { role: "user", content: given.prompt }] };
  setOrLeave(request, "previousJobId", previous, previous);
  for (const name of ["temperature", "max_tokens"]) setOrLeave(request, name, given[name], Number(given[name]));
  setOrLeave(request, "priority", Number(given.priority) !== USUAL_PRIORITY, Number(given.priority));
  setOrLeave(request, "callback", given.callback, given.callback);
  setOrLeave(request, "metadata", given.metadata, parsedPairs(given.metadata));
  return request;
}

function setOrLeave(request, name, written, value) {
  if (written) request[name] = value;
  else delete request[name];
}

const pairsOf = (metadata) => Object.entries(metadata ?? {}).map(([key, value]) => `${key}=${value}`).join(", ");

function parsedPairs(text) {
  const pairs = text.split(",").map((pair) => pair.split("="));
  return Object.fromEntries(pairs.filter(([key]) => key.trim()).map(([key, ...value]) => [key.trim(), value.join("=").trim()]));
}
