// A form for an operation of the API: it makes the call from this page, and shows what comes back.
//
// The call carries the session's cookie, or a key that was typed into the page. A typed key is in the memory of this
// tab alone, and in no address, no snippet and no storage.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { watchedFetch } from "./api.js";
import { exampleOf } from "./examples.js";
import { span } from "./format.js";
import { lineOf, placeOf } from "./json-places.js";
import { schemaOf } from "./openapi.js";
import { Dialog, copy } from "./parts.js";
import { LANGUAGES } from "./snippets.js";

/** Until a response begins; `Prefer: wait` takes up to a minute. */
const HEAD_MS = 90_000;
const MOST_SHOWN = 512 * 1024;
/** How often a stream's text is drawn. */
const DRAW_MS = 100;
const DANGEROUS = [/^delete /, /^(post|patch|put) \/api\/(keys|secrets|lanes|pauses)/, /^post \/api\/redeliveries/];
const SECRETS = /^post \/api\/(keys|secrets)$/;

export function Try({ api, method, path, operation, session, apiKey }) {
  const [open, setOpen] = useState(false);
  return html`<details class="try" onToggle=${(event) => setOpen(event.currentTarget.open)}>
    <summary>Try it</summary>
    ${open ? html`<${Form} ...${{ api, method, path, operation, session, apiKey }} />` : null}
  </details>`;
}

function Form({ api, method, path, operation, session, apiKey }) {
  const types = Object.keys(operation.requestBody?.content ?? {});
  const [type, setType] = useState(types[0] ?? null);
  const [call, setCall] = useState(null);
  const [asking, setAsking] = useState(false);
  const [{ response, problems, failure, busy }, send, stop] = useSending();
  const form = useRef(null);
  const parameters = operation.parameters ?? [];
  const content = type && operation.requestBody.content[type];
  const streams = "text/event-stream" in (operation.responses["200"]?.content ?? {});
  const keyed = Boolean(apiKey || session?.keysRequired);
  const read = () => callOf(form.current, { method, path, parameters, type, keyed, streams });
  useEffect(() => setCall(read()), [type, keyed]);

  const go = () => {
    setAsking(false);
    send(read(), filesOf(form.current, type), apiKey);
  };
  const submit = (event) => {
    event.preventDefault();
    if (DANGEROUS.some((one) => one.test(`${method} ${path}`))) setAsking(true);
    else go();
  };
  const problemsOf = (name) => problems.filter((one) => one.pointer === `/${name}`);
  const others = problems.filter((one) => !parameters.some(({ name }) => one.pointer === `/${name}`));
  return html`<form ref=${form} onSubmit=${submit} onInput=${() => setCall(read())} novalidate aria-label=${`Try ${method.toUpperCase()} ${path}`}>
    ${parameters.length ? html`<div class="fields">${parameters.map((one) => html`<${Parameter} key=${one.in + one.name} api=${api} parameter=${one} problems=${problemsOf(one.name)} />`)}</div>` : null}
    ${types.length > 1
      ? html`<label class="field"><span>Body as</span><select name="type" onChange=${(event) => setType(event.currentTarget.value)}>${types.map((one) => html`<option value=${one}>${one}</option>`)}</select></label>`
      : null}
    ${content ? (type === "multipart/form-data" ? html`<${Parts} api=${api} schema=${schemaOf(api, content.schema)} problems=${others} />` : html`<${Body} key=${type} type=${type} text=${exampleOf(api, method, path, type, content.schema, session?.tenant ?? "default")} problems=${others} />`) : html`<${Problems} problems=${others} />`}
    <div class="send">
      <span class="muted">${identityOf(session, apiKey)}</span>
      ${busy ? html`<button type="button" onClick=${stop}>Stop</button>` : null}
      <button class="primary" disabled=${busy}>${busy ? "Sending…" : "Send"}</button>
    </div>
    ${call ? html`<${Snippets} call=${call} />` : null}
    <div role="status" class="outcome-line">${response ? html`<span class="outcome" data-tone=${response.status < 400 ? "good" : "bad"}>${response.status} ${response.words}</span> <span class="muted">${span(response.took)}${response.streaming && !failure ? ` · ${busy ? "streaming" : "ended"}` : ""}</span> ` : ""}${failure ? html`<span class=${response ? "muted" : "outcome"}>${response ? `· ${failure}` : failure}</span>` : ""}</div>
    ${response ? html`<${Response} response=${response} secret=${SECRETS.test(`${method} ${path}`)} />` : null}
    ${asking
      ? html`<${Dialog} title=${`Send ${method.toUpperCase()} ${path}?`} onClose=${() => setAsking(false)}>
          <div class="body"><p>It is a real call of this service, and it changes or deletes something. ${SECRETS.test(`${method} ${path}`) ? "What it makes is shown once, here." : ""}</p>
            <div class="send"><button type="button" class="danger" onClick=${go}>Send it</button></div></div>
        <//>`
      : null}
  </form>`;
}

function identityOf(session, apiKey) {
  if (apiKey) return "With the key that was typed above.";
  if (!session) return "";
  if (!session.keysRequired) return "No key is needed.";
  return session.authenticated ? `As ${session.tenant}, role ${session.role}.` : "Without a key: sign in, or type one above.";
}

// ------------------------------------------------------------------------------------------------------ fields

/** The alternatives of a parameter: its enum, or true and false; null for a text. */
function choicesOf(api, given) {
  const schema = schemaOf(api, given);
  const inner = (schema.anyOf ?? []).find((one) => one.type !== "null");
  if (inner) return choicesOf(api, inner);
  if (schema.enum) return schema.enum;
  return schema.type === "boolean" ? ["true", "false"] : null;
}

const isMany = (schema) => [schema, ...(schema.anyOf ?? [])].some((one) => one.type === "array");

function Parameter({ api, parameter: { name, in: place, required, schema }, problems }) {
  const id = `${place}:${name}`;
  const wrong = problems.length ? { "aria-invalid": "true" } : {};
  const choices = choicesOf(api, schema);
  const placeholder = schema.default == null ? undefined : String(schema.default);
  const hint = [place, required && "required", isMany(schema) && place === "query" && "comma-separated"].filter(Boolean).join(", ");
  return html`<label class="field"><span>${name} <small>${hint}</small></span>
    ${choices
      ? html`<select name=${id} ...${wrong}><option value="">–</option>${choices.map((one) => html`<option value=${one}>${one}</option>`)}</select>`
      : html`<input name=${id} placeholder=${placeholder} spellcheck=${false} autocomplete="off" data-many=${isMany(schema) && place === "query"} ...${wrong} />`}
    ${problems.map((one) => html`<small class="wrong" role="alert">${one.message}</small>`)}
  </label>`;
}

function Body({ type, text, problems }) {
  const box = useRef(null);
  return html`<label class="field"><span>Body <small>${type}</small></span>
      <textarea name="body" class="code" rows=${Math.min(Math.max(text.split("\n").length, 3), 18)} spellcheck=${false} ref=${box} aria-invalid=${problems.length ? "true" : undefined}>${text}</textarea></label>
    <${Problems} problems=${problems} box=${box} />`;
}

/** The problems of a body, each with a button that selects its place there. */
function Problems({ problems, box }) {
  if (!problems.length) return null;
  const select = ([start, end]) => {
    box.current.focus();
    box.current.setSelectionRange(start, end);
  };
  const place = ({ pointer }) => {
    const text = box?.current?.value;
    if (!text || !pointer) return null;
    const found = placeOf(text, pointer);
    return html`<button type="button" onClick=${() => select(found)}>Line ${lineOf(text, found[0])}</button>${" "}`;
  };
  return html`<div class="trouble" role="alert"><ul class="lines">${problems.map((one) => html`<li>${place(one)}${one.pointer ? html`<code>${one.pointer}</code> ` : null}${one.message}</li>`)}</ul></div>`;
}

function Parts({ api, schema, problems }) {
  return html`<div class="fields">${Object.entries(schema.properties).map(([name, of]) => {
      const choices = choicesOf(api, of);
      const required = schema.required?.includes(name);
      return html`<label class="field" key=${name}><span>${name} <small>${required ? "required" : "optional"}</small></span>
        ${of.format === "binary" ? html`<input type="file" name=${`part:${name}`} />` : choices ? html`<select name=${`part:${name}`}>${required ? null : html`<option value="">–</option>`}${choices.map((one) => html`<option value=${one}>${one}</option>`)}</select>` : html`<input name=${`part:${name}`} autocomplete="off" />`}
      </label>`;
    })}</div>
    <${Problems} problems=${problems} />`;
}

/** The call that a form describes; see snippets.js. */
function callOf(form, { method, path, parameters, type, keyed, streams }) {
  const valueOf = ({ in: place, name }) => form.elements[`${place}:${name}`]?.value ?? "";
  const query = new URLSearchParams();
  const headers = [];
  let filled = path;
  for (const one of parameters) {
    const value = valueOf(one);
    if (one.in === "path") filled = filled.replace(`{${one.name}}`, () => (value ? encodeURIComponent(value) : `{${one.name}}`));
    else if (!value) continue;
    else if (one.in === "header") headers.push([one.name, value]);
    else for (const part of isMany(one.schema) ? value.split(",").map((each) => each.trim()) : [value]) query.append(one.name, part);
  }
  const search = query.size ? `?${query}` : "";
  const multipart = type === "multipart/form-data";
  if (type && !multipart) headers.unshift(["Content-Type", type]);
  return {
    method,
    url: `${location.origin}${filled}${search}`,
    headers,
    body: type && !multipart ? (form.elements.body?.value ?? "") : null,
    parts: multipart ? partsOf(form) : null,
    keyed,
    streams: streams || /"stream"\s*:\s*true/.test(form.elements.body?.value ?? ""),
  };
}

const PART = "part:";
const partFields = (form) => [...form.elements].filter((one) => one.name.startsWith(PART));

function partsOf(form) {
  const described = partFields(form).map((one) => (one.type === "file" ? { name: one.name.slice(PART.length), file: one.files[0]?.name ?? "batch.jsonl" } : { name: one.name.slice(PART.length), value: one.value }));
  return described.filter((one) => one.value !== "");
}

/** The parts of a form with their files, as they are sent; null for other bodies. */
function filesOf(form, type) {
  if (type !== "multipart/form-data") return null;
  const data = new FormData();
  for (const one of partFields(form)) {
    const value = one.type === "file" ? one.files[0] : one.value;
    if (value) data.append(one.name.slice(PART.length), value);
  }
  return data;
}

// ----------------------------------------------------------------------------------------------------- sending

const NOTHING = { response: null, problems: [], failure: null, busy: false };

/** What came of the last call, and functions to send one and to stop it. */
function useSending() {
  const [state, setState] = useState(NOTHING);
  const running = useRef(null);
  useEffect(() => () => running.current?.abort(), []);
  const send = async (call, files, apiKey) => {
    running.current?.abort();
    const mine = new AbortController();
    running.current = mine;
    const show = (changes) => running.current === mine && setState((now) => ({ ...now, ...changes }));
    setState({ ...NOTHING, busy: true });
    try {
      show(await exchange(call, files, apiKey, mine, (response) => show({ response })));
    } catch (error) {
      show({ failure: mine.signal.aborted ? (mine.signal.reason ?? "Stopped") : `No response: ${error.message}` });
    }
    show({ busy: false });
  };
  return [state, send, () => running.current?.abort("Stopped")];
}

/** Make a call; `show` gets the response as it grows. Returns the problems of a refusal. */
async function exchange({ method, url, headers, body }, files, apiKey, control, show) {
  const began = performance.now();
  const late = setTimeout(() => control.abort(`No response within ${HEAD_MS / 1000} seconds`), HEAD_MS);
  const credentials = apiKey ? { credentials: "omit" } : { credentials: "same-origin" };
  const authorization = apiKey ? [["Authorization", `Bearer ${apiKey}`]] : [];
  let answer;
  try {
    answer = await watchedFetch(url, { method: method.toUpperCase(), headers: [...headers, ...authorization], body: files ?? body ?? undefined, signal: control.signal, cache: "no-store", redirect: "manual", ...credentials });
  } finally {
    clearTimeout(late);
  }
  const streaming = (answer.headers.get("content-type") ?? "").startsWith("text/event-stream");
  const shown = { status: answer.status, words: answer.statusText, took: performance.now() - began, headers: [...answer.headers], streaming, text: "", cut: false };
  show(shown);
  const text = await textOf(answer, (some, cut) => show({ ...shown, text: some, cut }), streaming);
  show({ ...shown, ...text, took: streaming ? shown.took : performance.now() - began });
  return { problems: answer.status < 400 ? [] : problemsIn(text.text) };
}

/** The text of a response: of a stream the last part, of another the first. */
async function textOf(answer, draw, streaming) {
  if (!answer.body) return { text: "", cut: false };
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let cut = false;
  let timer = null;
  const drawNow = () => {
    timer = null;
    draw(text, cut);
  };
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return { text, cut };
      text += value;
      if (text.length > MOST_SHOWN) {
        cut = true;
        text = streaming ? text.slice(-MOST_SHOWN) : text.slice(0, MOST_SHOWN);
        if (!streaming) {
          await reader.cancel();
          return { text, cut };
        }
      }
      timer ??= setTimeout(drawNow, DRAW_MS);
    }
  } finally {
    clearTimeout(timer);
    if (timer !== null) drawNow(); // what had come before it was stopped
  }
}

/** The problems in the body of a refusal, in this service's form, Mistral's or OpenAI's. */
function problemsIn(text) {
  const body = parsed(text);
  if (Array.isArray(body?.errors)) return body.errors;
  if (Array.isArray(body?.detail)) return body.detail.map(({ loc, msg }) => ({ pointer: ["", ...loc.slice(1)].join("/"), message: msg }));
  const { param, message } = body?.error ?? {};
  return param ? [{ pointer: `/${param.replaceAll(".", "/")}`, message }] : [];
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

// ---------------------------------------------------------------------------------------------------- response

function Response({ response, secret }) {
  const { headers, text, cut, streaming } = response;
  const json = streaming ? undefined : parsed(text);
  return html`<section class="response" aria-label="Response">
    <details><summary>${headers.length} headers</summary><pre class="code">${headers.map(([name, value]) => `${name}: ${value}`).join("\n")}</pre></details>
    ${text ? html`<pre class="code" tabindex="0" data-testid="response">${json === undefined ? text : JSON.stringify(json, null, 2)}</pre>` : html`<p class="muted">no body</p>`}
    ${cut ? html`<p class="muted">Only ${streaming ? "the last" : "the first"} part is shown.</p>` : null}
    ${secret && response.status === 201 ? html`<p class="muted">Keep it: it cannot be read again.</p>` : null}
  </section>`;
}

function Snippets({ call }) {
  const [language, setLanguage] = useState("curl");
  const text = LANGUAGES[language](call);
  const [copied, setCopied] = useState(null);
  const onCopy = async () => setCopied((await copy(text, language)) ? "Copied" : "Select it, and copy it by the keyboard");
  return html`<details class="snippets"><summary>As code</summary>
    <div class="languages" role="group" aria-label="Language">
      ${Object.keys(LANGUAGES).map((one) => html`<button type="button" class="quiet" aria-pressed=${one === language} onClick=${() => (setLanguage(one), setCopied(null))}>${one}</button>`)}
      <button type="button" onClick=${onCopy}>Copy</button><span role="status" class="muted">${copied ?? ""}</span>
    </div>
    <pre class="code" tabindex="0" data-testid="snippet">${text}</pre>
  </details>`;
}
