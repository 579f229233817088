// An answer: rendered as Markdown or as its exact text, while it is written and after, and where it was continued.

import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { streams } from "./api.js";
import { count } from "./format.js";
import { Rendering, codeBlock, copiedCode } from "./markdown.js";
import { copy, say } from "./parts.js";
import { brief, hasSeams, legendOf, stretchesOf, tell, usualRuns } from "./provenance.js";
import { RawText } from "./raw.js";

const VIEW = "chatjobs.view";
/** Characters of an answer that is rendered without being asked to. */
export const MOST_RENDERED = 300_000;
/** Characters that one animation frame renders, or this part of those before, as each frame lays them out again. */
const SLICE = 40_000;
const GROWTH = 1 / 8;
/** Those of the first frame of a whole text, which then has its height at once. */
const FIRST_SLICE = 150_000;
/** The part of the time that rendering takes while text arrives: one of so many. */
const SHARE = 8;
const LONGEST_PAUSE_MS = 1000;
const RUNS_MS = 30_000;

// ----------------------------------------------------------------------------------------------------- the choice

function keptView() {
  try {
    return localStorage.getItem(VIEW) === "raw" ? "raw" : "rendered";
  } catch {
    return "rendered"; // some browsers' private windows
  }
}

/** `[view, setView]`; the last choice is kept for the next answer. */
export function useView() {
  const [view, set] = useState(keptView);
  const choose = (next) => {
    set(next);
    try {
      localStorage.setItem(VIEW, next);
    } catch {
      // The next answer is then rendered.
    }
  };
  return [view, choose];
}

export async function copyOrSay(text, what) {
  if (!(await copy(text, what))) say("The browser does not allow copying here");
}

/** What can be done with an answer's text. `text` gives the exact text, `id` is its job's. */
export function AnswerTools({ view, onView, text, id }) {
  const choice = (name, title) => html`<button type="button" aria-pressed=${view === name ? "true" : "false"} onClick=${() => onView(name)}>${title}</button>`;
  return html`<div class="tools">
    <span class="switch" role="group" aria-label="View">${choice("rendered", "Rendered")}${choice("raw", "Raw")}</span>
    <button type="button" class="quiet" aria-label="Copy answer" onClick=${() => copyOrSay(text(), "Answer")}>Copy</button>
    ${id ? html`<button type="button" class="quiet" onClick=${() => copyOrSay(id, "Id")}>Copy id</button>` : null}
  </div>`;
}

const onCopy = (event) => {
  const code = copiedCode(event);
  if (code !== null) copyOrSay(code, "Code");
};

// ------------------------------------------------------------------------------------------------- whole texts

/** A text that does not change. */
export function Words({ text, view, ...rest }) {
  const ref = useRef(null);
  const rendered = view === "rendered" && text.length <= MOST_RENDERED;
  useLayoutEffect(() => {
    const shown = rendered ? new Rendering(ref.current) : new RawText(ref.current);
    shown.show(text);
    shown.finish?.();
  }, [text, rendered]);
  return html`<div key=${rendered} class=${rendered ? "rendered" : "text"} ref=${ref} onClick=${onCopy} ...${rest}></div>`;
}

/** A value as a block of JSON that can be copied. */
export function JsonBlock({ value }) {
  const ref = useRef(null);
  const text = useMemo(() => JSON.stringify(value, null, 2), [value]);
  useLayoutEffect(() => ref.current.replaceChildren(codeBlock(text, "json")), [text]);
  return html`<div class="rendered" ref=${ref} onClick=${onCopy}></div>`;
}

// ----------------------------------------------------------------------------------------------- growing texts

/** The whole text as a code block; indented once it is valid JSON. */
class JsonText {
  constructor(root) {
    this.root = root;
  }

  show(text) {
    const block = this.root.firstChild ?? codeBlock("", "json");
    const code = block.querySelector("code");
    if (text.startsWith(code.textContent) && code.firstChild) code.firstChild.appendData(text.slice(code.firstChild.length));
    else code.replaceChildren(document.createTextNode(text));
    if (!block.parentNode) this.root.append(block);
  }

  finish() {
    const code = this.root.querySelector("code");
    try {
      if (code) code.textContent = JSON.stringify(JSON.parse(code.textContent), null, 2);
    } catch {
      // Shown as it is.
    }
  }
}

/**
 * Shows a transcript's channel with a Rendering, RawText or JsonText: at most once per animation frame, a bounded part of
 * it at once, and less often where that is slow. Returns what ends it.
 */
function keepShown(shown, transcript, channel, done) {
  let length = 0;
  let frame = 0;
  let timer = 0;
  const write = () => {
    frame = 0;
    const text = transcript.texts[channel];
    length = Math.min(text.length, length || !done.current ? Math.floor(length + Math.max(SLICE, length * GROWTH)) : FIRST_SLICE);
    const began = performance.now();
    shown.show(length === text.length ? text : text.slice(0, length));
    const whole = length === text.length;
    if (whole && done.current) shown.finish?.();
    const pause = Math.min((performance.now() - began) * SHARE, LONGEST_PAUSE_MS);
    timer = setTimeout(() => {
      timer = 0;
      if (length !== transcript.texts[channel].length) next();
    }, whole ? pause : 0);
  };
  const next = () => {
    if (!timer) frame ||= requestAnimationFrame(write);
  };
  const watch = (change) => {
    if (change === null) length = 0;
    if (change === null || change.channel === channel) next();
  };
  write();
  transcript.watchers.add(watch);
  return {
    finish: next,
    stop: () => {
      transcript.watchers.delete(watch);
      cancelAnimationFrame(frame);
      clearTimeout(timer);
    },
  };
}

const MAKERS = { rendered: Rendering, raw: RawText, json: JsonText };

/** One channel of a transcript, as `view` says; `open` while it is written. `marks`: its stretches, to be told apart. */
export function Body({ transcript, channel, view, open, large = false, marks = null, attempts = [], ...rest }) {
  const ref = useRef(null);
  const shown = useRef(null);
  const done = useRef(!open);
  const writer = useRef(null);
  done.current = !open;
  useLayoutEffect(() => {
    shown.current = new MAKERS[view](ref.current);
    writer.current = keepShown(shown.current, transcript, channel, done);
    return () => writer.current.stop();
  }, [transcript, channel, view]);
  useEffect(() => {
    if (!open) writer.current.finish();
  }, [open]);
  useLayoutEffect(() => shown.current.mark?.(marks, brief), [view, marks, transcript]);
  const tip = useTip(ref, shown, marks, attempts);
  return html`<div key=${view} class=${view === "raw" ? "text" : large ? "rendered large" : "rendered"} ref=${ref} onClick=${onCopy} ...${rest}></div>${tip}`;
}

// ------------------------------------------------------------------------------------------------------- hints

/** The hint for the stretch under the pointer or the focus; Escape takes it away (WCAG 2.2, 1.4.13). */
function useTip(ref, shown, marks, attempts) {
  const [tip, setTip] = useState(null);
  const box = useRef(null);
  useEffect(() => {
    const root = ref.current;
    if (!marks || !root) return setTip(null);
    const look = (event) => {
      const found = stretchesAt(event.target, root, shown.current, marks);
      if (found.length) setTip({ lines: found.map((one) => tell(one, attempts)), at: placeOf(event) });
    };
    const hide = () => setTip(null);
    const leave = (event) => box.current?.contains(event.relatedTarget) || root.contains(event.relatedTarget) || hide();
    const onKey = (event) => event.key === "Escape" && hide();
    const handlers = { pointerover: look, focusin: look, click: look, pointerleave: leave, focusout: leave };
    for (const [name, handler] of Object.entries(handlers)) root.addEventListener(name, handler);
    document.addEventListener("keydown", onKey);
    return () => {
      for (const [name, handler] of Object.entries(handlers)) root.removeEventListener(name, handler);
      document.removeEventListener("keydown", onKey);
    };
  }, [marks, attempts, shown.current]);
  useLayoutEffect(() => {
    if (!tip) return;
    const { offsetWidth: width, offsetHeight: height } = box.current;
    const above = tip.at.y - height - 10;
    box.current.style.left = `${Math.max(8, Math.min(tip.at.x - 20, innerWidth - width - 8))}px`;
    box.current.style.top = `${above > 60 ? above : tip.at.y + 24}px`;
  }, [tip]);
  return tip ? html`<div class="tip" role="tooltip" ref=${box} onPointerLeave=${() => setTip(null)}>${tip.lines.map((line) => html`<p>${line}</p>`)}</div>` : null;
}

function placeOf(event) {
  if (event.type !== "focusin") return { x: event.clientX, y: event.clientY };
  const { left, top } = event.target.getClientRects()[0] ?? event.target.getBoundingClientRect();
  return { x: left, y: top };
}

function stretchesAt(target, root, shown, marks) {
  if (target === root) return [];
  const number = target.closest("[data-stretch]")?.dataset.stretch;
  if (number !== undefined) return [marks[number]];
  if (!(shown instanceof Rendering)) return [];
  let block = target;
  while (block && block.parentNode !== root) block = block.parentNode;
  const place = block ? [...root.children].indexOf(block) : -1;
  if (place < 0 || !shown.blocks[place]) return [];
  const [from, to] = [shown.blocks[place].from, shown.blocks[place + 1]?.from ?? Infinity];
  return marks.filter((one) => one.from < to && one.to > from);
}

// ------------------------------------------------------------------------------------------------------- seams

/** The runs of the channels as a finished job's stream tells them; null until then, and where there is no need to ask. */
function useToldRuns(job, transcript, wanted) {
  const [runs, setRuns] = useState(null);
  const needed = Boolean(wanted && transcript.texts.content && transcript.texts.reasoning && !transcript.runs.length);
  useEffect(() => {
    if (!needed) return undefined;
    const stream = streams.stream(job.jobId, { lastEventId: "", timeout: RUNS_MS });
    runsOf(stream).then(setRuns, () => {}); // reasoning is then taken to come first
    return () => stream.close();
  }, [needed, job.jobId]);
  return needed ? runs : null;
}

async function runsOf(stream) {
  const found = [];
  let before = 0;
  for await (const event of stream) {
    if (event.type !== "chunk") continue;
    const position = Number(stream.lastEventId.split(".")[1]);
    found.push({ channel: event.channel, length: position - before });
    before = position;
  }
  return found;
}

/** `{content, reasoning}` with the stretches of each channel; null unless `wanted`. */
export function useStretches(job, transcript, wanted) {
  const told = useToldRuns(job, transcript, wanted);
  return useMemo(() => {
    if (!wanted) return null;
    const runs = transcript.runs.length ? transcript.runs : (told ?? usualRuns(transcript.texts));
    const of = (channel) => stretchesOf(job.provenance ?? [], runs, channel, transcript.texts[channel]);
    return { content: of("content"), reasoning: of("reasoning") };
  }, [wanted, told, transcript, job.provenance, job.status]);
}

/** How the answer came about, if it took several attempts; and the control that shows where it was continued. */
export function Seams({ job, view, shown, onShown }) {
  if (job.attempts.length < 2) return null;
  const all = shown && hasSeams(job) ? job.provenance : [];
  return html`<div class="seams">
    <p class="legend-line"><span>${legendOf(job)}</span>
      ${hasSeams(job) ? html`<button type="button" class="quiet" aria-pressed=${shown ? "true" : "false"} onClick=${() => onShown(!shown)}>Show where it was continued</button>` : null}</p>
    ${all.length
      ? html`<p class="muted how">${view === "raw" ? "A bar stands where one attempt went on from another." : "A line stands above each block that was continued; the raw view shows the character."} Point at the text, or move the focus there, to see who wrote it.</p>
        <ol class="stretches">${all.map((one) => html`<li key=${one.start} data-seam=${one.seam ?? "none"}>${tell(one, job.attempts)}</li>`)}</ol>`
      : null}
  </div>`;
}

/** In place of an answer that is not rendered unasked. */
export function TooLong({ length, onRender }) {
  return html`<p class="remark">The answer has ${count(length)} characters and is shown as it is. Rendered, it takes some seconds. <button type="button" onClick=${onRender}>Render it</button></p>`;
}
