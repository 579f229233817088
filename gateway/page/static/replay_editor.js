// The dialog for a new job with another one's request, of which every field can be changed.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { isAway, jobs as client, newKey, openApi } from "./api.js";
import { shortId } from "./format.js";
import { Dialog, MODELS, Trouble, say } from "./parts.js";
import { go } from "./places.js";
import { ROLES, changesOf, drafted, groupsOf, keyAt, messageOf, written } from "./replay_fields.js";

const MODEL_NAMES = "models-replay";
const MOST_SHOWN = 600; // characters of a part that is not text: an image is megabytes
/** What was changed and not sent, by the id of the job: a dialog that was closed by mistake opens with it. */
const drafts = new Map();

/** `request`: the stored request of the job. */
export function ReplayEditor({ job, request, hrefOf, onClose }) {
  const [groups, setGroups] = useState(null);
  const [problem, setProblem] = useState(null);
  const load = () => {
    setProblem(null);
    openApi().then((api) => setGroups(groupsOf(api)), setProblem);
  };
  useEffect(load, []);
  return html`<${Dialog} title="Replay with changes" onClose=${onClose}>
    ${groups
      ? html`<${Form} job=${job} request=${{ model: job.model, ...request }} groups=${groups} hrefOf=${hrefOf} onClose=${onClose} />`
      : html`<div class="body replay-editor"><${Trouble} problem=${problem} />
          ${problem ? html`<div class="send"><button type="button" onClick=${load}>Try again</button></div>` : html`<p class="muted" role="status">Loading…</p>`}</div>`}
  <//>`;
}

/** The state of a form, kept in `drafts` until it is sent. */
function useDraft(job, request, fields) {
  const first = () => ({ texts: Object.fromEntries(fields.map((field) => [field.key, written(field, request)])), messages: request.messages.map(drafted) });
  const [draft, setDraft] = useState(() => drafts.get(job.jobId) ?? first());
  const change = (more) =>
    setDraft((before) => {
      const next = { ...before, ...(typeof more === "function" ? more(before) : more) };
      drafts.set(job.jobId, next);
      return next;
    });
  const undo = () => {
    drafts.delete(job.jobId);
    setDraft(first());
  };
  return [draft, change, undo];
}

function Form({ job, request, groups, hrefOf, onClose }) {
  const fields = useMemo(() => groups.flatMap((group) => group.fields), [groups]);
  const [draft, change, undo] = useDraft(job, request, fields);
  const [problem, setProblem] = useState(null);
  const [shown, setShown] = useState(new Map()); // faults by the key of their field
  const [busy, setBusy] = useState(false);
  const form = useRef(null);
  const key = useRef({ what: null, key: null });
  const { overrides, faults } = changesOf(request, fields, draft.texts, draft.messages);
  const changed = Object.keys(overrides);

  useEffect(() => {
    if (!shown.size) return;
    const first = form.current.querySelector('[aria-invalid="true"]');
    for (let group = first?.closest("details"); group; group = group.parentElement.closest("details")) group.open = true;
    first?.focus();
  }, [shown]);

  const refused = (error) => {
    const places = (error.problems ?? []).map((one) => [keyAt(one.pointer, fields), one.message]);
    setShown(new Map(places.filter(([place]) => place)));
    setProblem(error);
  };
  const submit = async (event) => {
    event.preventDefault();
    setProblem(null);
    setShown(faults);
    if (faults.size) return;
    setBusy(true);
    try {
      const what = JSON.stringify(overrides);
      if (key.current.what !== what) key.current = { what, key: await newKey() }; // another request needs another key
      const made = await client.replay(job.jobId, { ...overrides, idempotencyKey: key.current.key });
      drafts.delete(job.jobId);
      say("Replayed");
      onClose();
      go(hrefOf(made.jobId));
    } catch (error) {
      if (!isAway(error)) key.current = { what: null, key: null };
      refused(error);
      setBusy(false);
    }
  };
  const startOver = () => {
    undo();
    setProblem(null);
    setShown(new Map());
  };
  const setText = (name, text) => change(({ texts }) => ({ texts: { ...texts, [name]: text } }));
  const isChanged = (field) => Object.hasOwn(overrides, field.path[0]) && draft.texts[field.key] !== written(field, request);
  const input = (field) => html`<${Input} key=${field.key} field=${field} text=${draft.texts[field.key]} changed=${isChanged(field)} fault=${shown.get(field.key)} onText=${(text) => setText(field.key, text)} />`;
  const [main, ...others] = groups;

  return html`<form class="replay-editor" ref=${form} onSubmit=${submit} novalidate>
    <p class="muted">A new job with the request of <code>${shortId(job.jobId)}</code>. An empty field is left to the model or the service.</p>
    <fieldset><legend>${main.title}</legend><div class="fields">${main.fields.map(input)}</div></fieldset>
    <${Messages} messages=${draft.messages} faults=${shown} onChange=${(messages) => change({ messages })} />
    ${others.map((group) => html`<details key=${group.title} class="group"><summary>${group.title} <span class="muted">${given(group, draft.texts)}</span></summary>
      <div class="fields">${group.fields.map(input)}</div></details>`)}
    <${Trouble} problem=${problem} />
    ${faults.size && shown.size && !problem ? html`<div class="trouble" role="alert"><p>Not sent: ${faults.size === 1 ? "a field has" : `${faults.size} fields have`} to be corrected first.</p></div>` : null}
    <div class="send">
      <span class="changes" role="status">${changed.length ? `Changed: ${changed.join(", ")}` : "Nothing is changed"}</span>
      <button type="button" onClick=${startOver} disabled=${!changed.length && !faults.size}>Undo changes</button>
      <button class="primary" disabled=${busy}>${busy ? "Sending…" : "Replay"}</button>
    </div>
  </form>`;
}

/** How many fields of a group the request has. */
function given({ fields }, texts) {
  const number = fields.filter((field) => texts[field.key].trim()).length;
  return number ? `${number} set` : "";
}

// ------------------------------------------------------------------------------------------------------- a field

function Input({ field, text, changed, fault, onText }) {
  const id = `replay-${field.key}`;
  const more = {
    name: field.key,
    title: field.key,
    onInput: (event) => onText(event.currentTarget.value),
    "aria-invalid": fault ? "true" : undefined,
    "aria-describedby": fault ? `${id}-fault` : undefined,
  };
  const wide = field.kind === "json";
  return html`<div class=${wide ? "wide" : undefined} data-changed=${changed}>
    <label class="field"><span>${labelOf(field)}</span>${control(field, text, more)}</label>
    ${field.key === "model" ? html`<datalist id=${MODEL_NAMES}>${MODELS.map((model) => html`<option value=${model} />`)}</datalist>` : null}
    ${fault ? html`<p class="fault" id=${`${id}-fault`}>${fault}</p>` : null}
  </div>`;
}

const labelOf = ({ path, title }) => (path.length > 2 ? `${path.at(-2)[0].toUpperCase()}${path.at(-2).slice(1)} ${title.toLowerCase()}` : title);

function control(field, text, more) {
  const options = { boolean: ["true", "false"], choice: field.choices?.map(String) }[field.kind];
  if (options) {
    const none = field.example ? `as usual (${field.example})` : "not set";
    return html`<select ...${more} value=${text}><option value="">${none}</option>${options.map((one) => html`<option value=${one}>${one}</option>`)}</select>`;
  }
  if (field.kind === "json") {
    const rows = Math.min(14, Math.max(2, text.split("\n").length));
    return html`<textarea ...${more} class="code" rows=${rows} spellcheck=${false} placeholder=${field.example} value=${text}></textarea>`;
  }
  const mode = { number: "decimal", integer: "numeric" }[field.kind];
  const list = field.key === "model" ? MODEL_NAMES : undefined;
  return html`<input ...${more} inputmode=${mode} list=${list} spellcheck=${false} autocomplete="off" placeholder=${field.example} value=${text} />`;
}

// ------------------------------------------------------------------------------------------------------ messages

function Messages({ messages, faults, onChange }) {
  const list = useRef(null);
  const focus = useRef(null);
  useEffect(() => {
    if (!focus.current) return;
    list.current.querySelector(focus.current)?.focus();
    focus.current = null;
  });
  const set = (place, more) => onChange(messages.map((one, at) => (at === place ? { ...one, ...more } : one)));
  const move = (place, by) => {
    const next = [...messages];
    next.splice(place + by, 0, ...next.splice(place, 1));
    const atEnd = place + by === 0 || place + by === messages.length - 1;
    focus.current = `[data-message="${messages[place].key}"] ${atEnd ? "textarea" : `[data-move="${by}"]`}`;
    onChange(next);
    say(`Message ${place + 1} is now number ${place + by + 1}`);
  };
  const remove = (place) => {
    const next = messages.filter((_, at) => at !== place);
    focus.current = next.length ? `[data-message="${next[Math.min(place, next.length - 1)].key}"] select` : "button.add";
    onChange(next);
    say(`Message ${place + 1} was removed`);
  };
  const add = () => {
    const made = drafted({ role: messages.at(-1)?.role === "user" ? "assistant" : "user", content: "" });
    focus.current = `[data-message="${made.key}"] textarea`;
    onChange([...messages, made]);
  };
  return html`<fieldset class="said" ref=${list}>
    <legend>Messages</legend>
    ${faults.has("messages") ? html`<p class="fault">${faults.get("messages")}</p>` : null}
    <ol>${messages.map((message, place) => html`<${MessageForm} key=${message.key} ...${{ message, place, fault: faults.get(`messages.${place}`), end: messages.length - 1 }}
      onSet=${(more) => set(place, more)} onMove=${(by) => move(place, by)} onRemove=${() => remove(place)} />`)}</ol>
    <button type="button" class="add" onClick=${add}>Add a message</button>
  </fieldset>`;
}

function MessageForm({ message, place, fault, end, onSet, onMove, onRemove }) {
  const number = place + 1;
  const [open] = useState(Boolean(message.rest) || message.role === "tool"); // an id of a call has to be given there
  const invalid = fault ? { "aria-invalid": "true", "aria-describedby": `replay-message-${message.key}` } : {};
  const roles = ROLES.includes(message.role) ? ROLES : [...ROLES, message.role];
  return html`<li data-message=${message.key} data-invalid=${Boolean(fault)}>
    <div class="who">
      <select aria-label=${`Role of message ${number}`} value=${message.role} onInput=${(event) => onSet({ role: event.currentTarget.value })}>
        ${roles.map((role) => html`<option value=${role}>${role}</option>`)}
      </select>
      <button type="button" class="quiet" data-move="-1" aria-label=${`Move message ${number} up`} onClick=${() => onMove(-1)} disabled=${place === 0}>↑</button>
      <button type="button" class="quiet" data-move="1" aria-label=${`Move message ${number} down`} onClick=${() => onMove(1)} disabled=${place === end}>↓</button>
      <button type="button" class="quiet" aria-label=${`Remove message ${number}`} onClick=${onRemove}>Remove</button>
    </div>
    <${Content} ...${{ message, number, invalid, onSet }} />
    <details open=${open}><summary>Other fields</summary>
      <textarea class="code" rows="3" spellcheck=${false} aria-label=${`Other fields of message ${number}, as JSON`} placeholder=${OTHERS[message.role] ?? "{}"} value=${message.rest} ...${messageOf(message).fault ? { "aria-invalid": "true" } : {}}
        onInput=${(event) => onSet({ rest: event.currentTarget.value })}></textarea></details>
    ${fault ? html`<p class="fault" id=${`replay-message-${message.key}`}>${fault}</p>` : null}
  </li>`;
}

const OTHERS = { assistant: '{"prefix": true}', tool: '{"tool_call_id": "…", "name": "…"}' };

/** A text, or the parts of a content: texts can be changed, and other parts are kept as they are. */
function Content({ message, number, invalid, onSet }) {
  const text = (value, label, onText) => html`<textarea rows=${Math.min(12, Math.max(2, value.split("\n").length))} aria-label=${label} value=${value} ...${invalid} onInput=${(event) => onText(event.currentTarget.value)}></textarea>`;
  const { content } = message;
  if (!Array.isArray(content)) return text(content ?? "", `Text of message ${number}`, (value) => onSet({ content: content == null && !value ? content : value }));
  return content.map((part, place) => {
    const setPart = (value) => onSet({ content: content.map((one, at) => (at === place ? { ...one, text: value } : one)) });
    if (part.type === "text" && typeof part.text === "string") return text(part.text, `Text ${place + 1} of message ${number}`, setPart);
    return html`<${Kept} part=${part} />`;
  });
}

function Kept({ part }) {
  const written = JSON.stringify(part, null, 2);
  return html`<details class="kept"><summary>${part.type}, kept as it is</summary><pre class="code">${written.slice(0, MOST_SHOWN)}${written.length > MOST_SHOWN ? "…" : ""}</pre></details>`;
}

