// What keeps a tab up to date, by server-sent events or by polling; nothing while the tab is hidden: a browser opens six
// connections to a host for all tabs together.

import { ChatJobsError } from "./api.js";

/**
 * Follow a stream until the returned function is called.
 *
 * `open` opens a stream of the client with the options given; `take` is called with each event and the stream, and
 * `tell` with "live", "reconnecting", "paused" and, with an error or null, "ended".
 */
export function follow(open, take, tell = () => {}) {
  let stream = null;
  let lastEventId = "";
  let over = false;

  async function read() {
    const isMine = () => stream === mine;
    const onConnection = (connected) => isMine() && tell(connected ? "live" : "reconnecting");
    const mine = open({ lastEventId, timeout: Infinity, onConnection });
    stream = mine;
    const error = await ended(mine, isMine);
    if (!isMine()) return;
    stop();
    tell("ended", error);
  }

  /** Null at the end of the stream, or the error that ended it. */
  async function ended(mine, isMine) {
    try {
      for await (const event of mine) {
        if (!isMine()) break;
        lastEventId = mine.lastEventId;
        take(event, mine);
      }
      return null;
    } catch (error) {
      if (error instanceof ChatJobsError) return error;
      throw error;
    }
  }

  function close() {
    const closed = stream;
    stream = null;
    closed?.close();
  }

  function onVisibility() {
    if (document.hidden) {
      close();
      tell("paused");
    } else if (!stream && !over) read();
  }

  function stop() {
    over = true;
    close();
    document.removeEventListener("visibilitychange", onVisibility);
  }

  document.addEventListener("visibilitychange", onVisibility);
  if (document.hidden) tell("paused");
  else read();
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
