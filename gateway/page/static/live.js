// What keeps a tab up to date, by server-sent events or by polling; nothing while the tab is hidden.

import { signedOut } from "./api.js";

// A browser opens six connections to a host for all tabs together, so hidden tabs must not hold any.
const FINAL = new Set([204, 400, 401, 404, 410]);
const LONGEST_PAUSE_MS = 10_000;

/**
 * Follow a stream until the returned function is called.
 *
 * `handlers` maps event names to functions of (data, id). `tell` is called with "live", "reconnecting", "paused" and,
 * with the status, "ended".
 */
export function follow(url, handlers, tell = () => {}) {
  let source = null;
  let lastId = null;
  let timer = 0;
  let failures = 0;
  let over = false;

  const address = () => (lastId === null ? url : `${url}?lastEventId=${encodeURIComponent(lastId)}`);

  function open() {
    close();
    if (over || document.hidden) return;
    source = new EventSource(address());
    const mine = source;
    mine.onopen = () => {
      failures = 0;
      tell("live");
    };
    for (const [name, handle] of Object.entries(handlers)) {
      mine.addEventListener(name, (event) => {
        // The browser's own "error" event, for a connection error, has no data.
        if (mine !== source || event.data === undefined) return;
        if (event.lastEventId) lastId = event.lastEventId; // `queued` events have none
        handle(JSON.parse(event.data), event.lastEventId);
      });
    }
    mine.onerror = (event) => {
      if (mine !== source || event.data !== undefined) return;
      tell("reconnecting");
      if (mine.readyState === EventSource.CLOSED) lookAgain();
    };
  }

  /** EventSource has given up without a reason: fetch the status, and reconnect unless it is final. */
  async function lookAgain() {
    close();
    const status = await statusOf(address());
    if (over || document.hidden) return;
    if (FINAL.has(status)) {
      stop();
      tell("ended", status);
      if (status === 401) signedOut.dispatchEvent(new Event("signed-out"));
      return;
    }
    timer = setTimeout(open, Math.min(500 * 2 ** failures++, LONGEST_PAUSE_MS) * (0.75 + Math.random() / 2));
  }

  function close() {
    clearTimeout(timer);
    source?.close();
    source = null;
  }

  function onVisibility() {
    if (document.hidden) {
      close();
      tell("paused");
    } else if (!source) {
      failures = 0;
      open();
    }
  }

  function stop() {
    over = true;
    close();
    document.removeEventListener("visibilitychange", onVisibility);
  }

  document.addEventListener("visibilitychange", onVisibility);
  if (document.hidden) tell("paused");
  else open();
  return stop;
}

/**
 * Poll until the returned function is called: `look` at once, so many milliseconds after each result, and when the tab
 * is shown again; not while it is hidden. `look` returns whether it succeeded; `tell` is as for `follow`.
 */
export function poll(look, every, tell = () => {}) {
  let timer = 0;
  let turn = 0;

  async function next() {
    clearTimeout(timer);
    const mine = ++turn;
    if (document.hidden) return tell("paused");
    const well = await look();
    if (mine !== turn || document.hidden) return;
    tell(well ? "live" : "reconnecting");
    timer = setTimeout(next, every);
  }

  document.addEventListener("visibilitychange", next);
  next();
  return () => {
    turn++;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", next);
  };
}

async function statusOf(url) {
  const hangUp = new AbortController();
  const timer = setTimeout(() => hangUp.abort(), 10_000);
  try {
    return (await fetch(url, { headers: { Accept: "text/event-stream" }, signal: hangUp.signal })).status;
  } catch {
    return 0;
  } finally {
    clearTimeout(timer);
    hangUp.abort();
  }
}
