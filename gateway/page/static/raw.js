// The exact text of an answer. In pieces, of which the browser lays out those in sight, so that a text of megabytes does
// not hold up the page; each ends at the end of a line.

const PIECE = 30_000;

/** A growing text in `root`; `mark` has its stretches told apart, in elements that carry their numbers. */
export class RawText {
  constructor(root) {
    this.root = root;
    this.text = "";
    this.marks = null;
    this.#clear();
  }

  /** Show a text that goes on from the one shown, or another one. */
  show(text) {
    if (!text.startsWith(this.text)) this.#clear();
    this.text = text;
    this.#write();
  }

  /** Draw a bar before each stretch but the first; null: none. */
  mark(stretches) {
    if (stretches === this.marks) return;
    this.marks = stretches;
    this.#clear();
    this.#write();
  }

  #clear() {
    this.written = 0;
    this.piece = null;
    this.root.replaceChildren();
  }

  #write() {
    while (this.written < this.text.length) {
      if (!this.piece || this.piece.full) this.#newPiece();
      const number = this.marks ? this.marks.findLastIndex(({ from }) => from <= this.written) : -1;
      const end = this.marks?.[number + 1]?.from ?? Infinity;
      const part = this.text.slice(this.written, Math.min(end, this.#endOfPiece()));
      this.#append(part, number);
    }
  }

  /** Where the piece ends: after the first line end behind its size. */
  #endOfPiece() {
    const line = this.text.indexOf("\n", Math.max(this.written, this.piece.from + PIECE));
    return line < 0 ? Infinity : line + 1;
  }

  #append(part, number) {
    this.written += part.length;
    this.piece.full = part.endsWith("\n") && this.written > this.piece.from + PIECE;
    const { node } = this.piece;
    if (number < 0) return appendText(node, part);
    if (node.lastChild?.dataset?.stretch === String(number)) return appendText(node.lastChild, part);
    if (number && this.written - part.length === this.marks[number].from) node.append(bar(this.marks[number]));
    const stretch = document.createElement("span");
    stretch.className = "stretch";
    stretch.dataset.stretch = number;
    stretch.tabIndex = 0;
    stretch.append(part);
    return node.append(stretch);
  }

  #newPiece() {
    const node = document.createElement("div");
    node.className = "piece";
    this.root.append(node);
    this.piece = { node, from: this.written, full: false };
  }
}

/** Into the text node that is there: a new one would end the reader's selection. */
function appendText(parent, text) {
  const { lastChild: last } = parent;
  if (last?.nodeType === Node.TEXT_NODE) last.appendData(text);
  else parent.append(text);
}

function bar({ seam }) {
  const made = document.createElement("i");
  made.className = "seam";
  made.dataset.seam = seam ?? "none";
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", "Continued here");
  return made;
}
