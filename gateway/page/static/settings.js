// Settings, for keys with the role admin: keys, webhook secrets, endpoints, limits, pauses, and what runs.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { addKey, changeKey, jobs, keys as readKeys, revokeKey, rotateSecret, secrets as readSecrets, setLimits, settings as readSettings, signIn } from "./api.js";
import { count, many, size, when } from "./format.js";
import { Alone, Card, Dialog, Field, Heading, Trouble, copy, say } from "./parts.js";
import { may } from "./roles.js";

const DAY_MS = 86_400_000;
const ROLES = { read: "read: look at everything", write: "write: start and change jobs", admin: "admin: manage keys, too" };
const LASTS = { 0: "until it is revoked", 30: "30 days", 90: "90 days", 365: "a year" };
const TONES = { valid: "completed", ok: "completed", expired: "incomplete", failing: "incomplete", revoked: "failed", disabled: "failed" };

/** A key that was made just now. It outlives the view: the first key ends the session without keys. */
let unseenKey = null;

export function SettingsView({ session, onSession }) {
  useEffect(() => {
    document.title = "Settings · chatjobs";
  }, []);
  if (!may(session, "admin")) {
    return html`<${Alone} title="Settings"><p>This view needs a key with the role admin; yours has the role ${session.role}.</p>
      <p class="muted">An admin of your tenant can give it that role here, an operator with <code>starter.py keys role</code>.</p><//>`;
  }
  return html`<${Shown} session=${session} onSession=${onSession} />`;
}

/** What `read` gives, its problem, and a function to read it again. */
function useRead(read) {
  const [found, setFound] = useState(null);
  const [problem, setProblem] = useState(null);
  const look = () => read().then((value) => (setFound(value), setProblem(null)), setProblem);
  useEffect(() => {
    look();
  }, [read]);
  return [found, look, problem];
}

/** Run `work`, show its problem, and tell whether it succeeded. */
function useWork() {
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState(null);
  const run = async (work) => {
    setBusy(true);
    try {
      await work();
      setProblem(null);
      return true;
    } catch (error) {
      setProblem(error);
      return false;
    } finally {
      setBusy(false);
    }
  };
  return [run, problem, busy];
}

function Shown({ session, onSession }) {
  const [found, look, problem] = useRead(readSettings);
  return html`<main class="list settings">
    <div class="head"><div class="title"><${Heading}>Settings<//><span class="model">tenant ${session.tenant}</span></div></div>
    <${Keys} session=${session} onSession=${onSession} />
    <${Secrets} />
    <${Endpoints} />
    <${Trouble} problem=${problem} />
    ${found ? html`<${Limits} found=${found} reload=${look} /><${Pausing} session=${session} /><${Environment} found=${found} />` : null}
  </main>`;
}

const State = ({ state }) => html`<span class="status" data-status=${TONES[state]}><i aria-hidden="true" />${state}</span>`;

/** A confirmation; `children` say what it does. */
function Confirm({ title, action, onYes, onClose, children }) {
  const [run, problem, busy] = useWork();
  const submit = async (event) => {
    event.preventDefault();
    if (await run(onYes)) onClose();
  };
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <form onSubmit=${submit}>
      ${children}
      <${Trouble} problem=${problem} />
      <div class="send"><button class="danger" disabled=${busy}>${action}</button></div>
    </form>
  <//>`;
}

/** A dialog with a text that is shown this once. */
function Once({ title, label, text, onClose, children }) {
  const field = useRef(null);
  useEffect(() => field.current.select(), []);
  const onCopy = async () => {
    if (!(await copy(text, label))) field.current.select();
  };
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <div class="body">
      <p>Keep it now: it is shown this once, and cannot be read again.</p>
      <label class="field"><span>${label}</span><input class="code" readonly autocomplete="off" value=${text} ref=${field} onFocus=${(event) => event.currentTarget.select()} /></label>
      ${children}
      <div class="send"><button type="button" class="primary" onClick=${onCopy}>Copy</button></div>
    </div>
  <//>`;
}

// -------------------------------------------------------------------------------------------------------- keys

function Keys({ session, onSession }) {
  const [found, look, problem] = useRead(readKeys);
  const [making, setMaking] = useState(false);
  const [made, setMade] = useState(unseenKey);
  const onMade = (key) => {
    unseenKey = key;
    setMade(key);
    setMaking(false);
    look();
  };
  const onSeen = () => {
    unseenKey = null;
    setMade(null);
  };
  const over = found?.filter((key) => key.state !== "valid") ?? [];
  const valid = found?.filter((key) => key.state === "valid") ?? [];
  const add = html`<button type="button" class="primary" onClick=${() => setMaking(true)}>New key…</button>`;
  return html`<${Card} title="Keys" extra=${add}>
    <${Trouble} problem=${problem} />
    ${found && !found.length ? html`<p class="about muted">There are no keys: everybody on this machine may call, and does what an admin may. After the first key every call needs one.</p>` : null}
    ${valid.length ? html`<${KeyRows} keys=${valid} title="Valid keys" reload=${look} onSession=${onSession} />` : null}
    ${over.length ? html`<details class="over"><summary>${many(over.length, "key")} that ended</summary><${KeyRows} keys=${over} title="Keys that ended" reload=${look} onSession=${onSession} /></details>` : null}
    ${making ? html`<${NewKey} session=${session} onMade=${onMade} onSession=${onSession} reload=${look} onClose=${() => setMaking(false)} />` : null}
    ${made ? html`<${Once} title="The new key" label="Key" text=${made.key} onClose=${onSeen}><p class="muted">Role ${made.role}${made.expiresAt ? `, until ${when(made.expiresAt)}` : ""}.</p><//>` : null}
  <//>`;
}

const KeyRows = ({ keys, title, reload, onSession }) => html`<table aria-label=${title} class="keys">
  <thead><tr><th scope="col">Key</th><th scope="col">Role</th><th scope="col">State</th><th scope="col">Made</th><th scope="col">Expires</th><th scope="col"><span class="hidden">Actions</span></th></tr></thead>
  <tbody>${keys.map((key) => html`<${KeyRow} key=${key.id} entry=${key} reload=${reload} onSession=${onSession} />`)}</tbody>
</table>`;

function KeyRow({ entry, reload, onSession }) {
  const [run, problem, busy] = useWork();
  const [revoking, setRevoking] = useState(false);
  const { id, name, role, state, current } = entry;
  const called = name || id;
  const after = async () => {
    await reload();
    if (current) await onSession();
  };
  const change = async (event) => {
    const select = event.currentTarget;
    const done = await run(() => changeKey(id, { role: select.value }));
    if (done) say(`${called} has the role ${select.value}`);
    else select.value = role;
    await after();
  };
  const revoke = async () => {
    await revokeKey(id);
    say(`${called} revoked`);
    await after();
  };
  return html`<tr data-key=${id}>
    <td class="c-name"><b>${name || html`<span class="muted">no name</span>`}</b> ${current ? html`<span class="tag">yours</span>` : null}<code class="note-of muted">${id}</code><${Trouble} problem=${problem} /></td>
    <td class="c-role">${state === "valid"
      ? html`<label><span class="hidden">Role of ${called}</span><select onChange=${change} disabled=${busy}>${Object.keys(ROLES).map((one) => html`<option value=${one} selected=${one === role}>${one}</option>`)}</select></label>`
      : role}</td>
    <td><${State} state=${state} /></td>
    <td class="muted"><time datetime=${entry.createdAt}>${when(entry.createdAt)}</time></td>
    <td class="muted">${entry.expiresAt ? html`<time datetime=${entry.expiresAt}>${when(entry.expiresAt)}</time>` : "–"}</td>
    <td class="c-actions">${state === "valid" ? html`<button type="button" class="danger" aria-label=${`Revoke ${called}`} onClick=${() => setRevoking(true)}>Revoke…</button>` : null}
      ${revoking ? html`<${Confirm} title=${`Revoke ${called}`} action="Revoke" onYes=${revoke} onClose=${() => setRevoking(false)}>
        <p>${current ? "It is your own key: this page signs out. " : ""}Whoever uses it is refused within two seconds, for good, and its streams are closed.</p><//>` : null}</td>
  </tr>`;
}

function NewKey({ session, onMade, onSession, onClose, reload }) {
  const [run, problem, busy] = useWork();
  const first = !session.keysRequired;
  const submit = async (event) => {
    event.preventDefault();
    const given = Object.fromEntries(new FormData(event.currentTarget));
    const days = Number(given.lasts ?? 0);
    const fields = { name: given.name.trim(), role: first ? "admin" : given.role };
    if (days) fields.expiresAt = new Date(Date.now() + days * DAY_MS).toISOString();
    await run(async () => {
      const made = await addKey(fields);
      onMade(made);
      if (!first) return;
      await signIn(made.key).then(onSession, () => say("Sign in with the new key"));
      await reload(); // without the key it was refused
    });
  };
  return html`<${Dialog} title="New key" onClose=${onClose}>
    <form onSubmit=${submit}>
      ${first ? html`<p>It is the first key, with the role admin. From then on every call of the service needs a key; this page signs in with the new one.</p>` : null}
      <div class="fields">
        <${Field} name="name" title="Name" hint="for lists" maxlength="128" autocomplete="off" placeholder="ci" />
        ${first ? null : html`<label class="field"><span>Role</span><select name="role">${Object.entries(ROLES).map(([value, title]) => html`<option value=${value} selected=${value === "write"}>${title}</option>`)}</select></label>
          <label class="field"><span>Valid</span><select name="lasts">${Object.entries(LASTS).map(([value, title]) => html`<option value=${value}>${title}</option>`)}</select></label>`}
      </div>
      <${Trouble} problem=${problem} />
      <div class="send"><button class="primary" disabled=${busy}>${busy ? "Making…" : "Make the key"}</button></div>
    </form>
  <//>`;
}

// ----------------------------------------------------------------------------------------------------- secrets

function Secrets() {
  const [found, look, problem] = useRead(readSecrets);
  const [asking, setAsking] = useState(false);
  const [made, setMade] = useState(null);
  const inEnvironment = found?.inEnvironment;
  const rotate = async () => {
    setMade(await rotateSecret());
    look();
  };
  const button = found && inEnvironment == null ? html`<button type="button" onClick=${() => setAsking(true)}>Rotate…</button>` : null;
  return html`<${Card} title="Webhook secrets" extra=${button}>
    <${Trouble} problem=${problem} />
    ${inEnvironment == null ? null : html`<p class="about muted">This tenant signs with the setting <code>WEBHOOK_SECRET</code>, which has ${many(inEnvironment, "secret")}. To rotate, put the new one in front there and restart.</p>`}
    ${found && inEnvironment == null && !found.secrets.length ? html`<p class="about muted">There is none, and without one no webhook is sent. Rotate makes the first.</p>` : null}
    ${found?.secrets.length
      ? html`<ul class="facts">${found.secrets.map((one) => html`<li key=${one.id}><p><code>${one.fingerprint}</code> <span class="muted">made ${when(one.createdAt)}${one.signsUntil ? `, signs until ${when(one.signsUntil)}` : ""}</span></p></li>`)}</ul>`
      : null}
    ${asking
      ? html`<${Confirm} title="Rotate the webhook secret" action="Rotate" onYes=${rotate} onClose=${() => setAsking(false)}>
          <p>A new secret is made, and shown once. The one before signs beside it for 24 hours, so that receivers can follow.</p><//>`
      : null}
    ${made ? html`<${Once} title="The new secret" label="Secret" text=${made.secret} onClose=${() => setMade(null)} />` : null}
  <//>`;
}

// --------------------------------------------------------------------------------------------------- endpoints

const readEndpoints = () => jobs.endpoints();

function Endpoints() {
  const [found, look, problem] = useRead(readEndpoints);
  return html`<${Card} title="Endpoints">
    <${Trouble} problem=${problem} />
    ${found && !found.length ? html`<p class="about muted">No webhook was sent lately, and no URL gets those of all jobs.</p>` : null}
    ${found?.length ? html`<ul class="facts">${found.map((one) => html`<${EndpointRow} key=${one.url} endpoint=${one} reload=${look} />`)}</ul>` : null}
    <${AddEndpoint} reload=${look} />
  <//>`;
}

function EndpointRow({ endpoint, reload }) {
  const [run, problem, busy] = useWork();
  const [tested, setTested] = useState(null);
  const [removing, setRemoving] = useState(false);
  const { url, status, events } = endpoint;
  const enable = async () => {
    if (await run(() => jobs.enableEndpoint(url))) say("Enabled");
    reload();
  };
  const test = () => run(async () => setTested(await jobs.testWebhook(url)));
  const remove = async () => {
    await jobs.deleteEndpoint(url);
    say("Removed");
    await reload();
  };
  return html`<li data-endpoint=${url}>
    <p><${State} state=${status} /><b class="url">${url}</b><span class="muted">${events ? `all jobs, ${many(events.length, "event")}` : "single jobs"} · ${count(endpoint.successes)} delivered, ${count(endpoint.failures)} failed${endpoint.lastError ? ` · ${endpoint.lastError}` : ""}</span></p>
    <div class="actions">
      <button type="button" onClick=${test} disabled=${busy} aria-label=${`Test ${url}`}>${busy ? "Working…" : "Test"}</button>
      ${status === "disabled" ? html`<button type="button" onClick=${enable} disabled=${busy} aria-label=${`Enable ${url}`}>Enable</button>` : null}
      ${events ? html`<button type="button" class="danger" onClick=${() => setRemoving(true)} aria-label=${`Remove ${url}`}>Remove…</button>` : null}
    </div>
    <p role="status">${tested ? html`<span class="outcome" data-tone=${tested.delivered ? "good" : "bad"}>${resultOf(tested)}</span>` : ""}</p>
    <${Trouble} problem=${problem} />
    ${removing ? html`<${Confirm} title="Remove the endpoint" action="Remove" onYes=${remove} onClose=${() => setRemoving(false)}><p class="url">${url}</p><p>It gets no more webhooks of all jobs. Those that are still to be delivered there fail.</p><//>` : null}
  </li>`;
}

function resultOf({ delivered, statusCode, latencyMs, error, advice }) {
  const answer = statusCode ? `answered ${statusCode}` : error;
  return `${delivered ? "Delivered" : "Not delivered"}: ${answer} in ${latencyMs} ms${advice ? `. ${advice}` : ""}`;
}

function AddEndpoint({ reload }) {
  const [run, problem, busy] = useWork();
  const submit = async (event) => {
    event.preventDefault();
    const form = event.currentTarget;
    const secret = form.elements.secret.value;
    if (!(await run(() => jobs.addEndpoint(form.elements.url.value.trim(), secret ? { secret } : {})))) return;
    form.reset();
    say("Added");
    reload();
  };
  return html`<form class="row" onSubmit=${submit} aria-label="Add an endpoint">
    <${Field} name="url" title="URL" hint="gets the webhooks of all jobs" type="url" required placeholder="https://you.example/hooks" />
    <${Field} name="secret" title="Secret" hint="optional" type="password" autocomplete="off" maxlength="512" />
    <button disabled=${busy}>${busy ? "Adding…" : "Add"}</button>
    <${Trouble} problem=${problem} />
  </form>`;
}

// ------------------------------------------------------------------------------------------------------ limits

function Limits({ found, reload }) {
  return html`<${Card} title="Limits">
    <p class="about muted">Of lanes: a key of the model’s API and a family of models, for all workers and tenants.
      ${found.operator ? " An empty field is no limit of its own." : " Only admins of the operator’s tenant change them."}</p>
    ${found.lanes.length
      ? found.lanes.map((lane) => html`<${LaneForm} key=${lane.lane} lane=${lane} editable=${found.operator} reload=${reload} />`)
      : html`<p class="about muted">There are no lanes${found.operator ? " yet; the first call of a model makes its own" : " that your jobs use at the moment"}.</p>`}
  <//>`;
}

const LANE_FIELDS = [
  { name: "perSecond", title: "Calls per second", set: "perSecondSet", seen: "perSecondSeen", step: "any", min: "0.001" },
  { name: "atOnce", title: "Calls at once", set: "atOnce", step: "1", min: "1" },
  { name: "tokensPerMinute", title: "Tokens per minute", set: "tokensPerMinuteSet", seen: "tokensPerMinuteSeen", step: "1", min: "1" },
];

function LaneForm({ lane, editable, reload }) {
  const [run, problem, busy] = useWork();
  const submit = async (event) => {
    event.preventDefault();
    const given = Object.entries(Object.fromEntries(new FormData(event.currentTarget))).filter(([, value]) => value !== "");
    const limits = Object.fromEntries(given.map(([name, value]) => [name, Number(value)]));
    if (await run(() => setLimits(lane.lane, limits))) say("Limits set");
    reload();
  };
  return html`<form class="row" onSubmit=${submit} aria-label=${`Limits of ${lane.lane}`}>
    <b class="wide">${lane.lane}</b>
    ${LANE_FIELDS.map(({ name, title, set, seen, ...input }) => html`<${Field} name=${name} title=${title} hint=${seen && lane[seen] != null ? `the model says ${lane[seen]}` : undefined}
      type="number" initial=${lane[set] ?? ""} placeholder=${lane[name] ?? "any"} disabled=${!editable} ...${input} />`)}
    ${editable ? html`<button disabled=${busy} aria-label=${`Save the limits of ${lane.lane}`}>${busy ? "Saving…" : "Save"}</button>` : null}
    <${Trouble} problem=${problem} />
  </form>`;
}

function Pausing({ session }) {
  const [run, problem, busy] = useWork();
  const submit = async (event) => {
    event.preventDefault();
    const form = event.currentTarget;
    if (!(await run(() => jobs.pause({ tenant: session.tenant, reason: form.elements.reason.value.trim() })))) return;
    form.reset();
    say("Paused");
  };
  return html`<${Card} title="Pause">
    <p class="about muted">No call of the model starts for jobs of ${session.tenant} until it is resumed, above. Answers that are being written go on.</p>
    <form class="row" onSubmit=${submit} aria-label="Pause">
      <${Field} name="reason" title="Reason" hint="optional" maxlength="500" autocomplete="off" />
      <button disabled=${busy}>Pause ${session.tenant}</button>
      <${Trouble} problem=${problem} />
    </form>
  <//>`;
}

// ------------------------------------------------------------------------------------------------- environment

const NAMES = {
  CHATJOBS_RETENTION_DAYS: "Finished jobs are kept",
  CHATJOBS_MAX_BODY_BYTES: "Largest request",
  CHATJOBS_MAX_FILE_BYTES: "Largest file of batches",
  MISTRAL_REQUESTS_PER_SECOND: "Calls per second of a lane without a limit of its own",
  CHATJOBS_CONTINUATION: "How interrupted answers go on",
  CHATJOBS_WEBHOOK_HTTP: "Webhooks to plain http",
};

const Environment = ({ found }) => html`<${Card} title="What runs">
  <p class="about muted">These are settings of the gateway’s environment: they change there, with a restart.</p>
  <dl class="environment">
    ${found.environment.map((one) => html`<dt>${NAMES[one.variable] ?? one.variable}<small><code>${one.variable}</code></small></dt><dd>${worded(one)}</dd>`)}
    <dt>Database</dt><dd>${found.database === "sqlite" ? "SQLite" : "Postgres"}, schema ${found.schemaVersion}</dd>
    <dt>Version of the API</dt><dd>${found.version}</dd>
  </dl>
<//>`;

function worded({ value, unit }) {
  if (typeof value === "boolean") return value ? "allowed" : "refused";
  if (unit === "bytes") return size(value);
  return [value, unit].filter((part) => part !== null).join(" ");
}
