// Keys that do something without a modifier, and the dialog that lists them.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { Dialog } from "./parts.js";

const KEYS = [
  ["/", "search, in the list of jobs"],
  ["j", "the next row of a list"],
  ["k", "the row before"],
  ["Enter", "open the row"],
  ["x", "select the job of the row, or take it out of the selection"],
  ["Escape", "clear the selection; close a dialog"],
  ["?", "show these keys"],
];
const OFF = "chatjobs.keys";
const handlers = new Set();

/** Local storage, which throws in some browsers' private windows. */
const setting = {
  get on() {
    try {
      return localStorage.getItem(OFF) !== "off";
    } catch {
      return true;
    }
  },
  set on(value) {
    try {
      if (value) localStorage.removeItem(OFF);
      else localStorage.setItem(OFF, "off");
    } catch {
      // The choice then holds until the next reload.
    }
  },
};
let on = setting.on;

const TYPED_IN = 'input:not([type="checkbox"], [type="radio"], [type="button"], [type="submit"], [type="file"]), textarea, select, [contenteditable]';

/** Whether a key press is meant for what has the focus: a field, a dialog, or a shortcut of the browser's own. */
function isTaken(event) {
  if (event.defaultPrevented || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return true;
  if (event.shiftKey && /^[a-z]$/i.test(event.key)) return true; // “?” needs Shift on many keyboards, a letter does not
  return Boolean(event.target.closest?.(TYPED_IN) || document.querySelector("dialog[open]"));
}

document.addEventListener("keydown", (event) => {
  if (!on || isTaken(event)) return;
  const handle = [...handlers].map((ref) => ref.current[event.key]).findLast(Boolean);
  if (!handle) return;
  event.preventDefault(); // “/” is also the quick find of a browser
  handle(event);
});

/** Functions by the key that calls them, while the component is shown; the newest component's come first. */
export function useKeys(byKey) {
  const ref = useRef(byKey);
  ref.current = byKey;
  useEffect(() => {
    handlers.add(ref);
    return () => handlers.delete(ref);
  }, []);
}

/** j and k move the focus through the links of a table's rows, where Enter follows them. */
export function useRowKeys(row) {
  const step = (by) => {
    const rows = [...document.querySelectorAll(row)];
    const at = rows.indexOf(document.activeElement?.closest(row));
    const next = at < 0 ? rows.find((one) => one.getBoundingClientRect().bottom > 0) : rows[at + by];
    next?.querySelector("a[href]")?.focus();
  };
  useKeys({ j: () => step(1), k: () => step(-1) });
}

/** All keys, and a switch for people whose speech input or keyboard presses them by chance (WCAG 2.1.4). */
export function KeysHelp({ onClose }) {
  const [enabled, setEnabled] = useState(on);
  const toggle = (event) => {
    on = setting.on = event.currentTarget.checked;
    setEnabled(on);
  };
  return html`<${Dialog} title="Keys" onClose=${onClose}>
    <div class="body">
      <dl class="keys">${KEYS.map(([key, what]) => html`<dt><kbd>${key}</kbd></dt><dd>${what}</dd>`)}</dl>
      <p class="muted">Not while you type in a field.</p>
      <label class="check"><input type="checkbox" checked=${enabled} onClick=${toggle} /><span>Use these keys</span></label>
    </div>
  <//>`;
}
