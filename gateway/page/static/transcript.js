// The text of an answer while it is generated. Those who show it are told of each change: rendering the view for every
// token is too slow.

const RATE_SECONDS = 5;

/** The text that a reader of a job's events has received so far. */
export class Transcript {
  constructor() {
    this.watchers = new Set();
    this.restart();
  }

  restart() {
    this.texts = { content: "", reasoning: "" };
    this.runs = [];
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
    const position = Number(id.split(".")[1]);
    this.#count(channel, position - this.characters);
    this.characters = position;
    this.tokens = tokenCount;
    const now = performance.now() / 1000;
    this.firstAt ??= Date.now();
    this.marks = [...this.marks.filter(([at]) => at > now - RATE_SECONDS), [now, tokenCount]];
    this.append(channel, content);
  }

  /** How the channels follow each other, in characters. */
  #count(channel, length) {
    const last = this.runs.at(-1);
    if (last?.channel === channel) last.length += length;
    else this.runs.push({ channel, length });
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
