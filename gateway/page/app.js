// The page: who is looking, and which view the address names.

import { html, render, useEffect, useState } from "./vendor/htm-preact.js";
import { call, signedOut } from "./api.js";
import { JobView } from "./job.js";
import { ListView } from "./list.js";
import { Link, Notices, Trouble, useAddress } from "./parts.js";

const CONNECTION = { live: "Live", reconnecting: "Reconnecting", paused: "Paused", ended: "Finished" };

/** `keysRequired` and `authenticated` of the session; null until they are known. */
function useSession() {
  const [session, set] = useState(null);
  const [problem, setProblem] = useState(null);
  const look = () =>
    call("GET", "/api/session").then(
      (found) => (set(found), setProblem(null)),
      (error) => setProblem(error),
    );
  useEffect(() => {
    look();
    const onSignedOut = () => set((now) => (now?.keysRequired ? { ...now, authenticated: false } : (look(), now)));
    signedOut.addEventListener("signed-out", onSignedOut);
    return () => signedOut.removeEventListener("signed-out", onSignedOut);
  }, []);
  return [session, look, problem];
}

function App() {
  const address = useAddress();
  const [session, look, problem] = useSession();
  const [connection, setConnection] = useState(null);
  const asked = /^\/jobs\/([^/]+)\/?$/.exec(address.pathname);
  const jobId = asked && decoded(asked[1]);
  useEffect(() => {
    if (problem?.status !== 0 && !(problem?.status >= 500)) return undefined;
    const timer = setInterval(look, 2000);
    return () => clearInterval(timer);
  }, [problem]);

  if (!session) {
    return html`<main class="alone">${problem ? html`<${Trouble} problem=${problem} />` : html`<p class="muted">Loading…</p>`}</main>`;
  }
  if (session.keysRequired && !session.authenticated) return html`<${Login} onDone=${look} />`;
  const view = jobId
    ? html`<${JobView} key=${jobId} id=${jobId} session=${session} onConnection=${setConnection} />`
    : html`<${ListView} address=${address} onConnection=${setConnection} />`;
  return html`<${Bar} connection=${connection} session=${session} onSignedOut=${look} />${view}<${Notices} />`;
}

function Bar({ connection, session, onSignedOut }) {
  const signOut = async () => {
    await call("DELETE", "/api/session");
    onSignedOut();
  };
  return html`<header class="bar">
    <${Link} href="/" class="mark"><img src="/assets/icon.svg" alt="" width="22" height="22" />chatjobs<//>
    <nav aria-label="Main"><${Link} href="/">Jobs<//><a href="/docs">API</a></nav>
    ${connection &&
    html`<span class="connection" data-state=${connection} role="status"><i aria-hidden="true" />${CONNECTION[connection]}</span>`}
    ${session.authenticated && session.keysRequired
      ? html`<button type="button" class="quiet" onClick=${signOut}>Sign out</button>`
      : null}
  </header>`;
}

function Login({ onDone }) {
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    const form = event.currentTarget;
    setBusy(true);
    try {
      await call("POST", "/api/session", { body: { key: new FormData(form).get("key").trim() } });
      form.reset();
      await onDone();
    } catch (error) {
      setProblem(error);
      setBusy(false);
    }
  };
  return html`<main class="alone">
    <form class="card login" onSubmit=${submit}>
      <img src="/assets/icon.svg" alt="" width="40" height="40" />
      <h1>Sign in to chatjobs</h1>
      <p class="muted">With an API key. It is exchanged for a cookie that scripts cannot read.</p>
      <label class="field"><span>API key</span><input name="key" type="password" autocomplete="current-password" required autofocus /></label>
      <${Trouble} problem=${problem} />
      <button class="primary" disabled=${busy}>Sign in</button>
    </form>
  </main>`;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

render(html`<${App} />`, document.getElementById("app"));
