// Markdown as elements. The parser's tokens become elements one by one, never markup: the page's policy allows no text to
// become HTML. What was made is then sanitised in place, and only what differs is changed in the document, so that
// selected text and the reader's place survive while an answer grows.

import Parser from "./vendor/markdown-it.js";
import Purifier from "./vendor/purify.js";

const LINK = /^(?:https?|mailto):/i;
const LINE_END = /\r\n?|\n/g;
const DEFINITION = /\[[^\]]+\]:/;
const TASK = /^\[([ xX])\]\s+/;
const LONGEST_LANGUAGE = 30;
/** Longer texts are not read once more at their end. */
const READ_AGAIN = 500_000;
/** Longer paragraphs are shown without emphasis and links: the time for brackets grows with the square of their number. */
const LONGEST_PARAGRAPH = 10_000;

const parser = new Parser({ html: false, linkify: true, breaks: true });
// A relative address would lead into this service; an image's would be fetched without a click.
parser.validateLink = (address) => LINK.test(address.trim());
parser.core.ruler.at("inline", (state) => {
  for (const token of state.tokens) {
    if (token.type !== "inline") continue;
    if (token.content.length <= LONGEST_PARAGRAPH) state.md.inline.parse(token.content, state.md, state.env, token.children);
    else token.children.push(Object.assign(new state.Token("text", "", 0), { content: token.content }));
  }
});

Purifier.setConfig({
  IN_PLACE: true,
  TRUSTED_TYPES_POLICY: null, // no text becomes markup, so it needs none, and the page's policy allows none
  ALLOWED_TAGS: ["#text", ..."a b blockquote br button code del div em figcaption figure h4 h5 h6 hr input li ol p pre span strong table tbody td th thead tr ul".split(" ")],
  ALLOWED_ATTR: "checked class disabled href rel role scope start tabindex target title type".split(" "),
  ADD_URI_SAFE_ATTR: "checked disabled rel scope start tabindex target type".split(" "),
  ALLOWED_URI_REGEXP: LINK,
  ALLOW_UNKNOWN_PROTOCOLS: false,
});

// ------------------------------------------------------------------------------------------------------- elements

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** A code block with its language and a button that copies it; `copiesFrom` has the click. */
export function codeBlock(text, language) {
  const label = element("span", {}, language || "code");
  const button = element("button", { type: "button", class: "quiet copy-code", "aria-label": "Copy code" }, "Copy");
  const code = element("pre", { tabindex: "0" }, element("code", {}, text));
  return element("figure", { class: "code-block" }, element("figcaption", {}, label, button), code);
}

/** The text of the code block whose button was clicked; null for other clicks. */
export function copiedCode(event) {
  const button = event.target.closest?.("button.copy-code");
  return button ? button.closest("figure").querySelector("pre").textContent : null;
}

function link(address, title, ...children) {
  const goal = { href: address, target: "_blank", rel: "noopener noreferrer nofollow" };
  return element("a", { ...goal, title: title ? `${title} (${address})` : address }, ...children);
}

const HEADINGS = { h1: "h4", h2: "h5", h3: "h6", h4: "h6", h5: "h6", h6: "h6" }; // below the message's own
const CONTAINERS = { ul: "ul", li: "li", blockquote: "blockquote", thead: "thead", tbody: "tbody", tr: "tr", p: "p", em: "em", strong: "strong", s: "del", ...HEADINGS };

/** The element for a token that opens one, and where its children go. */
function opened(token) {
  if (token.tag === "ol") return element("ol", { start: token.attrGet("start") });
  if (token.tag === "table") return element("table");
  if (token.tag === "th" || token.tag === "td") {
    const align = /text-align:(\w+)/.exec(token.attrGet("style") ?? "")?.[1] ?? null;
    return element(token.tag, { scope: token.tag === "th" ? "col" : null, "data-align": align });
  }
  if (token.tag === "a") return link(token.attrGet("href"), token.attrGet("title"));
  return element(CONTAINERS[token.tag] ?? "span");
}

const withoutEnd = (code) => code.replace(/\n$/, "");

const LEAVES = {
  text: (token) => [token.content],
  code_inline: (token) => [element("code", {}, token.content)],
  softbreak: () => [element("br"), "\n"],
  hardbreak: () => [element("br"), "\n"],
  hr: () => [element("hr")],
  fence: (token) => [codeBlock(withoutEnd(token.content), token.info.trim().split(/\s+/)[0].slice(0, LONGEST_LANGUAGE))],
  code_block: (token) => [codeBlock(withoutEnd(token.content), "")],
  image: imageLink,
};

/** Images are not loaded: an address could carry what was said to a stranger. In a link there is no other link. */
function imageLink(token, path) {
  const name = `Image: ${token.content || token.attrGet("src")}`;
  return path.some((node) => node.nodeName === "A") ? [name] : [link(token.attrGet("src"), token.attrGet("title"), name)];
}

/** How many children of an element were not made, as the document has them already, the first ones. */
const SKIPPED = new WeakMap();

/** Append the elements for tokens to a node, without the first parts if their keys are `known`. */
function build(tokens, root, known = []) {
  const path = [root];
  let part = 0;
  for (let place = 0; place < tokens.length; place++) {
    const token = tokens[place];
    const parent = path.at(-1);
    if (token.meta?.key && token.meta.key === known[part]) {
      part++;
      SKIPPED.set(parent, (SKIPPED.get(parent) ?? 0) + 1);
      place = endOf(tokens, place);
      continue;
    }
    if (token.meta?.key) part = Infinity; // those after a part that is another one are made anew
    if (token.type === "inline") build(token.children, parent);
    else if (token.nesting === 1) path.push(token.hidden ? parent : opened(token));
    else if (token.nesting === -1) close(path, token);
    else parent.append(...(LEAVES[token.type]?.(token, path) ?? [token.content]));
  }
}

/** The place of the token that closes what the one at a place opens. */
function endOf(tokens, place) {
  let end = place + 1;
  while (tokens[end].level !== tokens[place].level) end++;
  return end;
}

const PARTS = { bullet_list_open: "list_item_open", ordered_list_open: "list_item_open", table_open: "tr_open" };

/** Give each item of a list, and each row of a table, a key: its text, and what else of the block it depends on. */
function setKeys(tokens, linesFrom) {
  const type = PARTS[tokens[0].type];
  if (!type) return [];
  const columns = tokens.filter((token) => token.type === "th_open").map((token) => token.attrGet("style")).join();
  const first = type === "tr_open" ? tokens.findIndex((token) => token.type === "tbody_open") : 0;
  const level = type === "tr_open" ? 2 : 1;
  const parts = first < 0 ? [] : tokens.slice(first).filter((token) => token.type === type && token.level === level);
  const isTight = tokens.some((token) => token.hidden && token.level === 2);
  for (const part of parts) part.meta = { key: `${columns}|${isTight}|${linesFrom(...part.map)}` };
  return parts.map((part) => part.meta.key);
}

function close(path, token) {
  const done = path.pop();
  if (token.hidden) return;
  if (token.tag === "li") markTask(done);
  const shown = token.tag === "table" ? element("div", { class: "table", role: "group", "aria-label": "Table", tabindex: "0" }, done) : done;
  path.at(-1).append(shown);
}

/** `- [x] …`: a box in place of the brackets. */
function markTask(item) {
  const first = item.firstChild?.nodeName === "P" ? item.firstChild.firstChild : item.firstChild;
  const found = first?.nodeType === Node.TEXT_NODE && TASK.exec(first.data);
  if (!found) return;
  const done = found[1] !== " ";
  first.data = first.data.slice(found[0].length);
  first.before(element("input", { type: "checkbox", disabled: "", checked: done ? "" : null, "aria-label": done ? "Done" : "To do" }));
  item.setAttribute("class", "task");
}

// -------------------------------------------------------------------------------------------------------- changes

/** Make `old` like `made`, and keep every node that can stay; returns the one that is in the document. */
function morph(old, made) {
  if (old.nodeType === Node.TEXT_NODE && made.nodeType === Node.TEXT_NODE) {
    if (made.data.startsWith(old.data)) old.appendData(made.data.slice(old.length));
    else old.data = made.data;
    return old;
  }
  if (old.nodeName !== made.nodeName || old.nodeType !== Node.ELEMENT_NODE) {
    old.replaceWith(made);
    return made;
  }
  for (const { name } of [...old.attributes]) if (!made.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of made.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  morphAll(childrenFrom(old, SKIPPED.get(made) ?? 0), [...made.childNodes], old);
  return old;
}

function morphAll(before, made, parent) {
  made.forEach((node, place) => (place < before.length ? morph(before[place], node) : parent.append(node)));
  for (const node of before.slice(made.length)) node.remove();
}

// ------------------------------------------------------------------------------------------------------ rendering

/** Where each line of a text begins, and its end. */
function linesOf(text) {
  const starts = [0];
  for (const found of text.matchAll(LINE_END)) starts.push(found.index + found[0].length);
  return starts;
}

/**
 * A growing text as elements in `root`, one for each of its outermost blocks.
 *
 * Only the last block of a text that is still written can change; those before it are finished, and neither parsed nor
 * touched again. `blocks` has where each begins in the text.
 */
export class Rendering {
  constructor(root) {
    this.root = root;
    this.marks = null;
    this.clear();
  }

  clear() {
    this.text = "";
    this.blocks = [];
    this.finished = 0;
    this.references = {};
    this.root.replaceChildren();
  }

  /** Mark the blocks in which a stretch but the first begins, with what `describe` says of it; null: none. */
  mark(stretches, describe) {
    this.marks = stretches && { stretches, describe };
    this.#mark(0);
  }

  /** Show a text that goes on from the one shown, or another one. */
  show(text) {
    if (!text.startsWith(this.text)) this.clear();
    this.text = text;
    const from = this.blocks[this.finished]?.from ?? 0;
    this.#replace(this.finished, this.#blocksOf(from, { references: { ...this.references } }));
    this.#settle();
  }

  /** Show the whole text as it is when it is read at once: links to what is defined below them are made, too. */
  finish() {
    if (this.text.length > READ_AGAIN) return;
    const env = { references: {} };
    const whole = this.#blocksOf(0, env);
    const links = Object.keys(env.references).length > 0;
    const stays = ({ from }, place) => from === this.blocks[place]?.from && !(links && this.#source(whole, place).includes("["));
    const first = whole.findIndex((block, place) => !stays(block, place));
    if (first >= 0) this.#replace(first, whole.slice(first), { anew: true });
  }

  /** The place of the block that has a character. */
  at(offset) {
    return this.blocks.findLastIndex(({ from }) => from <= offset);
  }

  #source(blocks, place) {
    return this.text.slice(blocks[place].from, blocks[place + 1]?.from);
  }

  /** The outermost blocks of the text from an offset on, which is where one begins. */
  #blocksOf(offset, env) {
    const part = offset ? this.text.slice(offset) : this.text;
    const starts = linesOf(part);
    this.lines = starts.length - 1;
    const blocks = [];
    for (const token of parser.parse(part, env)) {
      if (token.level === 0 && token.nesting >= 0) blocks.push({ from: offset + starts[token.map[0]], line: token.map[0], tokens: [] });
      blocks.at(-1).tokens.push(token);
    }
    for (const block of blocks) block.keys = setKeys(block.tokens, (first, end) => part.slice(starts[first], starts[end]));
    return blocks;
  }

  /** Replace the blocks from a place on; of one that has only grown, no part is made `anew` that stays as it is. */
  #replace(place, blocks, { anew = false } = {}) {
    const made = element("div");
    blocks.forEach((block, number) => {
      const before = this.blocks[place + number];
      const grown = !anew && before?.type === block.tokens[0].type && before.from === block.from;
      build(block.tokens, made, grown ? before.keys : []);
    });
    Purifier.sanitize(made);
    morphAll(childrenFrom(this.root, place), [...made.childNodes], this.root);
    this.blocks.splice(place, Infinity, ...blocks.map(({ tokens, ...block }) => ({ ...block, type: tokens[0].type })));
    if (this.marks) this.#mark(place);
  }

  #mark(place) {
    const labels = new Map();
    for (const stretch of this.marks?.stretches.slice(1) ?? []) {
      const block = this.at(stretch.from);
      labels.set(block, [...(labels.get(block) ?? []), this.marks.describe(stretch)]);
    }
    childrenFrom(this.root, place).forEach((block, number) => {
      setOrRemove(block, "data-seam", labels.get(place + number)?.join("; "));
      setOrRemove(block, "tabindex", this.marks || block.className === "table" ? "0" : null);
    });
  }

  /** A block is finished once the next one has two whole lines: whether a table begins there shows in its second. */
  #settle() {
    const begun = this.blocks.findLastIndex(({ line }, place) => place > this.finished && line + 2 <= this.lines);
    if (begun < 0) return;
    const part = this.text.slice(this.blocks[this.finished].from, this.blocks[begun].from);
    if (DEFINITION.test(part)) parser.parse(part, { references: this.references });
    this.finished = begun;
  }
}

function setOrRemove(node, name, value) {
  if (value) node.setAttribute(name, value);
  else node.removeAttribute(name);
}

function childrenFrom(root, place) {
  const found = [];
  const count = root.childNodes.length - place;
  for (let node = root.lastChild; found.length < count; node = node.previousSibling) found.push(node);
  return found.reverse();
}
