// Navigation: addresses, and the scroll position of each entry of the browser's history.

import { html, useEffect, useState } from "./vendor/htm-preact.js";

const MOST_PLACES = 50;
const KEPT = "chatjobs.places";
const moved = new EventTarget();

/** Places by the key of their history entry, oldest first. Session storage survives a reload; it may be disabled. */
const places = new Map(stored());
let key = history.state?.key;
let arrived = false;
let describe = () => ({ y: scrollY });

/** Disable the browser's scroll restoration: it would scroll before the content is loaded. */
export function keepPlaces() {
  history.scrollRestoration = "manual";
  if (!key) {
    key = newEntry();
    history.replaceState({ key }, "");
  }
  addEventListener("pagehide", remember);
}

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT)) ?? [];
  } catch {
    return [];
  }
}

function newEntry() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function remember() {
  places.delete(key);
  places.set(key, describe());
  for (const oldest of [...places.keys()].slice(0, -MOST_PLACES)) places.delete(oldest);
  try {
    sessionStorage.setItem(KEPT, JSON.stringify([...places]));
  } catch {
    // Without storage, places last until the next reload.
  }
}

/** The saved place of this entry after going back or a reload. */
export const placeHere = () => places.get(key);

/** Register what a view saves with its scroll position, until the returned function is called. */
export function keepingPlace(of) {
  describe = () => ({ y: scrollY, ...of() });
  return () => {
    describe = () => ({ y: scrollY });
  };
}

/** Whether the reader has just navigated, so that the view should take the focus; true once. */
export function takeArrival() {
  const found = arrived;
  arrived = false;
  return found;
}

const here = () => location.pathname + location.search;

export function go(url, { replace = false, place } = {}) {
  if (url === here()) return;
  const before = location.pathname;
  if (replace) {
    history.replaceState(history.state, "", url);
  } else {
    remember();
    const from = here();
    key = newEntry();
    if (place) places.set(key, place);
    history.pushState({ key, from }, "", url);
  }
  arrived ||= location.pathname !== before;
  if (location.pathname !== before) scrollTo(0, 0);
  moved.dispatchEvent(new Event("moved"));
}

/** The last address and place of the list. */
const LIST = "chatjobs.list";

export function leavingList() {
  const left = { url: here(), place: describe() };
  try {
    sessionStorage.setItem(LIST, JSON.stringify(left));
  } catch {
    // Without storage, the link leads to the unfiltered list.
  }
}

function listLeft() {
  try {
    return JSON.parse(sessionStorage.getItem(LIST)) ?? { url: "/" };
  } catch {
    return { url: "/" };
  }
}

/** A link to the list as it was left; it goes back in history if the list is the previous entry. */
export function BackToList({ children, ...rest }) {
  const { url, place } = listLeft();
  const onClick = (event) => {
    if (isOtherTab(event)) return;
    event.preventDefault();
    if (history.state?.from === url) history.back();
    else go(url, { place });
  };
  return html`<a href=${url} onClick=${onClick} ...${rest}>${children}</a>`;
}

/** The current address, updated by links, the back button and `go`. */
export function useAddress() {
  const [address, set] = useState(() => new URL(location.href));
  useEffect(() => {
    const look = () => set(new URL(location.href));
    const onBack = () => {
      remember(); // the place of the entry that was left: the page still shows it
      const before = address.pathname;
      key = history.state?.key ?? newEntry();
      history.replaceState({ ...history.state, key }, "");
      arrived ||= location.pathname !== before;
      look();
    };
    addEventListener("popstate", onBack);
    moved.addEventListener("moved", look);
    return () => {
      removeEventListener("popstate", onBack);
      moved.removeEventListener("moved", look);
    };
  }, [address]);
  return address;
}

export const jobHref = (id) => `/jobs/${encodeURIComponent(id)}`;
export const threadHref = (thread, id) => `/threads/${encodeURIComponent(thread)}${id ? `?at=${encodeURIComponent(id)}` : ""}`;

const isOtherTab = (event) => event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey;

/** A real link, which can be opened in a new tab; a plain click navigates within the page. */
export function Link({ href, children, onLeave, ...rest }) {
  const onClick = (event) => {
    if (isOtherTab(event)) return;
    event.preventDefault();
    onLeave?.();
    go(href);
  };
  return html`<a href=${href} onClick=${onClick} ...${rest}>${children}</a>`;
}
