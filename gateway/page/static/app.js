// The page: the session, and the view that the address names.

import { html, render, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { isAway, isPassing, session as readSession, signIn, signOut as endSession, signedOut } from "./api.js";
import { BatchView } from "./batch.js";
import { BatchesView } from "./batches.js";
import { JobView, ThreadView } from "./job.js";
import { KeysHelp, useKeys } from "./keys.js";
import { ListView } from "./list.js";
import { Alone, Notices, Trouble } from "./parts.js";
import { Pauses } from "./pauses.js";
import { BackToList, Link, keepPlaces, leavingList, useAddress } from "./places.js";
import { Caller, may } from "./roles.js";
import { SchedulesView } from "./schedules.js";
import { SettingsView } from "./settings.js";

const CONNECTION = { live: "Live", reconnecting: "Reconnecting", paused: "Paused", ended: "Finished" };

/** `keysRequired` and `authenticated` of the session; null until they are known. */
function useSession() {
  const [session, set] = useState(null);
  const [problem, setProblem] = useState(null);
  const look = () =>
    readSession().then(
      (found) => (set(found), setProblem(null)),
      (error) => setProblem(error),
    );
  useEffect(() => {
    look();
    const onSignedOut = () => set((now) => (now?.keysRequired ? { ...now, authenticated: false, ended: now.authenticated || now.ended } : (look(), now)));
    signedOut.addEventListener("signed-out", onSignedOut);
    return () => signedOut.removeEventListener("signed-out", onSignedOut);
  }, []);
  return [session, look, problem];
}

function App() {
  const address = useAddress();
  const [session, look, problem] = useSession();
  const [connection, setConnection] = useState(null);
  const [help, setHelp] = useState(false);
  useKeys({ "?": () => setHelp(true) });
  const [, place, id] = /^\/(jobs|threads|batches|schedules|settings)(?:\/([^/]+))?\/?$/.exec(address.pathname) ?? [];
  useEffect(() => {
    if (!problem || !isPassing(problem)) return undefined;
    const timer = setInterval(look, 2000);
    return () => clearInterval(timer);
  }, [problem]);

  if (!session) {
    if (problem) return html`<${Alone} title="The service is not there"><${Trouble} problem=${problem} /><p class="muted">The page keeps trying.</p><//>`;
    return html`<main class="alone"><h1 class="hidden">chatjobs</h1><p class="muted">Loading…</p></main>`;
  }
  if (session.keysRequired && !session.authenticated) return html`<${Login} onDone=${look} ended=${session.ended} />`;
  return html`<${Caller.Provider} value=${session}><${Bar} place=${place} id=${id} connection=${connection} session=${session} onSignedOut=${look} onHelp=${() => setHelp(true)} /><${Pauses} />
    <${View} place=${place} id=${id && decoded(id)} address=${address} session=${session} onConnection=${setConnection} onSession=${look} /><${Notices} />
    ${help ? html`<${KeysHelp} onClose=${() => setHelp(false)} />` : null}<//>`;
}

function View({ place, id, address, session, onConnection, onSession }) {
  if (place === "settings") return html`<${SettingsView} session=${session} onSession=${onSession} />`;
  if (place === "schedules") return html`<${SchedulesView} />`;
  if (place === "batches") {
    return id ? html`<${BatchView} key=${id} id=${id} onConnection=${onConnection} />` : html`<${BatchesView} onConnection=${onConnection} />`;
  }
  if (place === "threads" && id) return html`<${ThreadView} key=${id} id=${id} address=${address} session=${session} onConnection=${onConnection} />`;
  return id
    ? html`<${JobView} key=${id} id=${id} session=${session} onConnection=${onConnection} />`
    : html`<${ListView} address=${address} onConnection=${onConnection} />`;
}

function Bar({ place, id, connection, session, onSignedOut, onHelp }) {
  const signOut = async () => {
    await endSession();
    onSignedOut();
  };
  const onList = !id && !["batches", "schedules", "settings"].includes(place);
  return html`<header class="bar">
    <${Link} href="/" class="mark"><img src="/assets/icon.svg" alt="" width="22" height="22" /><span>chatjobs</span><//>
    <nav aria-label="Main">
      ${onList ? html`<${Link} href="/" aria-current="page">Jobs<//>` : html`<${BackToList}>Jobs<//>`}
      <${Link} href="/batches" aria-current=${place === "batches" && !id ? "page" : undefined} onLeave=${onList ? leavingList : undefined}>Batches<//>
      <${Link} href="/schedules" aria-current=${place === "schedules" ? "page" : undefined} onLeave=${onList ? leavingList : undefined}>Schedules<//>
      ${may(session, "admin") ? html`<${Link} href="/settings" aria-current=${place === "settings" ? "page" : undefined} onLeave=${onList ? leavingList : undefined}>Settings<//>` : null}
      <a href="/docs">API</a>
    </nav>
    <button type="button" class="quiet keys" onClick=${onHelp} aria-label="Keys" title="Keys (?)" aria-keyshortcuts="?">?</button>
    ${connection &&
    html`<span class="connection" data-state=${connection} role="status"><i aria-hidden="true" />${CONNECTION[connection]}</span>`}
    ${session.authenticated && session.keysRequired
      ? html`<button type="button" class="quiet" onClick=${signOut}>Sign out</button>`
      : null}
  </header>`;
}

/** The message for a failed sign-in. */
function wordsOf(problem) {
  if (isAway(problem)) return "The service does not answer. Your key was not checked; try again in a moment.";
  if (problem.status === 429) return "Too many keys were tried that are not known here. Wait half a minute, then try again.";
  if (problem.status >= 500) return "The service cannot check keys just now. Your key may be right; try again in a moment.";
  return { key_expired: `${problem.message} Ask for a new one.`, key_revoked: `${problem.message} Ask for a new one.`, unauthorized: "This key is not known here. See whether it was copied whole: it begins with cj_ and has 46 characters." }[problem.reason] ?? problem.message;
}

function Login({ onDone, ended }) {
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const field = useRef(null);
  useEffect(() => {
    if (!problem) return;
    field.current.focus();
    field.current.select(); // typing replaces the rejected key
  }, [problem]);
  useEffect(() => field.current.focus(), []);
  const submit = async (event) => {
    event.preventDefault();
    const key = field.current.value.trim();
    setProblem(null);
    try {
      if (!key) return setProblem({ message: "Paste your API key into the field." });
      setBusy(true);
      await signIn(key);
      field.current.value = "";
      await onDone();
    } catch (error) {
      setProblem({ message: wordsOf(error) });
      setBusy(false);
    }
  };
  return html`<main class="alone">
    <form class="card login" onSubmit=${submit} novalidate>
      <img src="/assets/icon.svg" alt="" width="40" height="40" />
      <h1>Sign in to chatjobs</h1>
      <p class="muted">${ended ? "Your session has ended: its key has expired or was revoked. " : ""}With an API key. It is exchanged for a cookie that scripts cannot read.</p>
      <label class="field"><span>API key</span><input name="key" type="password" autocomplete="current-password" required ref=${field}
        aria-invalid=${problem ? "true" : undefined} aria-describedby=${problem ? "login-trouble" : undefined} /></label>
      <div id="login-trouble"><${Trouble} problem=${problem} /></div>
      <button class="primary" disabled=${busy}>${busy ? "Signing in…" : "Sign in"}</button>
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

keepPlaces();
render(html`<${App} />`, document.getElementById("app"));
