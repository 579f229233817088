// The text of an answer while it is generated. It is written into text nodes directly: rendering for every token is too
// slow, and text can never become markup.

import { html, useLayoutEffect, useRef } from "./vendor/htm-preact.js";

const RATE_SECONDS = 5;

/** The text that a reader of a job's events has received so far. */
export class Transcript {
  constructor() {
    this.watchers = new Set();
    this.restart();
  }

  restart() {
    this.texts = { content: "", reasoning: "" };
    this.characters = 0;
    this.tokens = 0;
    this.firstAt = null;
    this.marks = [];
    this.tell(null);
  }

  /** Set the existing text. */
  fill(content, reasoning) {
    this.restart();
    this.append("content", content ?? "");
    this.append("reasoning", reasoning ?? "");
  }

  /** Whether this is a job's complete text. */
  has({ content, reasoning }) {
    return this.texts.content === (content ?? "") && this.texts.reasoning === (reasoning ?? "");
  }

  /** Append a chunk; its id has the number of characters up to its end. */
  take({ content, channel, tokenCount }, id) {
    this.characters = Number(id.split(".")[1]);
    this.tokens = tokenCount;
    const now = performance.now() / 1000;
    this.firstAt ??= Date.now();
    this.marks = [...this.marks.filter(([at]) => at > now - RATE_SECONDS), [now, tokenCount]];
    this.append(channel, content);
  }

  append(channel, text) {
    if (!text) return;
    this.texts[channel] += text;
    this.tell({ channel, text });
  }

  tell(change) {
    for (const watch of this.watchers) watch(change);
  }

  /** Tokens per second of the last seconds; null while there are too few. */
  get rate() {
    const [first, last] = [this.marks[0], this.marks.at(-1)];
    return first && last[0] - first[0] > 0.5 ? (last[1] - first[1]) / (last[0] - first[0]) : null;
  }
}

/** One channel's text; text that arrives between two animation frames is written at once. */
export function Text({ transcript, channel, ...rest }) {
  const ref = useRef(null);
  useLayoutEffect(() => {
    const node = document.createTextNode(transcript.texts[channel]);
    ref.current.replaceChildren(node);
    let waiting = "";
    let frame = 0;
    const write = () => {
      frame = 0;
      node.appendData(waiting);
      waiting = "";
    };
    const watch = (change) => {
      if (change === null) {
        waiting = "";
        node.data = "";
      } else if (change.channel === channel) {
        waiting += change.text;
        frame ||= requestAnimationFrame(write);
      }
    };
    transcript.watchers.add(watch);
    return () => {
      transcript.watchers.delete(watch);
      cancelAnimationFrame(frame);
    };
  }, [transcript, channel]);
  return html`<div class="text" ref=${ref} ...${rest}></div>`;
}
