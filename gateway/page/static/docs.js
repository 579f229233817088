// The API reference, rendered from /openapi.json, with a form for each operation.

import { html, render, useEffect, useState } from "./vendor/htm-preact.js";
import { openApi, session as readSession } from "./api.js";
import { Trouble } from "./parts.js";
import { limitsOf, nameOf, operationsOf, partsOf, schemaOf, typeOf } from "./openapi.js";
import { may } from "./roles.js";
import { Try } from "./try.js";

const RETRY_MS = 2000;

function useDocument() {
  const [document, set] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    let timer = 0;
    const load = () =>
      openApi().then(
        (found) => (set(found), setProblem(null)),
        (error) => (setProblem(error), (timer = setTimeout(load, RETRY_MS))),
      );
    load();
    return () => clearTimeout(timer);
  }, []);
  return [document, problem];
}

/** Scroll to the target of the address after rendering, and open it if it is a schema. */
function useAnchor(ready) {
  useEffect(() => {
    if (!ready) return undefined;
    const show = () => {
      const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
      if (!target) return;
      if (target.tagName === "DETAILS") target.open = true;
      target.scrollIntoView();
    };
    show();
    addEventListener("hashchange", show);
    return () => removeEventListener("hashchange", show);
  }, [ready]);
}

/** The session of the page; null until it is known. */
function useSession() {
  const [session, set] = useState(null);
  useEffect(() => {
    readSession().then(set, () => {}); // the document's problem says that the service is away
  }, []);
  return session;
}

function Docs() {
  const [api, problem] = useDocument();
  const session = useSession();
  const [apiKey, setApiKey] = useState("");
  useAnchor(Boolean(api));
  const groups = api ? operationsOf(api) : [];
  return html`<header class="bar">
      <a href="/" class="mark"><img src="/assets/icon.svg" alt="" width="22" height="22" />chatjobs</a>
      <nav aria-label="Main"><a href="/">Jobs</a><a href="/batches">Batches</a><a href="/schedules">Schedules</a>${may(session, "admin") ? html`<a href="/settings">Settings</a>` : null}<a href="/docs" aria-current="page">API</a></nav>
    </header>
    ${api ? html`<${Reference} ...${{ api, groups, session, apiKey, setApiKey }} />` : html`<main class="alone"><h1 class="hidden">API</h1>${problem ? html`<${Trouble} problem=${problem} />` : html`<p class="muted">Loading…</p>`}</main>`}`;
}

function Reference({ api, groups, session, apiKey, setApiKey }) {
  const schemas = Object.entries(api.components.schemas).sort(([one], [other]) => one.localeCompare(other));
  return html`<div class="reference">
    <nav class="contents" aria-label="Contents">
      ${groups.map(
        ([name, operations]) => html`<p class="of">${name}</p>
          <ul>${operations.map((one) => html`<li><a href=${`#${one.id}`}><${Method} name=${one.method} /><${Path} path=${one.path} /></a></li>`)}</ul>`,
      )}
      <p class="of"><a href="#schemas">Schemas</a></p>
    </nav>
    <main class="docs">
      <h1>${api.info.title} API</h1>
      <p class="lead">${api.info.description}</p>
      <p class="muted">Where keys are configured, send <code>Authorization: Bearer cj_…</code>. What fails is answered as${" "}
        <${Type} schema=${{ $ref: "#/components/schemas/Problem" }} />, <code>application/problem+json</code>.
        The document itself: <a href="/openapi.json">openapi.json</a>.</p>
      <${Identity} session=${session} apiKey=${apiKey} setApiKey=${setApiKey} />
      ${groups.map(([name, operations]) => html`<section aria-label=${name}><h2 class="group">${name}</h2>
        ${operations.map((one) => html`<${Operation} key=${one.id} ...${{ api, session, apiKey, ...one }} />`)}</section>`)}
      <section aria-label="Schemas"><h2 class="group" id="schemas">Schemas</h2>
        ${schemas.map(([name, schema]) => html`<details class="card schema" id=${`schema-${name}`} key=${name}>
          <summary><code>${name}</code></summary>
          <${Schema} schema=${schema} />
        </details>`)}</section>
    </main>
  </div>`;
}

/** Who calls in the forms: the session, or a key that this tab forgets. */
function Identity({ session, apiKey, setApiKey }) {
  if (!session) return null;
  const who = !session.keysRequired
    ? "“Try it” makes real calls of this service. No key is needed here."
    : session.authenticated
      ? `“Try it” makes real calls as ${session.tenant}, with the role ${session.role}, or with another key:`
      : "“Try it” makes real calls, with a key:";
  return html`<div class="identity"><p class="muted">${who}</p>
    ${session.keysRequired
      ? html`<label class="field"><span>API key <small>stays in this tab until it is closed or left</small></span>
          <input type="password" autocomplete="off" spellcheck=${false} value=${apiKey} onInput=${(event) => setApiKey(event.currentTarget.value.trim())} /></label>`
      : null}
  </div>`;
}

const Method = ({ name }) => html`<span class="method" data-method=${name}>${name.toUpperCase()}</span>`;

/** A path with its parameters highlighted and line breaks allowed at slashes. */
const Path = ({ path }) => html`<code class="path">${path.split(/(?=\/)/).map((part) => html`${part.startsWith("/{") ? html`/<i>${part.slice(1)}</i>` : part}<wbr />`)}</code>`;

function Operation({ api, id, method, path, operation, session, apiKey }) {
  const body = Object.entries(operation.requestBody?.content ?? {});
  const answers = Object.entries(operation.responses).filter(([status]) => status !== "default");
  return html`<article class="card operation" id=${id} aria-label=${`${method.toUpperCase()} ${path}`}>
    <h3><a href=${`#${id}`}><${Method} name=${method} /><${Path} path=${path} /></a>
      ${operation["x-role"] ? html`<span class="tag">role ${operation["x-role"]}</span>` : null}</h3>
    <${Prose} text=${operation.description} />
    ${operation.parameters?.length
      ? html`<h4>Parameters</h4><${Fields} fields=${operation.parameters.map((one) => ({ name: one.name, note: one.in, required: one.required, schema: one.schema, text: one.description }))} />`
      : null}
    ${body.map(
      ([type, { schema }]) => html`<h4>Body <span class="muted">${type}</span></h4>
        <details class="body"><summary><${Type} schema=${schema} plain /></summary><${Schema} schema=${schemaOf(api, schema)} /></details>`,
    )}
    <h4>Answers</h4>
    <dl class="answers">
      ${answers.map(([status, answer]) => html`<dt data-tone=${status < "400" ? "good" : "bad"}>${status}</dt>
        <dd>${Object.entries(answer.content ?? {}).map(([type, { schema }]) => html`<${Type} schema=${schema ?? {}} fallback=${type} />${" "}`)}
          ${answer.description === "Successful Response" ? null : html`<span class="muted"><${Inline} text=${answer.description} /></span>`}
          ${answer.content || answer.description !== "Successful Response" ? null : html`<span class="muted">no content</span>`}</dd>`)}
    </dl>
    <${Try} ...${{ api, method, path, operation, session, apiKey }} />
  </article>`;
}

function Schema({ schema }) {
  const required = new Set(schema.required);
  const fields = Object.entries(schema.properties ?? {}).map(([name, of]) => ({ name, required: required.has(name), schema: of, text: of.description }));
  return html`<div class="inside">
    <${Prose} text=${schema.description} />
    ${fields.length ? html`<${Fields} fields=${fields} />` : html`<p><${Type} schema=${schema} /></p>`}
  </div>`;
}

const Fields = ({ fields }) => html`<table class="params"><tbody>
  ${fields.map(({ name, note, required, schema, text }) => html`<tr>
    <th scope="row"><code>${name}</code>${required ? html`<small class="needed">required</small>` : null}${note ? html`<small>${note}</small>` : null}</th>
    <td><${Type} schema=${schema} />${limitsOf(schema).map((limit) => html` <span class="limit">${limit}</span>`)}<${Prose} text=${text} /></td>
  </tr>`)}
</tbody></table>`;

/** A schema in one line, with links to the schemas that it names. */
function Type({ schema, plain = false, fallback = "any" }) {
  const parts = typeOf(schema);
  if (!parts.length) return html`<code class="type">${fallback}</code>`;
  return html`<code class="type">${parts.map((part) => (part.ref && !plain ? html`<a href=${`#schema-${nameOf(part.ref)}`}>${nameOf(part.ref)}</a>` : part.ref ? nameOf(part.ref) : part))}</code>`;
}

const Prose = ({ text }) => (text ? text.trim().split(/\n{2,}/).map((paragraph) => html`<p class="prose"><${Inline} text=${paragraph} /></p>`) : null);

const Inline = ({ text }) => partsOf(text ?? "").map(({ code, text }) => (code ? html`<code>${text}</code>` : text));

render(html`<${Docs} />`, document.getElementById("app"));
