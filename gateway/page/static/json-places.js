// Where in a JSON text the value is that a JSON pointer (RFC 6901) names. Pure.

const BLANK = /[\s]/;
const AFTER_SCALAR = /[,\]}\s]/;

const unescaped = (part) => part.replaceAll("~1", "/").replaceAll("~0", "~");

/**
 * The first and last place of the member that a pointer names, with its name, or of the innermost value around it that
 * is there; of the whole text if it is no JSON.
 */
export function placeOf(text, pointer) {
  let found = [skipped(text, 0), text.trimEnd().length];
  let start = found[0];
  for (const part of pointer.split("/").slice(1).map(unescaped)) {
    const member = memberOf(text, start, part);
    if (!member) break;
    found = [member.from, member.end];
    start = member.value;
  }
  return found;
}

/** The number of the line of a place, from 1. */
export const lineOf = (text, place) => text.slice(0, place).split("\n").length;

function skipped(text, from) {
  let place = from;
  while (place < text.length && BLANK.test(text[place])) place += 1;
  return place;
}

/** A member of the object or array that begins at `start`: where it, and its value, begin, and its end. */
function memberOf(text, start, part) {
  const inObject = text[start] === "{";
  if (!inObject && text[start] !== "[") return null;
  let place = skipped(text, start + 1);
  for (let index = 0; place < text.length && !"]}".includes(text[place]); index += 1) {
    const from = place;
    let name = String(index);
    if (inObject) {
      const end = endOf(text, place);
      name = nameOf(text.slice(place, end));
      place = skipped(text, skipped(text, end) + 1); // after the colon
    }
    const value = place;
    const end = endOf(text, value);
    if (end <= from) return null; // this is no JSON
    if (name === part) return { from, value, end };
    place = skipped(text, end);
    if (text[place] === ",") place = skipped(text, place + 1);
  }
  return null;
}

function nameOf(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** The end of the value that begins at `start`. */
function endOf(text, start) {
  if (text[start] === '"') return endOfString(text, start);
  let place = start;
  if (text[start] !== "{" && text[start] !== "[") {
    while (place < text.length && !AFTER_SCALAR.test(text[place])) place += 1;
    return place;
  }
  for (let depth = 0; place < text.length; place += 1) {
    if (text[place] === '"') place = endOfString(text, place) - 1;
    else if ("{[".includes(text[place])) depth += 1;
    else if ("}]".includes(text[place]) && (depth -= 1) === 0) return place + 1;
  }
  return place;
}

function endOfString(text, start) {
  let place = start + 1;
  while (place < text.length && text[place] !== '"') place += text[place] === "\\" ? 2 : 1;
  return Math.min(place + 1, text.length);
}
